"""How do people write down many clients? ``1-20, 31, ward-b``: numbers stand for those that were enrolled by number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from shared.errors import SettingsError
from shared.identity import numbered_client

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_NUMBERED = re.compile(r"client-(\d{3,9})")


def parse_client_ids(text: str, enrolled: Collection[str]) -> list[str]:
    """The clients that `text` names, each once, in its order.

    Args:
        text: names, numbers (7 is client-007) and ranges of numbers, separated by commas or spaces.
        enrolled: the names that there are; one of them is never taken for a number or a range.

    Raises:
        SettingsError: a word that names nobody, or a range that is empty.
    """
    named = (client for word in re.split(r"[,\s]+", text.strip()) for client in _clients_of(word, enrolled))
    return list(dict.fromkeys(named))


def write_client_ids(clients: Iterable[str]) -> str:
    """Write clients down in the shortest way that `parse_client_ids` reads: sorted, numbers first."""
    numbers, names = [], []
    for client in sorted(clients):
        match = _NUMBERED.fullmatch(client)
        if match and numbered_client(int(match[1])) == client:
            numbers.append(int(match[1]))
        else:
            names.append(client)
    return ", ".join([*_ranges(sorted(numbers)), *names])


def _clients_of(word: str, enrolled: Collection[str]) -> list[str]:
    if word in enrolled:
        return [word]
    match = _RANGE.fullmatch(word)
    if match is None:
        raise SettingsError(f"client_ids: no client {word!r} is enrolled; write names, numbers or ranges such as 1-20")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise SettingsError(f"client_ids: {word!r} is an empty range")
    clients = []
    for number in range(first, last + 1):
        if (client := numbered_client(number)) not in enrolled:
            raise SettingsError(f"client_ids: {word!r} names {client}, which is not enrolled")
        clients.append(client)
    return clients


def _ranges(numbers: list[int]) -> Iterator[str]:
    """``1-3`` for 1, 2, 3; two in a row stand apart."""
    while numbers:
        length = next((n for n in range(1, len(numbers)) if numbers[n] != numbers[0] + n), len(numbers))
        if length > 2:
            yield f"{numbers[0]}-{numbers[length - 1]}"
        else:
            yield from map(str, numbers[:length])
        numbers = numbers[length:]
