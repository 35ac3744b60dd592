"""The benchmarks run, at one tiny size, and their records have what a reader needs. Not for their numbers."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
def test_flow_cost_records_compilation_right_hand_sides_and_steps(tmp_path, monkeypatch):
    out = tmp_path / "records" / "flow_cost.json"
    monkeypatch.setattr(sys, "argv", ["flow_cost.py", "--smoke", "--out", str(out)])
    monkeypatch.syspath_prepend(BENCHMARKS)
    runpy.run_path(str(BENCHMARKS / "flow_cost.py"), run_name="__main__")
    record = json.loads(out.read_text())
    assert {"python", "packages", "device", "cpu_count", "threads", "commit", "clean_tree"} <= set(
        record["environment"]
    )
    (result,) = record["results"]
    assert (result["samples"], result["n"], result["K"]) == (5, 50, 64 * 8 + 8 + 8 * 10 + 10)
    assert set(result["right_hand_side"]) == {"standard", "adapted", "interpolated(0.5)"}
    for seconds in result["right_hand_side"].values():
        assert 0 < seconds["seconds_min"] <= seconds["seconds"]
    (run,) = result["straight"]
    assert run["steps"] > 0
    assert run["deviation"] < 1e-2


def test_the_committed_record_was_made_on_a_clean_tree_and_names_no_folder():
    text = (BENCHMARKS / "records" / "flow_cost.json").read_text()
    record = json.loads(text)
    assert record["benchmark"] == "flow_cost"
    assert record["environment"]["clean_tree"] is True
    assert "/home" not in text
