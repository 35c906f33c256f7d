"""Which plans would promise a privacy that they do not keep?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shared.plan_sections import CodecPlan, PrivacyPlan, TrainingPlan

_OF_RECORDS = ("sample_clipping_norm", "sampling_rate", "local_steps", "nominal_records")


def privacy_refusals(
    privacy: PrivacyPlan, training: TrainingPlan, codec: CodecPlan, *, unnoised: Sequence[str]
) -> Iterator[str]:
    """Yield what is wrong with a plan's privacy, each with its remedy.

    Args:
        privacy, training, codec: the plan's sections.
        unnoised: names of what would leave a client beside its noised gradients.
    """
    if privacy.level == "off":
        given = privacy.model_dump(exclude_defaults=True)
        if given:
            yield f"privacy.{', '.join(given)}: no effect at the level 'off'; set privacy.level, or leave them out"
        return
    for name in unnoised:
        yield f"{name}: leaves its client without noise; with privacy.level {privacy.level!r} leave it out"
    if codec.selection == "top_k":
        yield (
            "codec.selection='top_k' would send the largest values of the noise, or tell which were largest before it; "
            f"with privacy.level {privacy.level!r} use 'restricted', or 'dense'"
        )
    yield from _client_refusals(privacy, codec) if privacy.level == "client" else _record_refusals(privacy, training)


def _record_refusals(privacy: PrivacyPlan, training: TrainingPlan) -> Iterator[str]:
    for name in ("epsilon", "delta", "noise_multiplier", "nominal_records"):
        if getattr(privacy, name) is None:
            yield f"privacy.{name} is needed at the level 'record': set it"
    optimizer = training.optimizer
    if optimizer.name != "SGD" or set(optimizer.options) != {"lr"}:
        yield (
            f"training.optimizer: the gates need to know the noise in an update, which is known for plain SGD and not "
            f"for {optimizer.name} with {optimizer.options}; use SGD with lr alone, or privacy.level 'off'"
        )
    if training.proximal_mu:
        yield "training.proximal_mu is for long local training, which privacy.level 'record' has not; set it to 0"


def _client_refusals(privacy: PrivacyPlan, codec: CodecPlan) -> Iterator[str]:
    for name in ("epsilon", "delta", "noise_multiplier"):
        if getattr(privacy, name) is None:
            yield f"privacy.{name} is needed at the level 'client': set it"
    idle = [name for name in _OF_RECORDS if getattr(privacy, name) is not None]
    if idle:
        yield f"privacy.{', '.join(idle)}: no effect at the level 'client', which hides whole updates; leave them out"
    if codec.adaptive_clipping:
        yield (
            "codec.adaptive_clipping: whose update was clipped would leave without noise; with privacy.level 'client' "
            "set it to false, and codec.clipping_norm to what updates have"
        )
    if codec.bits == 16:
        yield "codec.bits=16 has no room for the noise of privacy.level 'client'; use 32"
