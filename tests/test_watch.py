"""What follows a run: a live table, lines of JSON, TensorBoard and Weights & Biases by their own libraries."""

import importlib.util
import io
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from chordflow.extras import MissingExtraError
from chordflow.record import create, remove_run
from chordflow.watch import SHOWN, Isolated, JsonLines, LiveTable, PlainLines, TensorBoard, WeightsAndBiases

START = {"event": "start", "folder": "runs/a", "flows": ["straight", "standard"], "left_out": {}}
FLOW = {"event": "flow", "flow": "straight", "samples": 4, "n": 40, "K": 9, "variable": "t", "t1": 1.0}
END = {"event": "flow_end", "flow": "straight", "result": "successful", "t": 1.0, "steps": 9, "rejected": 1}


def metrics(steps, **more):
    return {
        "event": "metrics",
        "flow": "straight",
        "t": steps / 10,
        "s": float("inf") if steps == 10 else steps / 5,
        "cost": 10.0**-steps,
        "deviation": 1e-7 * steps,
        "steps": steps,
        "rejected": 1,
        "effective_dimension": 38.5,
        "seconds": 2.0 * steps,
    } | more


def shown(table):
    """The table as text, in a terminal of 120 columns."""
    console = Console(file=io.StringIO(), width=120)
    console.print(table.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def table():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    table = LiveTable(console)
    yield table
    table.close()


def test_the_table_shows_where_each_flow_is(table):
    table(START)
    text = shown(table)
    assert "straight" in text
    assert text.count("waiting") == 2
    table(FLOW)
    assert "compiling" in shown(table)
    for steps in (1, 2, 4):
        table(metrics(steps))
    text = shown(table)
    for part in ("t = 0.4", "1.000e-04", "4.0e-07", "38.5", " 4 ", " 1 ", "0.5", "0:12"):
        assert part in text, part
    table(END)
    assert "successful" in shown(table)


def test_a_flow_that_was_finished_before_is_shown_so(table):
    table(START)
    table({"event": "kept", "flow": "straight", "result": "successful"})
    assert "successful" in shown(table)
    assert shown(table).count("waiting") == 1


def test_what_is_not_known_is_left_blank(table):
    table(START)
    table(FLOW)
    table(metrics(1, deviation=None, effective_dimension=None))
    assert "None" not in shown(table)


def test_lines_said_meanwhile_stand_above_the_table_as_they_are(table):
    table(START)
    table.say("[bold] n = 12, f(0.5)")
    assert "[bold] n = 12, f(0.5)" in table.console.file.getvalue()


def test_plain_lines_say_every_so_often_how_a_flow_goes():
    said, clock = [], iter([0.0, 0.0, 4.0, 14.0, 16.0, 16.0, 20.0, 31.0, 31.0, 60.0])
    lines = PlainLines(said.append, every=15.0, now=lambda: next(clock))
    lines(START)
    lines(FLOW)
    for steps in (1, 2, 4, 5, 6, 10):
        lines(metrics(steps, **({"deviation": None, "effective_dimension": None} if steps == 6 else {})))
    lines(END)
    assert said == [
        "straight: t = 0.4 of 1, cost 1.000e-04, deviation 4.0e-07, effective dimension 38.5, 4 steps (1 rejected), "
        "0.5 steps/s, 0:12 left",
        "straight: t = 0.6 of 1, cost 1.000e-06, 6 steps (1 rejected), 0.5 steps/s, 0:08 left",
    ]


def test_json_lines_are_objects(capsys):
    watcher = JsonLines()
    for event in (START, FLOW, metrics(10)):
        watcher(event)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [START, FLOW]
    assert lines[2] == {k: v for k, v in metrics(10).items() if k not in ("event", "s")} | {"s": {"float": "inf"}}


def test_tensorboard_has_each_number_of_each_step(tmp_path):
    from tensorboardX.proto import event_pb2

    watcher = TensorBoard(str(tmp_path))
    for event in (START, FLOW, metrics(1), metrics(2, effective_dimension=None), END):
        watcher(event)
    watcher.close()
    (log,) = (tmp_path / "straight").glob("events*")
    data, found = log.read_bytes(), {}
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = vars(event_pb2)["Event"].FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    assert {name for name, step in found if step == 1} == set(SHOWN)
    assert found["cost", 2] == pytest.approx(0.01)
    assert ("effective_dimension", 2) not in found


class FakeWandb(ModuleType):
    """What a run asks of Weights & Biases, as its documentation names it, kept in a list."""

    def __init__(self):
        super().__init__("wandb")
        self.calls: list = []

    def init(self, *, project, name, id, resume):  # noqa: A002
        del id, resume  # asked for below
        self.calls.append(("init", project, name))
        return self

    def define_metric(self, name, *, step_metric):
        self.calls.append(("define_metric", name, step_metric))

    def log(self, values):
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_is_given_each_stride_over_its_steps(wandb, tmp_path):
    create(tmp_path / "a", {})
    watcher = WeightsAndBiases("chords")
    for event in ({**START, "folder": str(tmp_path / "a")}, FLOW, metrics(1), metrics(2, deviation=None), END):
        watcher(event)
    watcher.close()
    assert wandb.calls[:3] == [
        ("init", "chords", "a"),
        ("define_metric", "straight/*", "straight/steps"),
        ("define_metric", "standard/*", "standard/steps"),
    ]
    (_, first), (_, second) = wandb.calls[3:5]
    assert first == {f"straight/{name}": metrics(1)[name] for name in SHOWN}
    assert second.keys() == first.keys() - {"straight/deviation"}
    assert wandb.calls[5:] == [("finish",)]


def test_tensorboard_takes_back_what_a_resumed_flow_repeats(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "tensorboardX.SummaryWriter",
        lambda folder, **options: made.append(options) or SimpleNamespace(add_scalar=print),
    )
    watcher = TensorBoard(str(tmp_path))
    for steps in (4, 6):
        watcher(metrics(steps))
    assert made == [{"purge_step": 4}], "TensorBoard hides earlier events from that step on"


def test_weights_and_biases_goes_on_with_the_run_of_the_folder(tmp_path, monkeypatch):
    begun = SimpleNamespace(define_metric=lambda name, step_metric: None)
    wandb = SimpleNamespace(calls=[], init=lambda **options: wandb.calls.append(options) or begun)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = tmp_path / "run"
    for _ in range(2):
        create(folder, {})
        for _ in range(2):  # the run, and its resume
            WeightsAndBiases("chords")({**START, "folder": str(folder)})
        remove_run(folder)
    first, resumed, other, _ = (call["id"] for call in wandb.calls)
    assert first == resumed != other
    assert {call["resume"] for call in wandb.calls} == {"allow"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_keeps_a_run_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    watcher = WeightsAndBiases("chords")
    for event in (START, FLOW, metrics(1), metrics(2), END):
        watcher(event)
    watcher.close()
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"straight/cost" in log.read_bytes()


def test_a_sink_that_fails_is_told_in_one_line_and_hears_no_more(capsys):
    class Sink:
        heard = 0

        def __call__(self, event):
            self.heard += 1
            raise ConnectionError("no route\nto the host")

        def close(self):
            raise OSError

    sink = Sink()
    isolated = Isolated(sink)
    for event in (START, FLOW):
        isolated(event)
    assert sink.heard == 1
    assert capsys.readouterr().err == "chordflow: Sink failed (no route): the run goes on without it\n"
    isolated.close()
    assert capsys.readouterr().err == "", "it is told once"
    Isolated(Sink()).close()
    assert capsys.readouterr().err == "chordflow: Sink failed (OSError): the run goes on without it\n"


@pytest.mark.parametrize(("kind", "module"), [(TensorBoard, "tensorboardX"), (WeightsAndBiases, "wandb")])
def test_a_missing_library_is_one_line_naming_the_extra(monkeypatch, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'need {module}: pip install "chordflow\[watch\]"$'):
        kind("somewhere")
