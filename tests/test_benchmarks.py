"""The benchmarks run, at one tiny size, and their records have what a reader needs. Not for their numbers."""

import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import jax
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


@pytest.mark.slow
def test_record_cost_says_what_keeping_a_run_takes(tmp_path):
    out = tmp_path / "record_cost.json"
    script = str(BENCHMARKS / "record_cost.py")  # in a process of its own: it replaces methods to time them
    subprocess.run(
        [sys.executable, script, "--smoke", "--flow", "standard", "--out", str(out)], check=True, capture_output=True
    )
    results = json.loads(out.read_text())["results"]
    assert results["flows"] == ["straight", "standard"]
    assert 0 < sum(results["seconds_keeping"].values()) < results["seconds"]
    assert results["lines_of_metrics"] > 2
    assert results["in_strides_over_one_piece"]["ratio"] > 0


def test_keeping_the_default_run_took_less_than_a_twentieth_of_its_time():
    record = json.loads((BENCHMARKS / "records" / "record_cost.json").read_text())
    assert record["environment"]["clean_tree"] is True
    assert record["results"]["words"] == []
    assert record["results"]["share"] < 0.05


def test_the_committed_record_was_made_on_a_clean_tree_and_names_no_folder():
    text = (BENCHMARKS / "records" / "flow_cost.json").read_text()
    record = json.loads(text)
    assert record["benchmark"] == "flow_cost"
    assert record["environment"]["clean_tree"] is True
    assert "/home" not in text


@pytest.mark.slow
def test_fit_records_its_peers_from_the_same_start(tmp_path, monkeypatch):
    out = tmp_path / "fit.json"
    monkeypatch.delenv("CHORDFLOW_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["fit.py", "seconds", "test_error", "--smoke", "--out", str(out)])
    monkeypatch.syspath_prepend(BENCHMARKS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("default")  # the peers' own
        runpy.run_path(str(BENCHMARKS / "fit.py"), run_name="__main__")
    record = json.loads(out.read_text())
    (data,) = record["seconds"]["results"]
    assert (data["data"], data["parameters"]) == ("diabetes", 10 * 8 + 8 + 8 * 8 + 8 + 8 + 1)
    assert len(data["runs"]) == 10
    for run in data["runs"]:
        assert run["reached"] == (run["cost"] <= data["target"])
    starts = {method: curve[0][1] for method, curve in data["curves_of_seed_0"].items() if "LM" in method}
    assert len(set(starts.values())) == 1, "the same parameters at the start"
    assert {row["data"] for row in record["test_error"]["results"]} >= {"diabetes", "digits classification"}
    figure = tmp_path / "fit.png"
    monkeypatch.setattr(sys, "argv", ["fit_plot.py", str(out), str(figure)])
    runpy.run_path(str(BENCHMARKS / "fit_plot.py"), run_name="__main__")
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_physics_counts_steps_and_looks_at_peers(tmp_path, monkeypatch):
    words = ["--only", "poisson_2d", "--seeds", "1", "--peer-seconds", "0.2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["physics.py", *words])
    monkeypatch.syspath_prepend(BENCHMARKS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("default")  # the peers' own
        runpy.run_path(str(BENCHMARKS / "physics.py"), run_name="__main__")
    results = json.loads((tmp_path / "physics_poisson_2d.json").read_text())["results"]
    assert len(results) == 6
    (steps,) = results["cf.fit"]["steps"]
    assert steps <= 100
    assert results["cf.fit"]["below 1e-06"]["seeds"] == 1
    for peer in results.values():
        errors = [error for _, _, error in peer["curves"][0]]
        assert errors[-1] == peer["end"]["worst"]


def test_the_figure_of_the_equations_is_drawn_from_the_committed_records(tmp_path, monkeypatch):
    figure = tmp_path / "physics.png"
    monkeypatch.setattr(sys, "argv", ["physics_plot.py", str(BENCHMARKS / "records"), str(figure)])
    runpy.run_path(str(BENCHMARKS / "physics_plot.py"), run_name="__main__")
    assert figure.stat().st_size > 50_000


def test_fit_says_how_to_get_data_that_comes_with_no_package(tmp_path):
    read = runpy.run_path(str(BENCHMARKS / "fit_data.py"))
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match=r"CHORDFLOW_DATA.*fetch_california_housing"):
            read["california"](folder)
        with pytest.raises(ValueError, match=r"CHORDFLOW_DATA.*train-images-idx3-ubyte"):
            read["mnist"](folder, 10)
