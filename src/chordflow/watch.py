"""Watching a run: plain lines, lines of JSON, a live table in a terminal, TensorBoard and Weights & Biases.

Each is called with the events of :func:`chordflow.experiment.run`, dictionaries whose ``event`` says what they are.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chordflow.extras import load_extra
from chordflow.files import sha256_of
from chordflow.record import as_line

SHOWN = ("cost", "deviation", "effective_dimension", "steps", "rejected", "t", "s", "seconds")
"""Numbers of a flow that sinks are given, in this order."""


class JsonLines:
    """One JSON object a line on standard output: a line of ``metrics.jsonl`` each stride, and the other events.

    Examples
    --------
    >>> JsonLines()({"event": "metrics", "flow": "straight", "t": 0.5})
    {"flow": "straight", "t": 0.5}
    >>> JsonLines()({"event": "end", "folder": "runs/a"})
    {"event": "end", "folder": "runs/a"}
    """

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Print an event."""
        values = {key: value for key, value in event.items() if (key, value) != ("event", "metrics")}
        print(as_line(values), end="", flush=True)

    def close(self) -> None:
        """Nothing is held."""


class Pace:
    """How fast a flow goes, over its last strides.

    Examples
    --------
    >>> pace = Pace()
    >>> for second in range(5):
    ...     pace.add(t=0.1 * second, steps=3 * second, seconds=float(second))
    >>> pace.rate, round(pace.remaining(1.0))
    (3.0, 6)
    """

    def __init__(self, window: int = 20):
        self._moments: deque[tuple[float, int, float]] = deque(maxlen=window)

    def add(self, t: float, steps: int, seconds: float) -> None:
        """A moment of the flow."""
        self._moments.append((t, steps, seconds))

    @property
    def rate(self) -> float | None:
        """Steps per second."""
        return self._per_second(1)

    def remaining(self, t1: float) -> float | None:
        """Seconds to t1 if t goes on as it did; None where it stands still."""
        speed = self._per_second(0)
        return (t1 - self._moments[-1][0]) / speed if speed else None

    def _per_second(self, which: int) -> float | None:
        if len(self._moments) < 2:
            return None
        first, last = self._moments[0], self._moments[-1]
        return (last[which] - first[which]) / (last[2] - first[2])


def duration(seconds: float | None) -> str:
    """Seconds as a clock shows them.

    Examples
    --------
    >>> duration(75), duration(7321.4), duration(None)
    ('1:15', '2:02:01', '')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainLines:
    """A line on how a flow goes, every so many seconds: for logs, where nothing can be drawn again.

    Examples
    --------
    >>> lines = PlainLines(print, every=0.0)
    >>> lines({"event": "flow", "flow": "straight", "variable": "t", "t1": 1.0})
    >>> lines({"event": "metrics", "flow": "straight", "t": 0.5, "cost": 0.25, "deviation": 3e-8, "steps": 12,
    ...        "rejected": 1, "effective_dimension": None, "seconds": 6.0})
    straight: t = 0.5 of 1, cost 2.500e-01, deviation 3.0e-08, 12 steps (1 rejected)
    """

    def __init__(self, say: Callable[[str], object], *, every: float = 15.0, now: Callable[[], float] = time.monotonic):
        self._say, self._every, self._now = say, every, now
        self._variable, self._t1, self._pace, self._said = "t", 1.0, Pace(), now()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Follow an event."""
        if event["event"] == "flow":
            self._variable, self._t1, self._pace, self._said = event["variable"], event["t1"], Pace(), self._now()
        elif event["event"] == "metrics":
            self._pace.add(event["t"], event["steps"], event["seconds"])
            # The end of a flow is said by the run itself.
            if self._now() - self._said >= self._every and event["t"] < self._t1:
                self._said = self._now()
                self._say(f"{event['flow']}: {', '.join(self._parts(event))}")

    def close(self) -> None:
        """Nothing is held."""

    def _parts(self, event: Mapping[str, Any]) -> Iterator[str]:
        yield f"{self._variable} = {event['t']:.4g} of {self._t1:.4g}"
        yield f"cost {event['cost']:.3e}"
        for name, form in (("deviation", ".1e"), ("effective_dimension", ".1f")):
            if event[name] is not None:
                yield f"{name.replace('_', ' ')} {event[name]:{form}}"
        yield f"{event['steps']} steps ({event['rejected']} rejected)"
        if self._pace.rate is not None:
            yield f"{self._pace.rate:.3g} steps/s"
        if left := duration(self._pace.remaining(self._t1)):
            yield f"{left} left"


