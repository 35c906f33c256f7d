"""House rules that no linter knows. The rules about imports between our own packages stand in `.importlinter`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared", "coordinator", "worker", "deploy")
LINES_MAX = 400
VAGUE_NAMES = {
    "base",
    "common",
    "data",
    "handler",
    "helper",
    "helpers",
    "info",
    "manager",
    "misc",
    "processor",
    "utils",
}

# Each foreign library that shapes a boundary has one home: a folder (ending in a slash) or a file.
HOMES = {
    "pika": ("shared/transport/",),
    "msgpack": ("shared/wire/framing.py",),
    "testcontainers": (),
}

MODULES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_well_named_and_says_what_it_is_for(module: str) -> None:
    source = (ROOT / module).read_text(encoding="utf-8")
    lines = source.count("\n")

    assert lines <= LINES_MAX
    assert not VAGUE_NAMES & set(Path(module).with_suffix("").parts)
    assert not source or ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("library", HOMES)
def test_a_foreign_library_has_one_home(library: str) -> None:
    users = {module for module in MODULES if library in imports((ROOT / module).read_text(encoding="utf-8"))}

    assert {module for module in users if not module.startswith(HOMES[library])} == set()
