"""May this worker serve a plan that stands in the log? What is looked at once, before anything is trained."""

from __future__ import annotations

from shared.codec.flatten import layout_of
from shared.errors import ComitiaError, PlanError
from shared.membership import Membership
from shared.modellog.reader import LogReader
from shared.plan import Plan
from shared.workloads.port import Workload
from worker.budget import terms_of
from worker.events import Mismatch
from worker.policy import Policy
from worker.trainer import Preparing, Training


def training_or_mismatch(
    log: LogReader, members: Membership, policy: Policy, prepare: Preparing
) -> Training | Mismatch:
    """The training that the log's plan asks for, or why clients of this worker take no part under it."""
    plan = log.plan
    assert plan is not None
    if plan.federation_id != members.directory.federation_id:
        return Mismatch(f"the log belongs to federation {plan.federation_id}")
    if log.signed_directory != members.signed:
        ours, theirs = members.directory.number, log.directory.number
        return Mismatch(
            f"the log has directory number {theirs}, we have another (number {ours}); renew the coordinator's"
        )
    objection = policy.objection_to(plan, members.directory) or policy.objection_to_charge(terms_of(plan).charge)
    if objection:
        return Mismatch(objection, by_policy=True)
    try:
        return prepare(plan)
    except ComitiaError as error:
        return Mismatch(str(error))


def check_layout(workload: Workload, plan: Plan) -> None:
    """
    Raises:
        PlanError: this worker's model has other parameters than the plan's.
    """
    if layout_of(workload.model(), plan.float_buffers).digest().hex() != plan.layout_digest:
        raise PlanError(f"the model of {plan.workload!r} has other parameters here than in the plan")
