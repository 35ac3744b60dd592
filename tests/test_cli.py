"""The command line and the run folder it leaves, on a problem of a few samples."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import jax
import matplotlib.image
import numpy as np
import pytest
import xarray

import chordflow as cf
from chordflow import record, theory, verification, watch
from chordflow.cli import main
from chordflow.config import Config, load_config
from chordflow.setting import Setting
from chordflow.watch import PlainLines

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


def test_the_page_about_runs_has_every_file_key_and_variable_of_a_run(finished):
    page = (Path(__file__).resolve().parents[1] / "docs" / "runs.md").read_text(encoding="utf-8")
    written = set(re.findall(r"`([^`\n]+)`", page))
    run = cf.open_run(finished)
    names = {path.name for path in finished.iterdir() if path.suffix not in (".nc", ".png", ".svg")}
    names |= {path.stem for path in finished.glob("*.png") if not path.stem.startswith("spectrum-")}
    (flow, *_), (line, *_) = run.summary["flows"].values(), run.progress
    names |= {"format", "flows", *run.environment, *run.environment["device"], *flow, *flow["comparison"][0], *line}
    data = run.trajectory("straight")
    names |= {str(name) for name in data.variables if not str(name).startswith("params_")}
    names |= data.attrs.keys() - flow["stats"].keys()
    names |= {field.name for field in dataclasses.fields(verification.Check)}
    assert len(names) > 50
    assert sorted(names - written) == [], "say in docs/runs.md what these are"


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


def test_verify_uses_the_tolerances_it_is_given(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(verification, "examine", lambda e: seen.append((e.rtol, e.eps)) or [])
    (tmp_path / "run.toml").write_text('rtol = 1e-6\nflows = ["standard"]\n[data]\nname = "wine"\nstiff_samples = 9\n')
    assert main(["verify", "data.samples=3"]) == 0
    assert main(["verify", "data.samples=3", "eps=1e-3", "rtol=1e-7"]) == 0
    # What a file holds for `chordflow run` changes nothing, not even where fewer samples are taken.
    assert main(["verify", str(tmp_path / "run.toml"), "data.samples=3", "eps=1e-4"]) == 0
    assert seen == [(1e-8, None), (1e-7, 1e-3), (1e-6, 1e-4)]


OWN = """
import equinox as eqx
import jax
import jax.numpy as jnp
import chordflow as cf

def network(input_shape, num_outputs, seed):
    key = jax.random.key(seed)
    net = eqx.nn.MLP(input_shape[0], num_outputs, 6, 1, activation=jnp.tanh, key=key, dtype=jnp.float64)
    return (lambda net, z: net(z)), net

def root(x, y):
    return jnp.sum(jnp.sqrt(1 + (x - y) ** 2) - 1)

known = cf.Loss(root, minimum=lambda y: jnp.zeros((), y.dtype), equilibrium=lambda x0, y: y)

def eased(t, x0, y):
    return x0 + t**2 * (3 - 2 * t) * (y - x0)

def displaced(t, x0, y):
    return eased(t, x0, y) + 0.5

def abrupt(t, x0, y):
    return x0 + jnp.sqrt(t) * (y - x0)

def vector(x, y):
    return x - y
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder to work in, with a module of the user's own."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    return tmp_path


def test_a_network_a_loss_and_a_path_of_the_users_own_are_found_in_the_current_folder(own):
    words = ["data.name=diabetes", "data.samples=5", "saves=5", "model.name=own_parts:network", "out=r"]
    flows = "flows=adapted,along(own_parts:eased),along(own_parts:displaced,50)"
    assert main(["run", *words, "loss=own_parts:known", flows]) == 0
    run = cf.open_run(own / "r")
    assert run.flows == ("adapted", "along(own_parts:eased)", "along(own_parts:displaced,50)")
    metrics = run.metrics
    assert metrics["along(own_parts:eased)"]["cost at the end"]["measured"] < 1e-12
    # With a loss of one's own the adapted flow is the Euclidean flow of that loss.
    assert metrics["adapted"]["deviation from the Euclidean flow (2.19)"]["measured"] < 1e-6
    along = metrics["along(own_parts:eased)"]
    assert along["deviation from the path"] == {"predicted": 0.0, "measured": pytest.approx(0, abs=1e-6)}
    # s(t) = t²(3−2t) leaves t by √3/18 at most, here seen at t = ¼ and ¾: 3/32 of the chord.
    assert along["deviation from the chord"]["measured"] == pytest.approx(3 / 32, rel=1e-5)
    assert along["deviation from the chord"]["predicted"] == pytest.approx(3 / 32, rel=1e-12)
    assert metrics["along(own_parts:displaced,50)"]["deviation from the path"]["measured"] > 1e-3
    assert (own / "r" / "along-own_parts-displaced-50.nc").is_file()


PLANTED = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"


