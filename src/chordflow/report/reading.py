"""What the page takes from run folders: series over clock time, and None where a folder does not have them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.extras import load_extra
from chordflow.figures import Curve
from chordflow.record import Run, RunError, dataset_name, open_run
from chordflow.record.datasets import read_dataset
from chordflow.verification.kept import Kept, read_kept

if TYPE_CHECKING:
    import xarray


NOT_YET = "it is known once the flow is finished"
STREAMED = ("cost", "deviation", "effective_dimension")
"""What the stream of metrics knows of a flow, beside its times and steps."""


@dataclass(frozen=True, eq=False)
class Series:
    """One flow of one run, as the page shows it: from its dataset, or from the stream of metrics as far as it came."""

    label: str
    """Its name in every figure: that of the flow, with the run's behind it where there are several."""
    flow: str
    run: int
    """Which run it belongs to, from 0."""
    data: "xarray.Dataset"
    summary: dict[str, Any]
    progress: list[dict[str, Any]]
    """What was noted of it while it ran, a dictionary for each stride."""
    is_finished: bool = True

    @cached_property
    def num_samples(self) -> float:
        """N."""
        return float(self.data.attrs.get("num_samples", self.summary.get("samples", 1)))

    @cached_property
    def s(self) -> np.ndarray:
        """s/N of each save, infinite at t = 1."""
        return np.asarray(self.data["s"].to_numpy(), float) / self.num_samples

    @cached_property
    def t(self) -> np.ndarray:
        """Clock time t = 1 − exp(−s/N) of each save."""
        return -np.expm1(-self.s)

    @cached_property
    def outputs(self) -> np.ndarray:
        """x (T, N, Q)."""
        return np.asarray(self.data["outputs"].to_numpy(), float)

    def array(self, name: str) -> np.ndarray | None:
        """A variable, or None where the folder does not have it."""
        return np.asarray(self.data[name].to_numpy(), float) if name in self.data else None

    @cached_property
    def minimum(self) -> float:
        """C_min, as far as the loss knows it."""
        return float(self.data.attrs.get("cost_minimum", 0.0))

    def excess(self, name: str = "cost") -> np.ndarray | None:
        """C − C_min over time."""
        cost = self.array(name)
        return None if cost is None else cost - self.minimum

    def curve(self, name: str) -> Curve | None:
        """Clock times and values of a variable, without what is not finite; None where there is nothing to draw."""
        values = self.array(name)
        if values is None:
            return None
        (dim,) = self.data[name].dims
        # The saves of a diagnosis are some of all saves, at exactly their times.
        times = self.t[np.searchsorted(self.data["time"].to_numpy(), self.data[dim].to_numpy())]
        seen = np.isfinite(values)
        return (times[seen], values[seen]) if seen.any() else None

    def over_seconds(self) -> Curve | None:
        """Seconds and C − C_min: at every stride, or of the start and the end alone."""
        noted = [(line["seconds"], line["cost"]) for line in self.progress]
        cost, seconds = self.excess(), self.array("seconds")
        if len(noted) > 1 and cost is not None:
            times, costs = np.array([(0.0, cost[0] + self.minimum), *noted], float).T
            return times, costs - self.minimum
        if cost is None or seconds is None:
            return None
        return np.array([0.0, float(seconds.max())]), cost[[0, -1]]

    def reason(self, name: str) -> str:
        """Why a variable is absent, as the run said, or as can be guessed."""
        guess = "the run folder does not hold it; an older version made it" if self.is_finished else NOT_YET
        return str(self.data.attrs.get(f"without_{name}", guess))


@dataclass(frozen=True, eq=False)
class RunPage:
    """One run folder, read once."""

    run: Run
    label: str
    config: dict[str, Any]
    series: tuple[Series, ...]
    missing: tuple[str, ...]
    """Flows of the configuration that are not finished."""
    damage: tuple[str, ...]
    """A line for each file that is not as it was written."""
    verified: Kept | None
    """Statements verified, or None where the folder has none."""
    environment: dict[str, Any]
    """Versions, device and such, where the folder says so."""
    progress: list[dict[str, Any]]
    """A dictionary for each stride of each flow, those of unfinished flows among them."""


def read_runs(paths: Sequence[str | PathLike[str]]) -> list[RunPage]:
    """Open and read run folders in the order given.

    Raises
    ------
    RunError
        A folder that is none, a damaged file, or one folder twice.
    """
    runs = [open_run(path) for path in paths]
    resolved = [run.path.resolve() for run in runs]
    for path in resolved:
        if resolved.count(path) > 1:
            raise RunError(f"run folder {path} is there {resolved.count(path)} times, expected each run once")
    return [_read(run, label, i, len(runs)) for i, (run, label) in enumerate(zip(runs, _labels(resolved), strict=True))]


def _read(run: Run, label: str, index: int, count: int) -> RunPage:
    config, flows, progress, damaged = run.config, run.summary.get("flows", {}), run.progress, run.damaged()
    asked = config.get("flows", [])
    asked = [str(flow) for flow in asked] if isinstance(asked, list) else []
    ending = f" · {label}" if count > 1 else ""
    series: list[Series] = []
    missing: list[str] = []
    for flow in dict.fromkeys([*flows, *asked]):
        lines, name = [line for line in progress if line.get("flow") == flow], dataset_name(flow)
        if f"{name}.nc" in damaged:
            continue
        # A summary may name a flow whose dataset was damaged and is being made again.
        if flow in flows and name in run.datasets:
            series.append(Series(f"{flow}{ending}", flow, index, run.trajectory(flow), flows[flow], lines))
            continue
        missing.append(flow)
        minimum = 0.0 if config.get("loss") == "squared_error" else next((one.minimum for one in series), None)
        if samples := _num_samples(run, flow, damaged) if lines else None:
            summary = {"result": "not finished", "samples": samples, "stats": {"num_steps": lines[-1]["steps"]}}
            data = _so_far(lines, minimum)
            series.append(Series(f"{flow} so far{ending}", flow, index, data, summary, lines, is_finished=False))
    kept, damage = read_kept(run.path), tuple(run.lines_of(damaged))
    return RunPage(run, label, config, tuple(series), tuple(missing), damage, kept, run.environment, progress)


def _num_samples(run: Run, flow: str, damaged: Collection[str]) -> int | None:
    """N of a flow without a dataset, of the summary or the first segment; None where neither is there."""
    if known := run.summary.get("flows", {}).get(flow):
        return int(known["samples"])
    first = run.of_flow(flow).segments / "000000.nc"
    if not first.is_file() or first.relative_to(run.path).as_posix() in damaged:
        return None
    return int(read_dataset(first).sizes["sample"])


def _so_far(lines: Sequence[dict[str, Any]], minimum: float | None) -> "xarray.Dataset":
    """What the stream of metrics says of a flow, as the variables that its dataset will have."""
    xarray = load_extra("xarray", "reports")

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if line.get(name) is None else line[name] for line in lines], float)

    known = {name: column(name) for name in STREAMED}
    variables = {name: ("time", values) for name, values in known.items() if np.isfinite(values).any()}
    data = xarray.Dataset(variables, coords={"time": column("t"), "s": ("time", column("s"))})
    data["seconds"] = float(lines[-1]["seconds"])
    return data.assign_attrs({} if minimum is None else {"cost_minimum": minimum})


def _labels(paths: list[Path]) -> list[str]:
    """Names of the folders; with their parents where two have the same name."""
    names = [path.name for path in paths]
    return [path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in paths]
