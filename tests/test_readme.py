"""The README does what it says: its Python runs in order, and each of its commands exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_runs import flow_data, folder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Command in the README → words put behind it that make it small enough for a test. "slow" in front leaves it to the
# slow tests. A command that is missing here fails a test.
SMALL = "data.samples=8 data.stiff_samples=4 model.widths=12 t1=0.5 saves=3"
COMMANDS = {
    "make demo": "--dry-run",
    "make test": "--dry-run",
    "chordflow run": f"slow {SMALL}",
    "chordflow run data.samples=50 flows=straight,adapted": f"slow {SMALL}",
    "chordflow run data.name=diabetes data.samples=100 'model.widths=[32, 32]' flows=straight": f"slow {SMALL}",
    "chordflow verify": "slow data.samples=4 model.widths=8",
    "chordflow bench": "slow seeds=1 samples=12 width=4 target=0.1 points=3 steps=2",
    "chordflow gram data.samples=100": "data.samples=4 model.widths=8",
    "chordflow report runs/digits-20260101-120000": "",
}


def blocks(text: str, language: str) -> list[str]:
    """Fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The chordflow and make commands of all bash blocks, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line.split(" ")[0] in ("chordflow", "make")]


def small_runs() -> list:
    """The commands of the README as test parameters."""
    runs = []
    for name in dict.fromkeys(commands(README)):
        words = [*shlex.split(name), *COMMANDS.get(name, "").split()]
        marks = [pytest.mark.slow] if "slow" in words else []
        runs.append(pytest.param([word for word in words if word != "slow"], marks=marks, id=name))
    return runs


STAND_IN = """#!/bin/sh
echo "$@" >> calls
case $1 in
  run) mkdir -p runs/digits-1 ;;
  report) echo "$2/report.html" ;;
esac
"""


def test_make_demo_runs_verifies_and_says_where_the_page_is(tmp_path):
    """The recipe itself, with a command that takes notes in the place of chordflow."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "chordflow").write_text(STAND_IN)
    (programs / "chordflow").chmod(0o755)
    for made in ("pip", "installed-run"):
        (programs / made).touch()
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    words = ["make", "--silent", "demo"]
    said = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "calls").read_text().splitlines() == [
        "run",
        "verify runs/digits-1 data.samples=10",
        "report runs/digits-1",
    ]
    assert said.splitlines()[-1] == f"Open this page in a browser: file://{tmp_path}/runs/digits-1/report.html"
    assert "git clone URL chordflow && cd chordflow" in README


def test_blocks_are_found():
    text = "```bash\nmake test  # comment\n\nls\n```\ntext\n```python\nx = 1\n```\n```python\ny = x\n```\n"
    assert blocks(text, "python") == ["x = 1\n", "y = x\n"]
    assert commands(text) == ["make test"]


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert found
    namespace: dict[str, object] = {"__name__": "readme"}
    for i, block in enumerate(found):
        exec(compile(block, f"README.md, Python block {i + 1}", "exec"), namespace)


def test_each_command_has_a_small_run():
    missing = set(commands(README)) - set(COMMANDS)
    assert not missing, "say in COMMANDS of tests/test_readme.py how these become small"


@pytest.mark.parametrize("run", small_runs())
def test_commands_run(run, tmp_path):
    # `make` sets variables for its children that a make inside the test must not see.
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    if run[0] == "make":
        run = [*run, "-C", str(ROOT)]
    elif run[1] == "report":
        folder(tmp_path / run[2], {"straight": flow_data()})
        run = [sys.executable, "-m", "chordflow", *run[1:]]
    elif run[0] == "chordflow":
        run = [sys.executable, "-m", "chordflow", *run[1:]]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
