"""Many clients in few words, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SettingsError
from shared.identity import numbered_client
from worker.client_ids import parse_client_ids, write_client_ids

ENROLLED = frozenset({*map(numbered_client, range(1, 21)), numbered_client(1000), "ward-b", "7", "3-4"})


@pytest.mark.parametrize(
    ("text", "clients"),
    [
        ("1-3", ["client-001", "client-002", "client-003"]),
        ("2, ward-b 1-2", ["client-002", "ward-b", "client-001"]),
        ("client-005,5", ["client-005"]),
        ("1000", ["client-1000"]),
        ("20-20", ["client-020"]),
        ("7", ["7"]),  # somebody is called so
        ("3-4", ["3-4"]),
        ("007", ["client-007"]),
    ],
)
def test_names_numbers_and_ranges(text: str, clients: list[str]) -> None:
    assert parse_client_ids(text, ENROLLED) == clients


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ward-c", r"no client 'ward-c' is enrolled"),
        ("19-21", r"'19-21' names client-021, which is not enrolled"),
        ("5-2", r"'5-2' is an empty range"),
        ("1-", r"no client '1-' is enrolled; write .* 1-20"),
        ("1,,2,-3", r"'-3'"),
    ],
)
def test_a_word_that_names_nobody_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=rf"^client_ids: .*{said}"):
        parse_client_ids(text, ENROLLED)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([1, 2], "1, 2"), ([3, 1, 2], "1-3"), ([1, 2, 3, 5, 7, 8, 9], "1-3, 5, 7-9")],
)
def test_numbers_in_a_row_become_a_range(numbers: list[int], text: str) -> None:
    assert write_client_ids(map(numbered_client, numbers)) == text


@given(st.sets(st.integers(1, 1200)), st.sets(st.sampled_from(["ward-b", "client-7", "client-0012", "icu"])))
def test_what_is_written_is_read_again(numbers: set[int], names: set[str]) -> None:
    clients = {*map(numbered_client, numbers), *names}
    text = write_client_ids(clients)

    assert set(parse_client_ids(text, clients) if clients else ()) == clients
