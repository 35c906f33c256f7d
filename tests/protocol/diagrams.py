"""What do the transition tables look like? `python -m tests.protocol.diagrams` draws them into the protocol's page.

The page holds, for each table, a Mermaid diagram between two markers; a test fails if it is not what the table gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from coordinator.summing import steps as group_steps
from worker import steps as member_steps

PAGE = Path(__file__).parents[2] / "shared" / "docs" / "protocol.md"

Table = Mapping[tuple[StrEnum, StrEnum], tuple[StrEnum, ...]]


def diagram(table: Table, start: StrEnum) -> str:
    """A table as a Mermaid state diagram; what nothing leads out of is an end."""
    sources = {state for state, _ in table}
    targets = dict.fromkeys(target for targets in table.values() for target in targets)
    states = dict.fromkeys((*sources_in_order(table), *targets))
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state}" as {name(state)}' for state in states if name(state) != state]
    lines.append(f"    [*] --> {name(start)}")
    for (state, step), reached in table.items():
        lines += [f"    {name(state)} --> {name(target)}: {step}" for target in reached]
    lines += [f"    {name(target)} --> [*]" for target in targets if target not in sources]
    return "\n".join((*lines, "```"))


def sources_in_order(table: Table) -> list[StrEnum]:
    """The states that something leads out of, as the table names them."""
    return list(dict.fromkeys(state for state, _ in table))


def name(state: StrEnum) -> str:
    """A state's name without spaces."""
    return state.replace(" ", "_")


DIAGRAMS = {
    "member": diagram(member_steps.TRANSITIONS, member_steps.MemberState.OUT),
    "group": diagram(group_steps.TRANSITIONS, group_steps.GroupState.SHARES),
}


def drawn(page: str) -> str:
    """The page with the diagrams that the tables give.

    Raises:
        ValueError: the page has no place for one of them.
    """
    for table, text in DIAGRAMS.items():
        begin, end = f"<!-- states of a {table}: begin -->\n", f"\n<!-- states of a {table}: end -->"
        before, found_begin, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"no place for the states of a {table}")
        page = before + begin + text + end + after
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
