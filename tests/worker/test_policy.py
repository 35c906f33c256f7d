"""A client's own demands hold, whatever the plan says: each one, met and not met."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import RefusalReason, RemoteProtocolError
from tests.builders import make_federation, tiny_plan
from worker.policy import Policy

FEDERATION = make_federation(6)
DIRECTORY = FEDERATION.directory
CLIENTS = sorted(FEDERATION.clients)
KEYS = {client: FEDERATION.clients[client].public.raw.hex() for client in CLIENTS}


def refusal(policy: Policy, clients: list[str]) -> str:
    with pytest.raises(RemoteProtocolError) as error:
        policy.check_members(clients, DIRECTORY)
    assert error.value.reason is RefusalReason.POLICY
    return error.value.detail


@pytest.mark.parametrize(
    ("demand", "plan", "objection"),
    [
        ({}, {"group_size": 4}, ""),
        ({}, {"group_size": 3}, ""),
        ({}, {"group_size": 1}, "group_size=1 shows single updates: policy.allow_groups_of_one"),
        ({"allow_groups_of_one": True}, {"group_size": 1}, ""),
        # In groups of one nothing else is asked: whoever allows them has given all of it up.
        ({"allow_groups_of_one": True, "min_members": 9, "max_colluders": 5}, {"group_size": 1}, ""),
        ({"min_members": 5}, {"group_size": 4}, "group_size=4 is below policy.min_members=5"),
        ({"min_members": 5}, {"group_size": 5}, ""),
        (
            {"max_colluders": 2},
            {"group_size": 5, "max_colluders": 1},
            "max_colluders=1 is below policy.max_colluders=2",
        ),
        ({"max_colluders": 2}, {"group_size": 5, "max_colluders": 2}, ""),
        ({}, {"group_size": 4, "max_colluders": 0}, "max_colluders=0 is below policy.max_colluders=1"),
        ({"min_summed": 5}, {"group_size": 4}, "group_size=4 is below policy.min_summed=5"),
        ({"min_summed": 4}, {"group_size": 4}, ""),
        ({"directory_number": 2}, {"group_size": 4}, "directory number 1 is below policy.directory_number=2"),
        ({"directory_number": 1}, {"group_size": 4}, ""),
        (
            {"directory_number": 2, "allow_groups_of_one": True},
            {"group_size": 1},
            "directory number 1 is below policy.directory_number=2",
        ),
    ],
)
def test_a_plan_is_served_exactly_if_it_meets_every_demand(
    demand: dict[str, Any], plan: dict[str, Any], objection: str
) -> None:
    assert Policy(**demand).objection_to(tiny_plan(**plan), DIRECTORY) == objection


def test_a_group_of_one_is_only_for_those_who_allow_it() -> None:
    Policy(allow_groups_of_one=True).check_members(CLIENTS[:1], DIRECTORY)

    assert "policy.allow_groups_of_one" in refusal(Policy(), CLIENTS[:1])


@pytest.mark.parametrize("allowed", [False, True])
def test_who_allows_groups_of_one_does_not_allow_small_ones(allowed: bool) -> None:
    policy = Policy(min_members=4, allow_groups_of_one=allowed)
    policy.check_members(CLIENTS[:4], DIRECTORY)

    assert refusal(policy, CLIENTS[:3]) == "3 members, policy.min_members=4"


def test_without_known_clients_everybody_in_the_directory_will_do() -> None:
    Policy().check_members(CLIENTS, DIRECTORY)


def test_with_known_clients_a_group_holds_nobody_else_and_no_other_key() -> None:
    known = {client: KEYS[client] for client in CLIENTS[:4]}
    Policy(known_clients=known).check_members(CLIENTS[:4], DIRECTORY)

    assert refusal(Policy(known_clients=known), [*CLIENTS[:3], "client-4", "client-5"]).startswith(
        "client-4, client-5:"
    )
    swapped = known | {"client-1": KEYS["client-2"]}
    assert refusal(Policy(known_clients=swapped), CLIENTS[:4]).startswith("client-1: ")


@pytest.mark.parametrize(("members", "floor"), [(1, 1), (2, 5), (5, 5), (9, 5)])
def test_no_sum_of_fewer_updates_than_demanded_holds_ours(members: int, floor: int) -> None:
    assert Policy(min_summed=5).summed_floor(members) == floor


def test_the_defaults_allow_no_single_update_to_be_seen() -> None:
    policy = Policy()

    assert (policy.min_summed, policy.max_colluders, policy.min_members) == (3, 1, 3)
    assert (policy.allow_groups_of_one, policy.directory_number, policy.known_clients) == (False, 0, {})


@pytest.mark.parametrize(
    "fields",
    [
        {"min_summed": 0},
        {"min_summed": 513},
        {"max_colluders": -1},
        {"min_members": 0},
        {"directory_number": -1},
        {"known_clients": {"Not.A.Name": "0" * 64}},
        {"known_clients": {"a": "0" * 63}},
        {"known_clients": {"a": "X" * 64}},
        {"more": 1},
    ],
)
def test_demands_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy(**fields)
