"""What is fixed for one federation: the frozen public parameters that both sides share, and what makes them sound.

The plan travels signed (embedded in the snapshots of the model log); nothing that both sides must agree on travels in
any other way. Whatever it cannot hold is refused here, before a federation exists.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, JsonValue, ValidationError, model_validator

from shared.codec.coordinates import coordinate_count, rescale
from shared.codec.positions import positions_size
from shared.codec.quantize import Bits, SumFormat, choose_bits
from shared.crypto.threshold import threshold
from shared.errors import PlanError
from shared.identity import Name
from shared.plan_refusals import refusals
from shared.plan_sections import (
    AggregationPlan,
    CodecPlan,
    EvaluationPlan,
    PrivacyPlan,
    RoundPlan,
    Section,
    SteeringPlan,
    TrainingPlan,
)
from shared.privacy.charges import Charge, RecordCharge
from shared.privacy.sums import ClientNoise
from shared.privacy.updates import RecordNoise
from shared.wire.messages import GROUPS_MAX, MEMBERS_MAX

SUMMED_MIN = 3
"""A sum of fewer updates is not opened, when `min_summed` is not set: two members know each other's."""

QUORUM_SHARE = 0.6
"""Share of a draw's groups that the server step needs, when `quorum` is not set."""


class Plan(Section):
    """The frozen public parameters of one federation.

    In groups of `group_size` (g) to 2g − 1 clients, up to `max_colluders` (c) of whom may side with the coordinator,
    `shared.crypto.threshold` says how many must answer (at least `threshold_fraction` of them); no sum of fewer than
    `min_summed` updates is opened (None: three, or the whole group). In groups of one nothing is masked, and
    `max_colluders` means nothing.
    `weight_records_max` (n_max) is the number of records that counts as weight 1; `metric_bounds` names the metrics
    that ride in the summed vector and the largest value each may take. `initial_weights_sha256` is set if version 0
    came from a file and not from the workload. With `float_buffers` the model's float buffers follow its
    parameters in the vector of d values.
    """

    protocol_version: Literal[1] = 1
    federation: Name
    federation_id: UUID
    workload: str
    workload_options: dict[str, JsonValue] = Field(default_factory=dict)
    layout_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    dimension: Annotated[int, Field(ge=1, lt=1 << 32)]
    float_buffers: bool = False
    initial_weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    group_size: Annotated[int, Field(ge=1, le=MEMBERS_MAX // 2)] = 4
    max_colluders: Annotated[int, Field(ge=0, le=MEMBERS_MAX)] = 1
    threshold_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_summed: Annotated[int, Field(ge=1, le=MEMBERS_MAX)] | None = None
    weight_records_max: Annotated[int, Field(ge=1)]
    metric_bounds: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    training: TrainingPlan = TrainingPlan()
    privacy: PrivacyPlan = PrivacyPlan()
    codec: CodecPlan = CodecPlan()
    aggregation: AggregationPlan = AggregationPlan()
    round: RoundPlan = RoundPlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    steering: SteeringPlan = SteeringPlan()

    @property
    def coordinate_count(self) -> int:
        """k, the number of values in one update on the wire."""
        if self.codec.selection == "dense":
            return self.dimension
        return coordinate_count(self.dimension, self.codec.density)

    @property
    def rescale(self) -> float:
        """r, by which the server multiplies the robust aggregate."""
        if self.codec.selection in ("dense", "top_k"):
            return 1.0
        return rescale(self.dimension, self.coordinate_count)

    @property
    def positions_bytes(self) -> int:
        """Bytes of positions behind the words of one update; 0 if everybody knows them anyway."""
        return positions_size(self.dimension, self.coordinate_count) if self.codec.selection == "top_k" else 0

    @property
    def members_max(self) -> int:
        """The largest group that a draw can make: left-overs spread over the groups."""
        return 2 * self.group_size - 1

    def threshold(self, members: int) -> int:
        """t(n): how many of `members` must answer before their sum is opened.

        Raises:
            PlanError: a group of that size cannot hold against `max_colluders`.
        """
        return 1 if self.group_size == 1 else threshold(members, self.max_colluders, self.threshold_fraction)

    def summed_floor(self, members: int) -> int:
        """Updates without which the sum of a group of `members` is not opened: t(n), or more."""
        wanted = min(SUMMED_MIN, members) if self.min_summed is None else self.min_summed
        return max(self.threshold(members), wanted)

    def noising(self, members: int) -> int:
        """t(n) − c: members of an opened sum who are counted on to add noise. One who is alone adds all of it.

        Raises:
            PlanError: as `threshold`.
        """
        return 1 if self.group_size == 1 else self.threshold(members) - self.max_colluders

    @property
    def bits(self) -> Bits:
        """b, the width of one integer word."""
        if self.privacy.level == "client":
            return 32
        return self.codec.bits or choose_bits(self.coordinate_count, self.members_max)

    @property
    def min_groups(self) -> int:
        """Groups without which there is no draw and no step.

        An honest majority must remain at each coordinate; and a draw below a fixed quorum could only cost its
        clients their updates.
        """
        return max(2 * self.aggregation.trim + 1, self.aggregation.quorum or 1)

    @property
    def min_offers(self) -> int:
        """Offers without which there is no draw."""
        return self.min_groups * self.group_size

    def quorum_of(self, groups: int) -> int:
        """Group sums that the server step needs in a draw of `groups` groups."""
        return max(self.min_groups, self.aggregation.quorum or math.ceil(QUORUM_SHARE * groups))

    def sum_format(self, members: int, clipping_norm: float) -> SumFormat:
        """What the words of a group of `members` mean at the clipping norm of its round.

        Raises:
            PlanError: a sum of that many members could wrap.
        """
        noise = self.client_noise
        return SumFormat(
            count=self.coordinate_count,
            bits=self.bits,
            members=members,
            clipping_norm=clipping_norm,
            metric_bounds=tuple(sorted(self.metric_bounds.items())),
            noise=None if noise is None else noise.share(self.noising(members)),
        )

    @property
    def record_noise(self) -> RecordNoise | None:
        """What DP-SGD puts into an update; None without record-level privacy."""
        share = self.coordinate_count / self.dimension if self.codec.selection == "restricted" else 1.0
        return RecordNoise.of(self.privacy, self.training, share)

    @property
    def client_noise(self) -> ClientNoise | None:
        """What the members of a group put into their sum; None without client-level privacy."""
        return ClientNoise.of(self.privacy, self.coordinate_count)

    def charge_of_run(self) -> Charge | None:
        """What one spent update costs its client; None without privacy."""
        summed = self.client_noise
        if summed is not None:
            # The share is smallest in the largest group; charged so, all maskings cost the same.
            return summed.charge(self.noising(self.members_max))
        noise = self.record_noise
        if noise is None:
            return None
        return RecordCharge(noise_multiplier=noise.multiplier, sampling_rate=noise.sampling_rate, steps=noise.steps)

    def weight(self, num_examples: int) -> float:
        """w in (0, 1], with which a client of so many records counts. With privacy nothing depends on their number."""
        return 1.0 if self.privacy.level != "off" else min(1.0, num_examples / self.weight_records_max)

    @property
    def lightest_records_max(self) -> int:
        """n_max of which one record is the least that a client can weigh."""
        return 1 if self.privacy.level != "off" else self.weight_records_max

    def encode(self) -> bytes:
        """The plan's canonical bytes (ASCII JSON, keys sorted): what is embedded and signed."""
        return _canonical(self.model_dump(mode="json"))

    def digest(self) -> bytes:
        """The plan's identity: SHA-256 of `encode()` without `round.rounds` and `privacy.epsilon` (32 bytes).

        How long a federation runs is no part of what it is: a finished one may go on for more rounds, which cost more.
        """
        timeless = self.model_dump(mode="json", exclude={"round": {"rounds"}, "privacy": {"epsilon"}})
        return hashlib.sha256(_canonical(timeless)).digest()

    @model_validator(mode="after")
    def _sound(self) -> Plan:
        problems = list(refusals(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def check_clients(self, enrolled: int) -> None:
        """Refuse a federation that could never draw.

        Raises:
            PlanError: fewer enrolled clients than one draw or the first round needs, or more than a draw can hold.
        """
        if enrolled < self.min_offers:
            raise PlanError(
                f"aggregation.trim={self.aggregation.trim}, quorum={self.aggregation.quorum} need {self.min_offers} "
                f"clients (max(2·trim+1, quorum)·group_size), {enrolled} are enrolled: enroll more, or lower them"
            )
        if enrolled < self.round.min_clients:
            raise PlanError(
                f"round.min_clients={self.round.min_clients}, but only {enrolled} clients are enrolled: "
                "enroll more, or lower it"
            )
        if (self.round.pool_size or 0) > enrolled:
            raise PlanError(
                f"round.pool_size={self.round.pool_size}, but only {enrolled} clients are enrolled: "
                "enroll more, or lower it"
            )
        if min(enrolled, self.round.cohort_size or enrolled) // self.group_size > GROUPS_MAX:
            raise PlanError(
                f"{enrolled} clients make more than the {GROUPS_MAX} groups of a draw: set round.cohort_size, "
                "or raise group_size"
            )


def make_plan(**fields: object) -> Plan:
    """Build a plan from plain values.

    Raises:
        PlanError: a value is out of bounds or the plan cannot hold; one line that names the fields.
    """
    try:
        return Plan.model_validate(fields)
    except ValidationError as error:
        raise PlanError(describe_errors(error, "plan")) from error


def decode_plan(data: bytes) -> Plan:
    """Read a plan as it stands in a snapshot.

    Raises:
        PlanError: not a plan of this protocol version, or an unsound one.
    """
    try:
        return Plan.model_validate_json(data)
    except ValidationError as error:
        raise PlanError(describe_errors(error, "plan")) from error


def describe_errors(error: ValidationError, prefix: str) -> str:
    """All problems of a pydantic validation in one line: `prefix.field: message`, without the refused input."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        place = ".".join((prefix, *(str(part) for part in item["loc"])))
        lines.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _canonical(fields: dict[str, JsonValue]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
