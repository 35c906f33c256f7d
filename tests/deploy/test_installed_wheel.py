"""What the page about workloads shows works for somebody who has the wheel and an empty folder, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "shared/docs/workloads.md").read_text(encoding="utf-8")
PACKAGES = ("coordinator", "deploy", "shared", "worker")
FEDERATES = """
import json, adapters
from shared.codec.flatten import layout_of
model = adapters.Adapters().model()
names = layout_of(model).names
print(json.dumps({"names": names, "all": sum(p.numel() for p in model.parameters())}))
"""
WHERE = "import importlib.util as u; print(*(u.find_spec(name).origin for name in {!r}), sep='\\n')"


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; nothing of this process's environment leads to the source."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COMITIA_", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy: leftovers of other builds must not get in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    run(sys.executable, "-m", "pip", "wheel", *options, out, source, cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, and the dependencies from where the tests have them.

    A `.pth` file only appends folders: what is in them is found after the wheel, and their own `.pth` files, one of
    which may lead to the source, are not read.
    """
    environment = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    installed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(installed) + "\n", encoding="utf-8")
    commands = Path(paths["scripts"])
    options = ("--quiet", "--no-deps", "--no-index", "--force-reinstall")
    run(sys.executable, "-m", "pip", "--python", commands / "python", "install", *options, wheel, cwd=environment)
    return commands


def trained(commands: Path, folder: Path, module: str, attribute: str, *options: str) -> dict[str, Any]:
    """The report of a simulation with the page's example that defines `attribute`, run in an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (example,) = [block for block in blocks if f"class {attribute}:" in block]
    (folder / f"{module}.py").write_text(example, encoding="utf-8")
    origins = run(commands / "python", "-c", WHERE.format(PACKAGES), cwd=folder).split()
    assert [Path(origin).is_relative_to(commands.parent) for origin in origins] == [True] * len(PACKAGES)

    run(
        *(commands / "comitia", "simulate", "--workload", f"{module}:{attribute}", "--clients", "12"),
        *("--rounds", "15", "--report", "report.json", *options),
        cwd=folder,
    )
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def test_the_wheel_holds_all_that_the_packages_do(wheel: Path) -> None:
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}

    with zipfile.ZipFile(wheel) as archive:
        assert expected - set(archive.namelist()) == set()


def test_the_example_learns_from_an_empty_folder(commands: Path, tmp_path: Path) -> None:
    report = trained(commands, tmp_path, "ward", "Ward")

    assert report["rounds"][-1]["accuracy"] >= 0.8


@pytest.mark.slow
def test_adapters_alone_federate_and_learn(commands: Path, tmp_path: Path) -> None:
    report = trained(commands, tmp_path, "adapters", "Adapters", "--density", "1")
    model = json.loads(run(commands / "python", "-c", FEDERATES, cwd=tmp_path))

    assert {name.rpartition(".")[2] for name in model["names"]} == {"up", "down"}
    assert report["plan"]["dimension"] == 3400 < model["all"] / 5
    assert f"{report['plan']['dimension']:,} of {model['all']:,} parameters" in PAGE
    # The values of an update are 16-bit words; signatures and names come on top.
    assert report["rounds"][-1]["bytes_up"] < 12 * 2 * model["all"] / 4
    assert report["rounds"][-1]["accuracy"] >= 0.8
