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


@pytest.mark.slow
def test_gram_records_speed_memory_and_its_plan(tmp_path, monkeypatch):
    out = tmp_path / "gram.json"
    monkeypatch.setattr(sys, "argv", ["gram.py", "--smoke", "--out", str(out)])
    monkeypatch.syspath_prepend(BENCHMARKS)
    runpy.run_path(str(BENCHMARKS / "gram.py"), run_name="__main__")
    record = json.loads(out.read_text())
    assert {"memory", "speed", "zoo", "plan", "crossover", "curves"} <= set(record)
    for row in (*record["speed"], *record["zoo"]):
        assert row["largest_relative_difference"] < 1e-12
    assert {row["kind"] for row in record["plan"]} == {"full", "trace"}
    figure = tmp_path / "gram.png"
    monkeypatch.setattr(sys, "argv", ["gram_plot.py", str(out), str(figure)])
    runpy.run_path(str(BENCHMARKS / "gram_plot.py"), run_name="__main__")
    assert figure.stat().st_size > 10_000


def test_the_committed_record_was_made_on_a_clean_tree_and_names_no_folder():
    text = (BENCHMARKS / "records" / "flow_cost.json").read_text()
    record = json.loads(text)
    assert record["benchmark"] == "flow_cost"
    assert record["environment"]["clean_tree"] is True
    assert "/home" not in text