class LiveTable:
    """A table that follows the flows in a terminal; lines said meanwhile scroll above it.

    One row a flow: clock time and how far that is, cost, deviation from the chord so far, effective dimension, steps
    and how many of them were rejected, steps per second, and the time left if it goes on like this.
    """

    COLUMNS = ("flow", "time", "", "cost", "deviation", "eff. dim.", "steps", "rejected", "steps/s", "left")

    def __init__(self, console: Any = None):
        live = load_extra("rich.live", "live displays")
        self.console = load_extra("rich.console", "live displays").Console() if console is None else console
        self.flows: dict[str, dict[str, Any]] = {}
        self._live = live.Live(console=self.console, refresh_per_second=4, transient=True, get_renderable=self.table)
        self._live.start()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Follow an event."""
        kind = event["event"]
        if kind == "start":
            self.flows = {flow: {} for flow in event["flows"]}
        elif kind == "flow":
            self.flows[event["flow"]] = {"t1": event["t1"], "variable": event["variable"], "pace": Pace()}
        elif kind == "metrics":
            row = self.flows[event["flow"]]
            row |= event
            row["pace"].add(event["t"], event["steps"], event["seconds"])
        elif kind in ("flow_end", "kept"):
            self.flows[event["flow"]]["result"] = event["result"]

    def close(self) -> None:
        """Take the table away."""
        self._live.stop()

    def table(self) -> Any:
        """The table as it is now."""
        table = load_extra("rich.table", "live displays").Table(box=None, pad_edge=False, header_style="dim")
        for name in self.COLUMNS:
            table.add_column(name, justify="left" if name in ("flow", "") else "right", no_wrap=True)
        for flow, row in self.flows.items():
            table.add_row(flow, *self.cells(row))
        return table

    @staticmethod
    def cells(row: Mapping[str, Any]) -> list[Any]:
        """The cells of a flow after its name."""
        if "t" not in row:
            return [row.get("result", "waiting" if not row else "compiling")]
        bar = load_extra("rich.progress_bar", "live displays").ProgressBar(row["t1"], row["t"], width=12)
        dimension, deviation = row["effective_dimension"], row["deviation"]
        pace: Pace = row["pace"]
        return [
            f"{row['variable']} = {row['t']:.4g}",
            bar,
            f"{row['cost']:.3e}",
            "" if deviation is None else f"{deviation:.1e}",
            "" if dimension is None else f"{dimension:.1f}",
            str(row["steps"]),
            str(row["rejected"]),
            "" if pace.rate is None else f"{pace.rate:.3g}",
            row["result"] if "result" in row else duration(pace.remaining(row["t1"])),
        ]


class Isolated:
    """A sink whose failure does not end the run: it is told in one line, and the sink hears no more.

    Parameters
    ----------
    sink
        What follows events, and is closed at the end.
    """

    def __init__(self, sink: Any):
        self._sink, self._hears = sink, True

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Hand an event on."""
        if self._hears:
            self._try(self._sink, event)

    def close(self) -> None:
        """Close the sink."""
        self._try(self._sink.close)

    def _try(self, call: Callable[..., object], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # of another library, over a network: it may raise anything
            told, self._hears = not self._hears, False
            if told:
                return
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            name = type(self._sink).__name__
            print(f"chordflow: {name} failed ({reason}): the run goes on without it", file=sys.stderr, flush=True)


class TensorBoard:
    """Scalars of each flow over its steps, for ``tensorboard --logdir FOLDER``, by tensorboardX.

    Raises
    ------
    MissingExtraError
        tensorboardX is not installed.
    """

    def __init__(self, folder: str):
        self._new = load_extra("tensorboardX", "TensorBoard logs", "watch").SummaryWriter
        self._folder, self._writers = Path(folder).expanduser(), {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Follow an event."""
        if event["event"] != "metrics":
            return
        flow = event["flow"]
        if flow not in self._writers:
            # A resumed flow repeats steps: what was logged from here on before is taken back.
            self._writers[flow] = self._new(str(self._folder / flow), purge_step=event["steps"])
        for name in SHOWN:
            if event[name] is not None:
                self._writers[flow].add_scalar(name, event[name], event["steps"])

    def close(self) -> None:
        """Write what is not written yet."""
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """Numbers of each flow in a project of Weights & Biases, by its own library, which reads ``WANDB_MODE``.

    Raises
    ------
    MissingExtraError
        wandb is not installed.
    """

    def __init__(self, project: str):
        self._wandb, self._project, self._run = load_extra("wandb", "Weights & Biases logs", "watch"), project, None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Follow an event."""
        if event["event"] == "start":
            folder = Path(event["folder"])
            # The same where the run goes on, another where it is started over: the configuration is written once.
            begun = f"{folder.name} {(folder / 'config.toml').stat().st_mtime_ns}"
            key = sha256_of(begun.encode())[:16]
            self._run = self._wandb.init(project=self._project, name=folder.name, id=key, resume="allow")
            for flow in event["flows"]:
                self._run.define_metric(f"{flow}/*", step_metric=f"{flow}/steps")
        elif event["event"] == "metrics" and self._run is not None:
            flow = event["flow"]
            self._run.log({f"{flow}/{name}": event[name] for name in SHOWN if event[name] is not None})

    def close(self) -> None:
        """Hand over what is not handed over yet."""
        if self._run is not None:
            self._run.finish()


def in_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()
