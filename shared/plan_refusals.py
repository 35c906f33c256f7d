"""What can a plan not hold? Each refusal names the fields and a remedy, before a federation exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.codec.quantize import choose_bits
from shared.codec.validation import validated_metrics
from shared.errors import PlanError
from shared.plan_sections import RoundPlan, SteeringPlan
from shared.privacy.refusals import privacy_refusals
from shared.privacy.sums import ANSWERING
from shared.wire.log_messages import HEADS_MAX
from shared.wire.messages import PLAN_BYTES_MAX

if TYPE_CHECKING:
    from shared.plan import Plan


def refusals(plan: Plan) -> Iterator[str]:
    """Yield what is wrong with a plan, each with its remedy."""
    aggregation, codec, rounds = plan.aggregation, plan.codec, plan.round
    misgrouped = list(_group_refusals(plan)) if plan.group_size > 1 else []
    yield from misgrouped
    if aggregation.rule in ("mean", "median") and aggregation.trim:
        yield f"aggregation.trim={aggregation.trim} has no effect with the rule {aggregation.rule!r}; set trim to 0"
    if aggregation.quorum is not None and 2 * aggregation.trim >= aggregation.quorum:
        yield (
            f"2·trim >= quorum (aggregation.trim={aggregation.trim}, quorum={aggregation.quorum}): "
            "trimming would leave nothing; lower trim or raise quorum"
        )
    if plan.float_buffers:
        yield from _buffer_refusals(plan)
    beside = {
        "float_buffers": plan.float_buffers,
        "evaluation.client_share": plan.evaluation.client_share,
        "metric_bounds": plan.metric_bounds and not plan.evaluation.client_share,
    }
    unnoised = [name for name, is_sent in beside.items() if is_sent]
    yield from privacy_refusals(plan.privacy, plan.training, codec, unnoised=unnoised)
    if codec.selection == "dense" and codec.density != 1:
        yield f"codec.density={codec.density} has no effect with selection 'dense'; set it to 1"
    if codec.selection == "top_k":
        yield from _top_k_refusals(plan)
    if codec.bits is not None and codec.bits < choose_bits(plan.coordinate_count, plan.members_max):
        yield (
            f"codec.bits={codec.bits}: rounding {plan.coordinate_count} values in groups of up to {plan.members_max} "
            "would add noise above 5 % of the clipping norm; use 32"
        )
    elif not misgrouped:
        yield from _sum_refusals(plan)
    for name in ("cohort_size", "pool_size"):
        size = getattr(rounds, name)
        if size is not None and size < plan.min_offers:
            yield f"round.{name}={size} is below the {plan.min_offers} offers that a draw needs"
    yield from _mode_refusals(plan)
    steering = plan.steering
    if (steering.schedule == "step") != (steering.step_every is not None):
        yield "steering.step_every belongs to the schedule 'step', which needs it: set both or neither"
    drops = steering.schedule == "step" or steering.plateau_patience is not None
    if not drops and steering.rate_drop != SteeringPlan().rate_drop:
        yield f"steering.rate_drop={steering.rate_drop} has no effect without the schedule 'step' or plateau_patience"
    if steering.watch == "clients" and not plan.evaluation.client_share:
        yield "steering.watch='clients' needs clients that measure: set evaluation.client_share"
    if steering.watch == "clients" and steering.ema:
        yield "steering.ema: clients measure the versions and not their average; set it to 0, or watch to 'held_out'"
    if bool(plan.evaluation.client_share) != bool(validated_metrics(plan.metric_bounds)):
        yield "evaluation.client_share belongs to validation slots in metric_bounds: both or neither"
    if not all(name.isidentifier() for name in plan.metric_bounds):
        yield "metric_bounds: names must be identifiers"
    if len(plan.encode()) > PLAN_BYTES_MAX:
        yield f"the plan takes more than {PLAN_BYTES_MAX} bytes; shorten workload_options"


def _buffer_refusals(plan: Plan) -> Iterator[str]:
    """A running statistic may only move toward the clients' own: a variance that is carried beyond becomes negative."""
    if plan.codec.selection != "dense":
        yield (
            "float_buffers: sparse updates are scaled up, which carries running statistics beyond what any client has; "
            "use codec.selection='dense' with density 1, or leave float_buffers off"
        )
    optimizer = plan.aggregation.server_optimizer
    rate = optimizer.options.get("lr", 1.0)
    if optimizer.name != "SGD" or set(optimizer.options) - {"lr"} or not isinstance(rate, (int, float)) or rate > 1:
        yield (
            f"float_buffers: the server optimizer {optimizer.name} with {optimizer.options} does not average running "
            "statistics; use 'fedavg' (SGD, lr 1 or less, nothing else), or leave float_buffers off"
        )


def _group_refusals(plan: Plan) -> Iterator[str]:
    # The smallest group is the hardest to hold, but a fraction may round up at any size.
    for members in range(plan.group_size, plan.members_max + 1):
        try:
            floor = plan.summed_floor(members)
        except PlanError as error:
            yield f"group_size={plan.group_size}: {error}"
            return
        if floor > members:
            yield f"min_summed={plan.min_summed} is more than the {members} members of a group: lower it"
            return
    if plan.privacy.level == "client" and plan.threshold_fraction < ANSWERING:
        yield (
            f"threshold_fraction={plan.threshold_fraction:g}: at the privacy.level 'client' the members of a sum share "
            f"out its noise, and few of them would each add too much; set it to {ANSWERING:g} or more"
        )


def _sum_refusals(plan: Plan) -> Iterator[str]:
    """No sum may wrap. With noise the largest group is not always the worst."""
    for members in range(plan.group_size if plan.client_noise else plan.members_max, plan.members_max + 1):
        try:
            plan.sum_format(members, plan.codec.clipping_norm)
        except PlanError as error:
            yield f"codec.{error}"
            return


def _mode_refusals(plan: Plan) -> Iterator[str]:
    """What only the other mode has would do nothing; and coordinates that the draw chooses come after training."""
    is_sync, defaults = plan.round.mode == "sync", RoundPlan()
    other = ("pool_size", "max_staleness", "cooldown") if is_sync else ("cohort_size", "offer_quorum")
    idle = [f"round.{name}" for name in other if getattr(plan.round, name) != getattr(defaults, name)]
    if idle:
        yield f"{', '.join(idle)}: no effect in the mode {plan.round.mode!r}; leave out, or set round.mode"
    if plan.round.staleness_max > HEADS_MAX:
        yield f"round.max_staleness={plan.round.max_staleness} is more than the {HEADS_MAX} versions that readers know"
    if not is_sync and plan.codec.selection == "restricted":
        yield (
            "codec.selection='restricted' needs coordinates that are known before training, and in the mode 'async' "
            "the draw chooses them; use 'dense' or 'random', or round.mode='sync'"
        )


def _top_k_refusals(plan: Plan) -> Iterator[str]:
    if plan.group_size != 1:
        yield (
            f"group_size={plan.group_size}: with codec.selection 'top_k' every client sends other coordinates, so "
            "masks would not cancel; use 1, or another selection"
        )
    if plan.aggregation.rule == "median":
        yield (
            "aggregation.rule='median' is zero wherever fewer than half of the clients sent a value, so with "
            "codec.selection 'top_k' little or nothing is learned; use another rule"
        )
    if plan.coordinate_count == plan.dimension:
        yield f"codec.density={plan.codec.density} lets 'top_k' send every value; use the selection 'dense'"