def test_nothing_that_lies_in_a_run_folder_is_imported(tmp_path, monkeypatch, capsys):
    """Not even where it is the current folder: modules that the configuration names, or that the program may import."""
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted_nowhere.py").write_text(PLANTED)
    config = {**Config().to_dict(), "loss": "planted_nowhere:loss", "flows": ["straight"]}
    other = record.create(tmp_path / "other", config, {"command": "run"})
    run = record.create(tmp_path / "run", config, {"command": "run"})
    for name in ("planted_nowhere", "rich", "sitecustomize"):
        (run.path / f"{name}.py").write_text(PLANTED)
    (run.path / "segments").mkdir()
    for where in (run.path, run.path / "segments"):
        monkeypatch.chdir(where)
        for words in (["resume", str(run.path)], ["resume", str(other.path)], ["verify", str(run.path)]):
            assert main(words) == 2
        assert capsys.readouterr().err.count("no module 'planted_nowhere'") == 3
    monkeypatch.chdir(run.path)
    assert main(["report", "."]) == 0
    assert not list(run.path.rglob("*.ran"))
    (run.path / "SHA256SUMS").unlink()  # it does not look like a run any more, but it is named as one
    assert main(["resume", "."]) == 2
    assert not list(run.path.rglob("*.ran"))
    monkeypatch.chdir(tmp_path)
    assert main(["resume", str(other.path)]) == 2
    assert (tmp_path / "planted_nowhere.ran").exists(), "it is found in any other folder"


