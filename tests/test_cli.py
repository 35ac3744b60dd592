"""The command line and the run folder it leaves, on a problem of a few samples."""

import json
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest
import xarray

import chordflow as cf
from chordflow import theory
from chordflow.cli import main

SMALL = ["data.samples=4", "data.stiff_samples=3", "model.widths=12", "saves=5"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(["run", *SMALL, f"out={out}"]) == 0
    return out


def test_a_run_leaves_a_folder_that_xarray_opens(finished):
    assert {p.name for p in finished.glob("*.nc")} == {
        "straight.nc",
        "adapted.nc",
        "standard.nc",
        "interpolated-0.5.nc",
    }
    straight = xarray.open_dataset(finished / "straight.nc")
    assert straight["outputs"].dims == ("time", "sample", "output")
    assert straight.attrs["result"] == "successful"
    x, t = straight["outputs"].values, straight["time"].values
    chord = np.asarray(theory.linear_interpolation(x[0], straight["predicted_outputs"].values[-1], t))
    assert np.abs(x - chord).max() <= 1e-6 * np.abs(x[0] - x[-1]).max()
    assert straight["cost"][-1] <= 1e-12 * straight["cost"][0]
    assert (np.diff(straight["sigma"].values, axis=1) <= 0).all(), "singular values descend"
    seconds = [v for v in map(str, straight.variables) if "second" in v]
    assert seconds == ["seconds"], "durations live in one variable"


def test_the_summary_holds_predicted_and_measured(finished):
    summary = json.loads((finished / "summary.json").read_text())
    rows = {row["quantity"]: row for row in summary["flows"]["adapted"]["comparison"]}
    decay = rows["deviation from exponential decay (2.49)"]
    assert decay["predicted"] == 0
    assert decay["measured"] <= 1e-6
    rate = rows["mean decay rate of the cost, × N"]
    assert rate["predicted"] == pytest.approx(2, rel=1e-6)
    assert rate["measured"] == pytest.approx(2, rel=1e-4)
    frozen = {row["quantity"]: row for row in summary["flows"]["standard"]["comparison"]}
    assert frozen["deviation from the frozen kernel"]["measured"] > 1e-3, "a real network is not frozen"


def test_every_figure_is_there_and_is_not_blank(finished):
    names = {"outputs", "cost", "spectrum-straight", "spectrum-standard"}
    assert names <= {p.stem for p in finished.glob("*.png")}
    for name in names:
        assert matplotlib.image.imread(finished / f"{name}.png").std() > 0.02


def test_a_second_run_into_the_same_folder_is_refused(finished, capsys):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in finished.iterdir())
    assert main(["run", *SMALL, f"out={finished}"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert sorted((p.name, p.stat().st_mtime_ns) for p in finished.iterdir()) == before


def test_one_hot_cross_entropy_is_said_to_have_no_finite_equilibrium_and_still_runs(tmp_path, capsys):
    flows = "flows=straight,adapted"
    assert main(["run", *SMALL, "loss=cross_entropy", flows, f"out={tmp_path / 'r'}"]) == 0
    said = capsys.readouterr().out
    assert "straight: left out" in said
    assert "no finite equilibrium" in said
    assert xarray.open_dataset(tmp_path / "r" / "adapted.nc").attrs["result"] == "successful"


def test_verify_exits_0_where_all_holds_and_1_where_not(tmp_path, capsys, monkeypatch):
    words = ["data.samples=3", "model.widths=8"]
    assert main(["verify", *words]) == 0
    assert "0 do not hold" in capsys.readouterr().out
    wrong = cf.Problem.descent
    monkeypatch.setattr(cf.Problem, "descent", lambda self, x: jax.tree.map(lambda u: 1.01 * u, wrong(self, x)))
    assert main(["verify", *words, "seed=1"]) == 1
    assert "does not hold" in capsys.readouterr().out


def test_a_network_of_the_users_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mynetwork.py").write_text(
        "import jax.numpy as jnp\n\n"
        "def network(input_shape, num_outputs, seed):\n"
        "    params = jnp.full((input_shape[0], num_outputs), 0.01 * (seed + 1))\n"
        "    return (lambda w, z: jnp.tanh(z) @ w), params\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    words = ["data.name=diabetes", "data.samples=5", "flows=straight", "saves=3", "model.name=mynetwork:network"]
    assert main(["run", *words, "out=r"]) == 0
    assert float(xarray.open_dataset(tmp_path / "r" / "straight.nc")["cost"][-1]) < 1e-12


def test_other_data_losses_and_clocks(tmp_path):
    out = tmp_path / "r"
    words = [
        "data.name=diabetes",
        "data.samples=5",
        "model.widths=12",
        "flows=adapted",
        "clock=interpolation",
        "t1=0.5",
    ]
    assert main(["run", *words, "saves=5", f"out={out}"]) == 0
    data = xarray.open_dataset(out / "adapted.nc")
    assert float(data["time"][-1]) == 0.5
    assert float(data["s"][-1]) == pytest.approx(5 * np.log(2))


MISTAKES = [
    (["run", "data.name=digit"], "did you mean"),
    (["run", "data.samples=100000"], "1797"),
    (["run", "data.name=csv", "data.path=none.csv"], "none.csv"),
    (["run", "data.name=diabetes", "loss=cross_entropy"], "needs classes"),
    (["run", "model.activation=tan"], "tanh"),
    (["run", "model.widthss=3"], "widthss"),
    (["run", "nope.toml"], "nope.toml"),
    (["run", "a.toml", "b.toml"], "expected one config file"),
    (["run", "flows=standard", "clock=interpolation", "t1=2", *SMALL], "expected below 1"),
    (["run", "flows=strait"], "did you mean straight?"),
    (["verify", "data.samples=0"], "samples"),
]


@pytest.mark.parametrize(("words", "text"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_users_mistake_is_one_line_and_exit_status_2(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.startswith("chordflow: ")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", *SMALL, f"out={tmp_path / 'file' / 'run'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_shows_an_example_and_python_m_works():
    said = subprocess.run(
        [sys.executable, "-m", "chordflow", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "chordflow run data.samples=50" in said
    assert "data.smoothing" in said
