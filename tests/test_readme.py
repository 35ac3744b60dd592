"""The README does what it says: its Python runs in order, and each of its commands exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: Command in the README → what is run for it: the same thing, small enough for a test. A test fails for a command
#: that is missing here and for a line that the README no longer has.
#: "slow" in front leaves it to the slow tests.
COMMANDS: dict[str, list[str]] = {
    "make demo": ["make", "--dry-run", "demo"],
    "make test": ["make", "--dry-run", "test"],
}


def blocks(text: str, language: str) -> list[str]:
    """Fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The chordflow and make commands of all bash blocks, without comments."""
    lines = [line.split(" #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line.split(" ")[0] in ("chordflow", "make")]


def small_runs() -> list:
    """The rows of the table as test parameters."""
    return [
        pytest.param(run[1:], marks=pytest.mark.slow, id=name) if run[0] == "slow" else pytest.param(run, id=name)
        for name, run in COMMANDS.items()
    ]


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
    assert set(commands(README)) == set(COMMANDS), "COMMANDS in tests/test_readme.py and the README differ"


@pytest.mark.parametrize("run", small_runs())
def test_commands_run(run, tmp_path):
    # `make` sets variables for its children that a make inside the test must not see.
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    if run[0] == "make":
        run = [*run, "-C", str(ROOT)]
    elif run[0] == "chordflow":
        run = [sys.executable, "-m", "chordflow", *run[1:]]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