def test_the_parameters_of_a_run_come_back_without_its_network_and_into_it(own):
    words = ["data.name=diabetes", "data.samples=5", "flows=straight", "saves=3", "model.name=own_parts:network"]
    assert main(["run", *words, "loss=own_parts:root", "flows=adapted", "out=r"]) == 0
    code = (
        "import sys, chordflow; run = chordflow.open_run('r'); tree = run.params(); run.trajectory(); run.metrics; "
        "print('own_parts' in sys.modules, tree['layers'][0]['weight'].shape)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=own).stdout
    assert said.split("\n")[0] == "False (6, 10)", "nothing in the folder is imported"
    setting = Setting.build(load_config(None, [*words, "loss=own_parts:root"]))
    problem, data = setting.problem(), cf.open_run("r").trajectory("adapted")
    for save in (0, -1):
        net = cf.open_run("r").params(like=setting.params, save=save)
        np.testing.assert_allclose(problem.outputs(net), data["outputs"][save], atol=1e-12)
    with pytest.raises(
        ValueError, match=r"weight.* is an array of shape \(7, 10\), the run has one of shape \(6, 10\)"
    ):
        cf.open_run("r").params(like={"layers": [{"weight": np.zeros((7, 10))}]})
    with pytest.raises(ValueError, match="has no dataset 'straight'; there are: adapted"):
        cf.open_run("r").params("straight")


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
    data = cf.open_run(out).trajectory()
    assert float(data["time"][-1]) == 0.5
    assert float(data["s"][-1]) == pytest.approx(5 * np.log(2))
    assert main(["run", *words[:4], "clock=log", "saves=5", f"out={tmp_path / 'log'}"]) == 0
    data = cf.open_run(tmp_path / "log").trajectory()
    np.testing.assert_allclose(data["s"], 5 * np.expm1(data["time"]))
    assert float(data["s"][-1]) == pytest.approx(5 * 5), "the adapted flow ends at s = 5N whatever the clock"


@pytest.mark.parametrize(
    ("flow", "limit", "result"),
    [("straight", 5, "step_limit"), ("along(own_parts:abrupt)", 100, "not_finite")],
    ids=["late", "at once"],
)
def test_a_flow_that_ends_early_keeps_its_last_state_and_has_no_empty_numbers(own, capsys, flow, limit, result):
    words = ["data.samples=4", "model.widths=12", "saves=3", f"flows={flow}", f"max_steps={limit}", "out=r"]
    assert main(["run", *words]) == 1
    captured = capsys.readouterr()
    assert f"ended early: {flow} ({result})" in captured.err
    assert f"{flow}: ended at t = " in captured.out
    assert not [word for word in captured.out.split() if word in ("nan", "inf", "-inf")]
    run = cf.open_run("r")
    setting = Setting.build(Config.from_dict(run.config))
    data, last, problem = run.trajectory(), run.metrics[flow]["t_last"], setting.problem()
    assert data["time"].to_numpy().tolist() == ([0.0, last] if result == "step_limit" else [0.0])
    outputs = problem.outputs(run.params(like=setting.params))
    np.testing.assert_allclose(data["outputs"][-1], outputs, atol=1e-12)
    assert float(data["cost"][-1]) == pytest.approx(float(problem.cost_at(outputs)))
    assert np.isfinite(data["test_cost"]).all()


# Ways to watch --------------------------------------------------------------------------------------------------------

STRAIGHT = ["data.samples=3", "model.widths=8", "saves=2", "flows=straight", "rtol=1e-4"]


class Follower:
    """Takes the place of a watcher: what it was made with, and what it was told."""

    made: ClassVar[list["Follower"]]

    def __init__(self, *given):
        self.given, self.events, self.is_closed = given, [], False
        self.made.append(self)

    def __call__(self, event):
        self.events.append(event["event"])

    def close(self):
        self.is_closed = True


@pytest.fixture
def followers(monkeypatch):
    """Followers instead of TensorBoard and Weights & Biases, which have tests of their own."""
    made: list[Follower] = []
    monkeypatch.setattr(Follower, "made", made, raising=False)
    for name in ("TensorBoard", "WeightsAndBiases"):
        monkeypatch.setattr(watch, name, Follower)
    return made


def test_quiet_says_nothing_and_tells_the_followers_asked_for(tmp_path, capsys, followers):
    words = [*STRAIGHT, f"out={tmp_path / 'r'}", "--quiet", "--tensorboard", "logs", "--wandb", "chords"]
    assert main(["run", *words]) == 0
    assert capsys.readouterr().out == ""
    assert [one.given for one in followers] == [("logs",), ("chords",)]
    for one in followers:
        assert {"start", "flow", "metrics", "flow_end", "end"} == set(one.events)
        assert one.is_closed


def test_overwrite_starts_over_and_without_it_nothing_is_touched(tmp_path, capsys):
    words = ["run", *STRAIGHT, f"out={tmp_path / 'r'}"]
    assert main([*words, "seed=1"]) == 0
    assert main([*words, "model.widths=none", "--overwrite"]) == 2, "a mistake does not cost the old run"
    assert cf.open_run(tmp_path / "r").config["seed"] == 1
    assert main([*words, "--overwrite", "--quiet"]) == 0
    assert cf.open_run(tmp_path / "r").config["seed"] == 0
    assert cf.open_run(tmp_path / "r").state == "finished"
    (tmp_path / "r" / "thesis.tex").write_text("mine")
    assert main([*words, "--overwrite"]) == 2
    assert "holds thesis.tex, which no run wrote" in capsys.readouterr().err
    assert (tmp_path / "r" / "straight.nc").is_file()


def test_a_log_has_plain_lines_on_the_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "PlainLines", lambda say: PlainLines(say, every=0.0))
    assert main(["run", *STRAIGHT, f"out={tmp_path / 'r'}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^straight: t = 0\.\d+ of 1, cost .*, \d+ steps \(\d+ rejected\)", said, re.MULTILINE)
    assert "\x1b" not in said


def test_a_terminal_has_a_live_table(tmp_path, monkeypatch):
    """In a pseudo-terminal, as a user has one."""
    reader, writer = os.openpty()
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    pieces = []

    def read():
        with contextlib.suppress(OSError):  # Linux says that all is read by an error
            while piece := os.read(reader, 65536):
                pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    with open(writer, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        status = main(["run", *STRAIGHT, f"out={tmp_path / 'r'}"])
        monkeypatch.undo()
    thread.join(10)
    os.close(reader)
    said = b"".join(pieces).decode()
    assert status == 0
    for part in ("eff. dim.", "steps/s", "straight", "successful", "\x1b[", f"run folder {tmp_path / 'r'}"):
        assert part in said, part
    assert "\x1b[?25h" in said, "the cursor is shown again"


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
    (["run", "flows=straight,straight"], "straight is there 2 times"),
    (["run", "data.samples=4", "data.stiff_samples=5"], "data.stiff_samples = 5: expected at most the 4 samples"),
    (["run", "data.samples=4", "model.dtype=float32"], "leave out model.dtype"),
    (["run", "data.samples=4", "loss=none:f"], "loss = 'none:f': no module 'none'"),
    (["run", "data.samples=4", "loss=math:pi"], "'pi' is not a function or cf.Loss in math"),
    (["run", "data.samples=4", "flows=along(math:pi)"], "'pi' is not a function in math"),
    (["run", "data.samples=4", "flows=straight", "loss=cross_entropy"], "none can run on this problem. straight():"),
    (["verify", "data.samples=0"], "samples"),
    (["verify", "flows=straight"], "flows = 'straight': chordflow verify"),
    (["verify", "out=r"], "chordflow verify"),
    (["verify", "data.samples=4", "rtol=0.1"], "rtol must be in [1e-12, 1e-4]"),
    (["verify", "data.samples=4", "model.dtype=float32"], "leave out model.dtype"),
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


OWN_MISTAKES = [
    (["loss=own_parts:vector"], "fn must return a scalar, got shape"),
    (["flows=along(own_parts:displaced)"], "flows = along(own_parts:displaced): along(): path(0) is 0.5 away"),
]


@pytest.mark.parametrize(("words", "text"), OWN_MISTAKES, ids=[" ".join(m[0]) for m in OWN_MISTAKES])
def test_a_mistake_in_the_users_own_parts_leaves_nothing_behind(words, text, own, capsys):
    before = {path.name for path in own.iterdir()}
    assert main(["run", *SMALL, *words]) == 2
    assert text in capsys.readouterr().err
    assert {path.name for path in own.iterdir()} - before <= {"__pycache__"}


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
