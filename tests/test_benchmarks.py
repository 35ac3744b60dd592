"""The benchmarks run, at one tiny size, and their records have what a reader needs. Not for their numbers."""

import importlib
import json
import re
import runpy
import struct
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

import chordflow as cf

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


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


RECORDS = sorted((BENCHMARKS / "records").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_committed_record_was_made_on_a_clean_tree_and_names_no_folder(path):
    text = path.read_text()
    record = json.loads(text)
    environments = [value["environment"] for value in (record, *record.values()) if "environment" in value]
    assert environments
    assert [made["clean_tree"] for made in environments] == [True] * len(environments)
    assert not re.search(r'"/\w+/', text)


@contextmanager
def peers_own_rules():
    """Dtypes, ranks and warnings are the peers' own affair."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@pytest.fixture
def run_script(monkeypatch):
    """Run a benchmark in this process, as from the command line."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with peers_own_rules():
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")

    return run


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture(scope="module")
def made_up_data(tmp_path_factory):
    """A folder like that of --data: same formats, other numbers."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    table = rng.normal(size=(60, 9))
    np.savetxt(folder / "california_housing.csv", table, delimiter=",", header="a,b,c,d,e,f,g,h,y", comments="")
    (folder / "mnist").mkdir()
    for part, num in (("train", 120), ("t10k", 40)):
        for kind, array in (("images-idx3", rng.integers(0, 256, (num, 28, 28))), ("labels-idx1", np.arange(num) % 10)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / "mnist" / f"{part}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


@pytest.mark.slow
def test_fit_records_its_peers_from_the_same_start(tmp_path, run_script, made_up_data, monkeypatch):
    monkeypatch.setenv("CHORDFLOW_DATA", str(made_up_data))
    part = tmp_path / "parts" / "fit.json"
    run_script("fit.py", "seconds", "mnist", "checks", "--smoke", "--limit", 0.5, "--out", part)
    run_script("merge.py", part, "--out", tmp_path)
    record = json.loads((tmp_path / "fit.json").read_text())
    data, california = record["seconds"]["results"]
    assert (data["data"], data["parameters"]) == ("diabetes", 10 * 8 + 8 + 8 * 8 + 8 + 8 + 1)
    assert (california["data"], california["samples"]) == ("california", 40)
    assert len(data["runs"]) == 10
    assert len(data["summary"]) == 8, "one learning rate of Adam"
    for run in data["runs"]:
        assert run["reached"] == (run["cost"] <= data["target"])
    starts = {method: curve[0][1] for method, curve in data["curves_of_seed_0"].items() if "LM" in method}
    assert len(set(starts.values())) == 1, "the same parameters at the start"
    assert (record["seconds"]["environment"]["dtype"], record["mnist"]["environment"]["dtype"]) == (
        "float64",
        "float32",
    )
    assert {"optimistix", "scikit-learn"} <= set(record["seconds"]["environment"]["packages"])
    assert len(record["mnist"]["results"]["methods"]) == 4
    assert list(record["checks"]["results"]) == ["chordflow bench"]
    assert str(made_up_data) not in (tmp_path / "fit.json").read_text()
    figure = tmp_path / "fit.png"
    run_script("fit_plot.py", tmp_path / "fit.json", figure)
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_test_errors_of_two_pieces_are_those_of_all_splits(tmp_path, run_script):
    words = ("test_error", "--smoke", "--sets", "diabetes", "digits classification")
    for split in (0, 1):
        run_script("fit.py", *words, "--seeds", split, "--out", tmp_path / f"{split}.json")
    run_script("merge.py", tmp_path / "1.json", tmp_path / "0.json", "--out", tmp_path)
    diabetes, digits = json.loads((tmp_path / "fit.json").read_text())["test_error"]["results"]
    assert (diabetes["data"], diabetes["splits"], len(diabetes["methods"])) == ("diabetes", 2, 6)
    assert (digits["data"], set(digits["methods"])) == ("digits classification", {"chord", "adam", "lbfgs"})
    for method in digits["methods"].values():
        assert method["mean"] == pytest.approx(np.mean(method["errors"]))


@pytest.mark.slow
def test_physics_counts_steps_and_looks_at_peers(tmp_path, run_script):
    words = ("--smoke", "--steps", 3, "--peer-seconds", 0.1)
    run_script("physics.py", "poisson_2d", *words, "--out", tmp_path / "0.json")
    some = ("cf.fit", "scipy L-BFGS", "dense step")
    run_script("physics.py", "heat", "burgers", "poisson_5d", *words, "--methods", *some, "--out", tmp_path / "1.json")
    run_script("merge.py", tmp_path / "0.json", tmp_path / "1.json", "--out", tmp_path)
    poisson, heat, burgers, drawn = (
        json.loads((tmp_path / f"physics_{name}.json").read_text())
        for name in ("poisson_2d", "heat", "burgers", "poisson_5d")
    )
    assert len(poisson["results"]) == 6
    assert poisson["results"]["cf.fit"]["steps"] == [3]
    for peer in poisson["results"].values():
        errors = [error for _, _, error in peer["curves"][0]]
        assert errors[-1] == peer["end"]["worst"]
        assert peer["first_call"][0] > 0
    for record in (poisson, heat, burgers, drawn):
        (part,) = record["parts"]
        assert part["options"]["peer_seconds"] == 0.1
        assert part["load_at_start"] >= 0
    assert set(heat["results"]) == set(burgers["results"]) == {"cf.fit", "scipy L-BFGS"}
    assert drawn["results"]["ratio"] > 0
    run_script("physics_plot.py", tmp_path, tmp_path / "physics.png")
    assert (tmp_path / "physics.png").stat().st_size > 10_000


def test_the_compilation_of_a_peer_is_not_in_its_seconds(benchmark_module):
    peers = benchmark_module("physics_peers")
    equation = cf.physics.poisson_2d(num=2, num_test=3)
    start = cf.physics.small_normal(jax.random.key(0), (2, 2, 1))

    def slow_to_compile():
        time.sleep(0.4)
        while True:
            yield start

    run = peers.iterate(equation, slow_to_compile(), seconds=0.01)
    assert run.first_call >= 0.4
    assert run.looks[1][1] < 0.3


def test_the_step_that_crosses_a_level_is_found_among_those_not_looked_at(benchmark_module):
    peers = benchmark_module("physics_peers")
    errors = 0.5 * 0.87 ** np.arange(47)
    asked = []

    def error(point):
        asked.append(int(point[0]))
        return float(errors[asked[-1]])

    looks = peers.Looks(error, np.zeros(1))
    for step in range(1, 47):
        looks.add(0.1 * step, np.full(1, step))
    found = looks.settle()
    assert [step for step, _, _ in found] == list(range(47))
    first = next(step for step, _, error in found if error < 1e-2)
    assert first == np.argmax(errors < 1e-2)
    assert found[-1][2] == errors[-1]
    assert 19 not in asked, "no level lies between the first twenty"


def made_up_part(seeds, **environment):
    """A part of heat with rows of these seeds."""
    below = {"0.01": [3, 0.5], "0.001": None}
    rows = [
        {"method": "cf.fit", "seed": seed, "first_call": 2.0, "steps": 5, "seconds": 1.0 + seed, "error": 0.1 * seed}
        | {"below": below, "load": 1.0}
        for seed in seeds
    ]
    about = {"load_at_start": 0.5, "seconds": 9, "options": {"seeds": list(seeds)}}
    section = {"dtype": "float64", "about": about, "rows": rows}
    return {"benchmark": "physics", "environment": {"commit": "abc"} | environment, "sections": {"heat": section}}


def test_merged_parts_are_the_record_of_all_seeds(benchmark_module, tmp_path):
    merge = benchmark_module("merge")
    (whole,) = merge.records([made_up_part(range(4))], tmp_path).values()
    (pieces,) = merge.records([made_up_part([2, 3]), made_up_part([0, 1])], tmp_path).values()
    assert pieces["results"] == whole["results"]
    assert whole["results"]["cf.fit"]["end"] == pytest.approx({"median": 0.15, "worst": 0.3, "best": 0.0})
    assert whole["results"]["cf.fit"]["below 0.001"] == {"seeds": 0, "steps": [], "median_seconds": None}
    with pytest.raises(ValueError, match=r"\('cf.fit', 2\) is in two parts"):
        merge.records([made_up_part([1, 2]), made_up_part([2])], tmp_path)
    with pytest.raises(ValueError, match="the parts differ in commit"):
        merge.records([made_up_part([1]), made_up_part([2], commit="def")], tmp_path)


@pytest.mark.parametrize(
    ("script", "words", "text"),
    [
        ("fit.py", ["secnds"], "sections: expected some of seconds, test_error, mnist, checks, got secnds"),
        ("fit.py", ["seconds", "--methods", "lbfgs"], "methods: expected some of cf.fit"),
        ("fit.py", ["seconds", "--seeds", "3-1"], "expected a number or FIRST-LAST such as 0-9, got '3-1'"),
        # The last section's data are missed before the first is measured.
        ("fit.py", ["seconds", "mnist", "--sets", "diabetes"], "mnist: give --data or set CHORDFLOW_DATA"),
        ("physics.py", ["burgers", "--methods", "optax Adam"], "give --peer-seconds"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_before_anything_is_measured(
    script, words, text, run_script, capsys, monkeypatch
):
    monkeypatch.delenv("CHORDFLOW_DATA", raising=False)
    with pytest.raises(SystemExit):
        run_script(script, *words)
    assert text in capsys.readouterr().err


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
        with pytest.raises(ValueError, match=r"CHORDFLOW_DATA.*train-images-idx3-ubyte.*https://"):
            read["mnist"](folder, 10)


def numbers_of(tree):
    """All numbers of a record but those of its curves."""
    if isinstance(tree, dict):
        return [n for key, value in tree.items() if "curve" not in key for n in numbers_of(value)]
    if isinstance(tree, list):
        return [n for value in tree for n in numbers_of(value)]
    return [float(tree)] if isinstance(tree, int | float) and not isinstance(tree, bool) else []


def is_one_of(text, numbers, slack=0.5001):
    """Whether a number as it is written is one of these to ``slack`` of its last digit, or a percentage of one."""
    mantissa, _, exponent = text.partition("e")
    step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    value = float(text)
    return any(abs(n - value) <= slack * step for number in numbers for n in (number, 100 * number))


def test_a_number_that_is_written_is_found_by_its_digits():
    assert is_one_of("1.2e-7", [3.0, 1.24e-7])
    assert not is_one_of("1.2e-7", [1.26e-7])
    assert is_one_of("14.7", [0.1468])
    assert not is_one_of("0.24", [0.246])


def rows_of(page, heading):
    """The lines of the first table after a heading, without head and rule."""
    text = (ROOT / page).read_text(encoding="utf-8").split(heading)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert table
    return table[0].splitlines()[2:]


def record_of(name):
    return json.loads((BENCHMARKS / "records" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_table_of_seconds_has_the_medians_of_the_record():
    results = record_of("fit")["seconds"]["results"]
    for row in rows_of("docs/fit.md", "## How it compares: seconds"):
        label, *cells = (cell.strip(" *") for cell in row.strip("|").split("|"))
        words = re.findall(r"LM|QR|LSMR|lbfgs|L-BFGS-B|L-BFGS|Adam|adam|cf\.fit|optax|scipy|scikit-learn", label)
        for result, cell in zip(results, cells, strict=True):
            (name,) = (n for n in result["summary"] if set(words) <= set(re.split(r"[ ()]", n)))
            of = result["summary"][name]
            if found := re.match(r"([\d.]+)\b", cell):
                assert is_one_of(found[1], [of["seconds"]["median"]]), (label, cell)
            else:
                assert of["reached"] == 0, (label, cell)


def test_the_table_of_test_errors_has_the_means_and_errors_of_the_record():
    results = record_of("fit")["test_error"]["results"]
    pairs = [(m["mean"], m["standard_error"]) for result in results for m in result["methods"].values()]
    for row in rows_of("docs/fit.md", "## Test error"):
        for mean, error in re.findall(r"([\d.]+) ± ([\d.]+)", row):
            # Two numbers of the page were rounded twice.
            near = [(m, e) for m, e in pairs if is_one_of(mean, [m], slack=0.6) and is_one_of(error, [e], slack=0.6)]
            assert near, (mean, error)


def test_errors_and_steps_of_the_table_of_equations_are_those_of_the_records():
    names = {"Poisson 2-D": "poisson_2d", "heat": "heat", "Burgers": "burgers", "Poisson 5-D": "poisson_5d"}
    for row in rows_of("docs/physics.md", "## What was measured"):
        label, own, others = row.strip("|").split("|")
        name = next(name for start, name in names.items() if label.strip().startswith(start))
        results = record_of(f"physics_{name}")["results"]
        ours = {key: value for key, value in results.items() if key.startswith("cf.fit")}
        theirs = {key: value for key, value in results.items() if key not in ours}
        levels = [1e-6, 1e-4]
        for cell, numbers in ((own, numbers_of(ours)), (others, numbers_of(theirs))):
            for text in re.findall(r"\d(?:\.\d+)?e-\d+", cell):
                assert is_one_of(text, numbers + levels), (name, text)
        for first, last in re.findall(r"(\d+) to (\d+) steps", own):
            steps = results["cf.fit"]["below 1e-06"]["steps"]
            assert (int(first), int(last)) == (steps[0], steps[-1])


def test_the_readme_has_the_steps_of_the_record_of_poissons_equation():
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    (found,) = re.findall(
        r"below 1e-6 on the published Poisson problem in (\d+) to (\d+) steps from each of (\d+)", text
    )
    level = record_of("physics_poisson_2d")["results"]["cf.fit"]["below 1e-06"]
    assert tuple(map(int, found)) == (level["steps"][0], level["steps"][-1], level["seeds"])
