"""Which plans would promise a privacy that they do not keep?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shared.plan_sections import CodecPlan, PrivacyPlan, TrainingPlan


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
    if privacy.level == "client":
        yield "privacy.level='client' is not part of this version; use 'record', or 'off'"
        return
    for name in ("epsilon", "delta", "noise_multiplier", "nominal_records"):
        if getattr(privacy, name) is None:
            yield f"privacy.{name} is needed at the level 'record': set it"
    for name in unnoised:
        yield f"{name}: leaves its client without noise; with privacy.level 'record' leave it out"
    optimizer = training.optimizer
    if optimizer.name != "SGD" or set(optimizer.options) != {"lr"}:
        yield (
            f"training.optimizer: the gates need to know the noise in an update, which is known for plain SGD and not "
            f"for {optimizer.name} with {optimizer.options}; use SGD with lr alone, or privacy.level 'off'"
        )
    if training.proximal_mu:
        yield "training.proximal_mu is for long local training, which privacy.level 'record' has not; set it to 0"
    if codec.selection == "top_k":
        yield (
            "codec.selection='top_k' would send the largest values of the noise with privacy.level 'record'; "
            "use 'restricted', or 'dense'"
        )
