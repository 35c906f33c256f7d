"""A plan is refused where it cannot hold, in one line that names field and remedy; a sound one has one encoding."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.codec.validation import validation_slots
from shared.crypto.threshold import threshold
from shared.errors import PlanError
from shared.plan import SUMMED_MIN, Plan, decode_plan, make_plan
from shared.plan_sections import AggregationPlan, RoundPlan
from shared.wire.messages import GROUPS_MAX, MEMBERS_MAX, PLAN_BYTES_MAX
from tests.builders import FEDERATION_ID, tiny_plan

MINIMAL = {
    "federation": "test",
    "federation_id": FEDERATION_ID,
    "workload": "digits",
    "layout_digest": "0" * 64,
    "dimension": 10_000,
    "weight_records_max": 100,
}
DENSE_BUFFERS: dict[str, Any] = {"float_buffers": True, "codec": {"selection": "dense", "density": 1.0}}


def test_the_defaults_are_a_sound_plan() -> None:
    plan = make_plan(**MINIMAL)

    assert plan.aggregation == AggregationPlan(rule="nnm-trimmed-mean", trim=1, gates=True, quorum=None)
    assert (plan.group_size, plan.max_colluders, plan.threshold_fraction, plan.min_summed) == (4, 1, 0.0, None)
    assert (plan.coordinate_count, plan.rescale, plan.bits, plan.members_max) == (1000, 10.0, 16, 7)
    assert (plan.min_groups, plan.min_offers) == (3, 12)
    assert (plan.round.offer_quorum, plan.round.straggler_grace_s, plan.round.snapshot_every) == (1.0, 2.0, 20)
    assert (plan.round.round_deadline_s, plan.round.group_step_s, plan.round.sums_deadline_s) == (30.0, 10.0, 60.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"group_size": 2},
            "group_size=2: max_colluders: a group of 2 cannot stand 1 colluders; allow fewer of them or make groups "
            "larger",
        ),
        (
            {"max_colluders": 3},
            "group_size=4: max_colluders: a group of 4 cannot stand 3 colluders; allow fewer of them or make groups "
            "larger",
        ),
        ({"min_summed": 5}, "min_summed=5 is more than the 4 members of a group: lower it"),
        (
            {"aggregation": {"rule": "median", "trim": 2}},
            "aggregation.trim=2 has no effect with the rule 'median'; set trim to 0",
        ),
        (
            {"aggregation": {"rule": "mean", "trim": 1}},
            "aggregation.trim=1 has no effect with the rule 'mean'; set trim to 0",
        ),
        (
            {"aggregation": {"trim": 2, "quorum": 4}},
            "2·trim >= quorum (aggregation.trim=2, quorum=4): trimming would leave nothing; lower trim or raise quorum",
        ),
        (
            {"codec": {"selection": "dense", "density": 0.5}},
            "codec.density=0.5 has no effect with selection 'dense'; set it to 1",
        ),
        (
            {"codec": {"selection": "top_k"}},
            "group_size=4: with codec.selection 'top_k' every client sends other coordinates, so masks would not "
            "cancel; use 1, or another selection",
        ),
        (
            {"group_size": 1, "codec": {"selection": "top_k"}, "aggregation": {"rule": "median", "trim": 0}},
            "aggregation.rule='median' is zero wherever fewer than half of the clients sent a value, so with "
            "codec.selection 'top_k' little or nothing is learned; use another rule",
        ),
        (
            {"group_size": 1, "codec": {"selection": "top_k", "density": 1.0}},
            "codec.density=1.0 lets 'top_k' send every value; use the selection 'dense'",
        ),
        (
            {"dimension": 10**9, "codec": {"bits": 16}},
            "codec.bits=16: rounding 100000000 values in groups of up to 7 would add noise above 5 % of the clipping "
            "norm; use 32",
        ),
        (
            {"float_buffers": True},
            "float_buffers: sparse updates are scaled up, which carries running statistics beyond what any client has; "
            "use codec.selection='dense' with density 1, or leave float_buffers off",
        ),
        (
            DENSE_BUFFERS | {"aggregation": {"server_optimizer": "fedavgm"}},
            "float_buffers: the server optimizer SGD with {'lr': 0.3, 'momentum': 0.9} does not average running "
            "statistics; use 'fedavg' (SGD, lr 1 or less, nothing else), or leave float_buffers off",
        ),
        (
            DENSE_BUFFERS | {"aggregation": {"server_optimizer": {"name": "SGD", "options": {"lr": 1.5}}}},
            "float_buffers: the server optimizer SGD with {'lr': 1.5} does not average running "
            "statistics; use 'fedavg' (SGD, lr 1 or less, nothing else), or leave float_buffers off",
        ),
        ({"round": {"cohort_size": 2}}, "round.cohort_size=2 is below the 12 offers that a draw needs"),
        (
            {"round": {"mode": "async", "pool_size": 11}},
            "round.pool_size=11 is below the 12 offers that a draw needs",
        ),
        (
            {"round": {"pool_size": 12, "max_staleness": 0, "cooldown": 1}},
            "round.pool_size, round.max_staleness, round.cooldown: no effect in the mode 'sync'; "
            "leave out, or set round.mode",
        ),
        (
            {"round": {"mode": "async", "cohort_size": 12, "offer_quorum": 0.5}},
            "round.cohort_size, round.offer_quorum: no effect in the mode 'async'; leave out, or set round.mode",
        ),
        (
            {"round": {"mode": "async", "max_staleness": 256}},
            "round.max_staleness=256 is more than the 255 versions that readers know",
        ),
        (
            {"round": {"mode": "async"}, "codec": {"selection": "restricted"}},
            "codec.selection='restricted' needs coordinates that are known before training, and in the mode 'async' "
            "the draw chooses them; use 'dense' or 'random', or round.mode='sync'",
        ),
        ({"metric_bounds": {"not a name": 1.0}}, "metric_bounds: names must be identifiers"),
        (
            {"steering": {"watch": "clients"}},
            "steering.watch='clients' needs clients that measure: set evaluation.client_share",
        ),
        (
            {
                "steering": {"watch": "clients", "ema": 0.5},
                "evaluation": {"client_share": 0.2},
                "metric_bounds": validation_slots({"loss": 1.0}),
            },
            "steering.ema: clients measure the versions and not their average; set it to 0, or watch to 'held_out'",
        ),
        (
            {"evaluation": {"client_share": 0.2}, "metric_bounds": {"loss": 1.0}},
            "evaluation.client_share belongs to validation slots in metric_bounds: both or neither",
        ),
        (
            {"metric_bounds": validation_slots({"loss": 1.0})},
            "evaluation.client_share belongs to validation slots in metric_bounds: both or neither",
        ),
        (
            {"workload_options": {"text": "x" * PLAN_BYTES_MAX}},
            f"the plan takes more than {PLAN_BYTES_MAX} bytes; shorten workload_options",
        ),
    ],
)
def test_an_unsound_plan_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as refusal:
        make_plan(**{**MINIMAL, **fields})

    assert str(refusal.value) == f"plan: {message}"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"dimension": 0}, "plan.dimension"),
        ({"dimension": 1 << 32}, "plan.dimension"),
        ({"federation": "Not.A.Name"}, "plan.federation"),
        ({"layout_digest": "xyz"}, "plan.layout_digest"),
        ({"group_size": 0}, "plan.group_size"),
        ({"group_size": MEMBERS_MAX // 2 + 1}, "plan.group_size"),
        ({"max_colluders": -1}, "plan.max_colluders"),
        ({"threshold_fraction": 1.1}, "plan.threshold_fraction"),
        ({"threshold_fraction": -0.1}, "plan.threshold_fraction"),
        ({"min_summed": 0}, "plan.min_summed"),
        ({"weight_records_max": 0}, "plan.weight_records_max"),
        ({"metric_bounds": {"loss": 0}}, "plan.metric_bounds.loss"),
        ({"metric_bounds": {"loss": float("inf")}}, "plan.metric_bounds.loss"),
        ({"protocol_version": 2}, "plan.protocol_version"),
        ({"codec": {"density": 0}}, "plan.codec.density"),
        ({"codec": {"density": 1.1}}, "plan.codec.density"),
        ({"codec": {"bits": 8}}, "plan.codec.bits"),
        ({"codec": {"clipping_norm": 0}}, "plan.codec.clipping_norm"),
        ({"codec": {"clipping_norm": float("nan")}}, "plan.codec.clipping_norm"),
        ({"aggregation": {"rule": "krum"}}, "plan.aggregation.rule"),
        ({"aggregation": {"trim": -1}}, "plan.aggregation.trim"),
        ({"aggregation": {"server_optimizer": {"options": {"lr": float("nan")}}}}, "plan.aggregation.server_optimizer"),
        ({"round": {"offer_quorum": 0}}, "plan.round.offer_quorum"),
        ({"round": {"round_deadline_s": 0}}, "plan.round.round_deadline_s"),
        ({"round": {"rounds": 0}}, "plan.round.rounds"),
        ({"training": {"batch_size": 0}}, "plan.training.batch_size"),
        ({"trim": 1}, "plan.trim"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(PlanError) as refusal:
        make_plan(**{**MINIMAL, **fields})

    assert str(refusal.value).startswith(place)
    assert "\n" not in str(refusal.value)


def test_a_refusal_never_shows_the_value() -> None:
    with pytest.raises(PlanError) as refusal:
        make_plan(**{**MINIMAL, "federation": "S3CRET", "unknown": "S3CRET"})

    assert "S3CRET" not in str(refusal.value)
    assert "plan.federation" in str(refusal.value)
    assert "plan.unknown" in str(refusal.value)


# ── encoding ──


def test_a_plan_survives_its_encoding() -> None:
    plan = tiny_plan(
        workload_options={"path": "a/b", "scale": 1e-05, "flags": [True, None, 1.0, 1]}, metric_bounds={"loss": 3}
    )

    again = decode_plan(plan.encode())

    assert again == plan
    assert again.encode() == plan.encode()
    assert again.digest() == plan.digest()


def test_equal_plans_have_equal_bytes_in_whatever_order_they_were_written() -> None:
    one = tiny_plan(workload_options={"a": 1, "b": {"c": 1, "d": 2}}, metric_bounds={"x": 1, "y": 2})
    two = tiny_plan(metric_bounds={"y": 2.0, "x": 1.0}, workload_options={"b": {"d": 2, "c": 1}, "a": 1})

    assert one == two
    assert one.encode() == two.encode()
    assert one.encode() == json.dumps(json.loads(one.encode()), sort_keys=True, separators=(",", ":")).encode()


def test_every_field_is_part_of_the_digest() -> None:
    plan = tiny_plan(
        codec={"selection": "dense", "density": 1.0},
        aggregation={"rule": "trimmed-mean", "trim": 0},
        evaluation={"client_share": 0.2},
        metric_bounds=validation_slots({"loss": 2.0}),
    )
    fields = plan.model_dump(mode="json")
    changes: dict[str, Any] = {
        "federation": "other",
        "federation_id": "00000000-0000-0000-0000-000000000006",
        "workload": "other",
        "workload_options": {"a": 1},
        "layout_digest": "1" * 64,
        "dimension": 9,
        "float_buffers": True,
        "initial_weights_sha256": "2" * 64,
        "group_size": 4,
        "max_colluders": 0,
        "threshold_fraction": 0.75,
        "min_summed": 2,
        "weight_records_max": 11,
        "metric_bounds": validation_slots({"loss": 1.0}),
        "training": {**fields["training"], "batch_size": 17},
        "codec": {**fields["codec"], "bits": 32},
        "aggregation": {**fields["aggregation"], "trim": 1},
        "round": {**fields["round"], "snapshot_every": 31},
        "evaluation": {"client_share": 0.1},
        "steering": {**fields["steering"], "schedule": "cosine"},
    }

    # Privacy allows no validation slots: it has a test of its own.
    assert set(changes) == set(fields) - {"protocol_version", "privacy"}
    digests = {make_plan(**{**fields, name: value}).digest() for name, value in changes.items()}
    assert len(digests | {plan.digest()}) == len(changes) + 1


def test_the_noise_is_part_of_the_digest_and_the_epsilon_that_follows_from_it_is_not() -> None:
    private = {"level": "record", "epsilon": 8.0, "delta": 1e-4, "noise_multiplier": 4.5, "nominal_records": 70.0}
    plans = [tiny_plan(privacy={**private, **change}) for change in ({}, {"noise_multiplier": 5.0}, {"epsilon": 4.0})]

    assert plans[1].digest() != plans[0].digest() != tiny_plan().digest()
    assert plans[2].digest() == plans[0].digest()


def test_the_number_of_rounds_is_signed_but_no_part_of_what_a_federation_is() -> None:
    longer = tiny_plan(round={"rounds": 31})

    assert longer.digest() == tiny_plan().digest()
    assert decode_plan(longer.encode()).round.rounds == 31


def test_the_digest_of_a_plan_never_changes() -> None:
    # Made with this code at protocol version 1: a federation keeps its plan over releases of Comitia.
    assert tiny_plan().digest().hex() == "233b44f81cc212c9536436636cb63059786f40835ccc3aade63f40c66059715e"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"protocol_version": 2}', b"{" * 5000])
def test_what_is_no_plan_of_this_version_is_refused(data: bytes) -> None:
    with pytest.raises(PlanError, match="plan"):
        decode_plan(data)


def test_an_unsound_plan_is_refused_also_when_it_is_read() -> None:
    unsound = tiny_plan().encode().replace(b'"group_size":1', b'"group_size":2')

    with pytest.raises(PlanError, match="a group of 2 cannot stand 1 colluders"):
        decode_plan(unsound)


@pytest.mark.parametrize(
    ("steering", "words"),
    [
        ({"schedule": "step"}, "steering.step_every belongs to the schedule 'step'"),
        ({"schedule": "cosine", "step_every": 5}, "steering.step_every belongs to the schedule 'step'"),
        ({"rate_drop": 0.1}, "steering.rate_drop=0.1 has no effect"),
        ({"rate_drop": 1.0, "plateau_patience": 3}, "plan.steering.rate_drop"),
        ({"plateau_patience": 0}, "plan.steering.plateau_patience"),
    ],
)
def test_steering_without_effect_is_refused(steering: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        tiny_plan(steering=steering)


@pytest.mark.parametrize(
    ("name", "optimizer", "options"),
    [("fedavg", "SGD", {"lr"}), ("fedavgm", "SGD", {"lr", "momentum"}), ("fedadam", "Adam", {"lr", "betas", "eps"})],
)
def test_a_server_optimizer_may_be_given_by_its_name(name: str, optimizer: str, options: set[str]) -> None:
    plan = tiny_plan(aggregation={"rule": "mean", "trim": 0, "server_optimizer": name})

    choice = plan.aggregation.server_optimizer
    assert (choice.name, set(choice.options)) == (optimizer, options)
    assert decode_plan(plan.encode()) == plan
    written_out = {"rule": "mean", "trim": 0, "server_optimizer": choice.model_dump()}
    assert tiny_plan(aggregation=written_out).digest() == plan.digest()
    # Environment variables can only say it so: a text on its own would have to be JSON.
    by_environment = {"rule": "mean", "trim": 0, "server_optimizer": {"name": name}}
    assert tiny_plan(aggregation=by_environment).digest() == plan.digest()


def test_a_name_that_is_no_preset_is_refused_with_those_that_are() -> None:
    with pytest.raises(PlanError, match="'fedprox' is none of fedavg, fedavgm, fedadam"):
        tiny_plan(aggregation={"rule": "mean", "trim": 0, "server_optimizer": "fedprox"})


# ── groups ──


def test_a_group_of_one_needs_nobody_else_whatever_the_plan_says_of_groups() -> None:
    plan = tiny_plan(group_size=1, max_colluders=5, threshold_fraction=1.0)

    assert (plan.threshold(1), plan.members_max, plan.min_offers) == (1, 1, 1)


@pytest.mark.parametrize(
    ("fields", "floors"),
    [
        ({"group_size": 2, "max_colluders": 0}, {2: 2, 3: 3}),
        ({"group_size": 3}, {3: 3, 4: 3, 5: 4}),
        ({"group_size": 4}, {4: 3, 5: 4, 6: 4, 7: 5}),
        ({"group_size": 4, "min_summed": 4}, {4: 4, 5: 4, 6: 4, 7: 5}),
        ({"group_size": 4, "min_summed": 1}, {4: 3, 7: 5}),
        ({"group_size": 4, "threshold_fraction": 1.0}, {4: 4, 5: 5, 7: 7}),
        ({"group_size": 8, "max_colluders": 0, "min_summed": 1}, {8: 5, 15: 8}),
    ],
)
def test_no_sum_of_fewer_updates_is_opened(fields: dict[str, Any], floors: dict[int, int]) -> None:
    plan = tiny_plan(**fields)

    assert {members: plan.summed_floor(members) for members in floors} == floors
    assert all(plan.summed_floor(members) >= plan.threshold(members) for members in floors)


def test_every_group_that_a_draw_can_make_can_be_summed() -> None:
    """What `make_plan` lets through never raises at any size of group; and what it refuses could."""
    sound = 0
    for size in range(2, 9):
        for colluders in range(6):
            for fraction in (0.0, 0.55, 1.0):
                fields = {"group_size": size, "max_colluders": colluders, "threshold_fraction": fraction}
                try:
                    plan = tiny_plan(**fields)
                except PlanError:
                    with pytest.raises(PlanError):
                        threshold(size, colluders, fraction)
                    continue
                sound += 1
                for members in range(size, plan.members_max + 1):
                    floor = plan.summed_floor(members)
                    assert min(SUMMED_MIN, members) <= floor <= members
                    assert plan.threshold(members) == threshold(members, colluders, fraction)
                    assert plan.sum_format(members, 1.0).members == members
    assert sound > 20


@pytest.mark.parametrize("size", [1, 4, 16, MEMBERS_MAX // 2])
def test_the_offers_of_a_draw_fill_its_groups(size: int) -> None:
    plan = tiny_plan(group_size=size, aggregation={"rule": "trimmed-mean", "trim": 1})

    assert (plan.min_groups, plan.min_offers, plan.members_max) == (3, 3 * size, 2 * size - 1)
    plan.check_clients(3 * size)
    with pytest.raises(PlanError, match=f"need {3 * size} clients"):
        plan.check_clients(3 * size - 1)


# ── quorums and clients ──


@pytest.mark.parametrize(
    ("trim", "quorum", "groups", "expected"),
    [
        (1, None, 3, 3),
        (1, None, 5, 3),
        (1, None, 6, 4),
        (1, None, 20, 12),
        (2, None, 6, 5),
        (0, None, 1, 1),
        (0, None, 10, 6),
        (1, 4, 4, 4),
        (1, 4, 20, 4),
    ],
)
def test_the_quorum_of_a_draw(trim: int, quorum: int | None, groups: int, expected: int) -> None:
    plan = tiny_plan(aggregation={"trim": trim, "quorum": quorum})

    assert plan.quorum_of(groups) == expected


def test_there_is_no_draw_that_could_not_reach_its_quorum() -> None:
    """It would end void, and cost its clients their updates."""
    for trim, quorum in ((0, None), (1, None), (1, 3), (1, 7), (3, None), (0, 5)):
        plan = tiny_plan(aggregation={"trim": trim, "quorum": quorum})
        assert all(plan.quorum_of(groups) <= groups for groups in range(plan.min_groups, 40))


@pytest.mark.parametrize(
    ("plan", "enrolled", "names"),
    [
        (tiny_plan(aggregation={"trim": 2}), 4, ["aggregation.trim=2", "need 5 clients", "4 are enrolled"]),
        (tiny_plan(aggregation={"trim": 1, "quorum": 6}), 5, ["quorum=6", "need 6 clients", "5 are enrolled"]),
        (tiny_plan(round={"min_clients": 9}), 8, ["round.min_clients=9", "only 8", "enroll more"]),
        (tiny_plan(), GROUPS_MAX + 1, ["cohort_size"]),
    ],
)
def test_a_federation_that_could_never_draw_is_refused(plan: Plan, enrolled: int, names: list[str]) -> None:
    with pytest.raises(PlanError) as refusal:
        plan.check_clients(enrolled)

    assert all(name in str(refusal.value) for name in names)


def test_a_federation_that_can_draw_is_not_refused() -> None:
    tiny_plan(aggregation={"trim": 2}, round={"min_clients": 5}).check_clients(5)
    tiny_plan(round={"cohort_size": 100}).check_clients(GROUPS_MAX + 1)
    tiny_plan().check_clients(1)


def test_what_sums_mean_follows_from_the_plan() -> None:
    plan = tiny_plan(metric_bounds={"loss": 3.0, "accuracy": 1.0})

    form = plan.sum_format(1, 0.5)

    assert (form.count, form.bits, form.members, form.clipping_norm) == (plan.coordinate_count, 16, 1, 0.5)
    assert form.metric_bounds == (("accuracy", 1.0), ("loss", 3.0))


def test_dense_sends_every_coordinate_and_rescales_nothing() -> None:
    plan = tiny_plan(codec={"selection": "dense", "density": 1})

    assert (plan.coordinate_count, plan.rescale) == (8, 1.0)


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        tiny_plan().round.rounds = 5  # type: ignore[misc]
    assert RoundPlan().rounds == 30
