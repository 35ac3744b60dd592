"""One flow of a run, integrated in strides and kept on the way: metrics, segments of its saves, checkpoints."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from chordflow import data
from chordflow.comparison import Chord, clock_times, gradient_times
from chordflow.integration import arrange
from chordflow.interruption import Request, Stopped
from chordflow.parameters import tree_path
from chordflow.problem import Problem
from chordflow.record import Run
from chordflow.results import RESULTS, is_okay
from chordflow.setting import Plan, Setting
from chordflow.strides import Course, Place, Stride
from chordflow.trajectory import Trajectory, labelled, unlabelled
from chordflow.velocities import Straight

STRIDE_SECONDS = 0.5
"""A stride lasts about so long: it is what a display waits for, and Ctrl-C."""
CHECKPOINT_SHARE = 0.015
"""Share of the time that checkpoints may take, unless one after each stride is asked for (checkpoint_seconds = 0)."""
REACH_SHARE = 0.01
"""Share of the time that the effective dimension may take, which costs about a step."""

Saves = Mapping[str, Callable[[Array, PyTree], Any] | None]
Watcher = Callable[[Mapping[str, Any]], object]
"""What is told of each event of a run: a dictionary that says in ``event`` what it is."""


def saves_of(setting: Setting) -> Saves:
    """What each flow of a run saves."""
    saves: Saves = {"outputs": None, "cost": None, "params": None}
    if len(setting.dataset.test_targets):
        return {**saves, **_test_saves(setting.apply, setting.dataset, setting.loss)}
    return saves


def _test_saves(apply: Callable, dataset: data.Dataset, loss: Any) -> Saves:
    """Held-out cost, and accuracy for classification, as functions of (t, params)."""
    inputs, targets = jnp.asarray(dataset.test_inputs), jnp.asarray(dataset.test_targets)

    def outputs(params: PyTree) -> Array:
        return jax.vmap(lambda sample: apply(params, sample))(inputs)

    def cost(t: Array, params: PyTree) -> Array:
        del t
        return jnp.mean(jax.vmap(loss.value)(outputs(params), targets))

    def accuracy(t: Array, params: PyTree) -> Array:
        del t
        hits = jnp.argmax(outputs(params), axis=1) == jnp.argmax(targets, axis=1)
        return jnp.mean(hits.astype(targets.dtype))

    return {"test_cost": cost} | ({"test_accuracy": accuracy} if dataset.task == "classification" else {})


def save_times(plan: Plan, count: int) -> np.ndarray:
    """Where something happens: towards t = 1 of the chord for straight, from the start for descent flows."""
    u = np.linspace(0.0, 1.0, count)
    if isinstance(plan.flow.velocity, Straight):
        return 1.0 - (1.0 - u) ** 2
    return plan.t1 * (u**2 if plan.variable == "s" else u)


def _measured(problem: Problem, saves: Saves, t: Any, params: PyTree) -> dict[str, Any]:
    """One save, outside of a compiled run."""
    arrays = eqx.filter(params, eqx.is_array)  # as they are saved: an Equinox module holds functions too
    given = {"outputs": problem.outputs, "cost": problem.cost, "params": lambda _: arrays}
    return {name: given[name](params) if fn is None else fn(t, params) for name, fn in saves.items()}


def with_last_state(problem: Problem, trajectory: Trajectory, saves: Saves) -> Trajectory:
    """A run that ended early between two saves, with the last good state as one more save."""
    t, params = trajectory.stats["t_last"], trajectory.params
    if bool(is_okay(trajectory.result)) or (len(trajectory.ts) and not bool(t > trajectory.ts[-1])):
        return trajectory
    last = _measured(problem, saves, t, params)
    rows = jax.tree.map(lambda saved, row: jnp.concatenate([saved, row[None]]), trajectory.saved, last)
    ts = jnp.concatenate([trajectory.ts, t[None]])
    return eqx.tree_at(lambda tr: (tr.ts, tr.saved), trajectory, (ts, rows))


STATS = ("t_last", "event", "num_steps", "num_accepted", "num_rejected", "sigma_max")
STATS_OF_INVERSE = (
    "lam",
    *(f"{name}_{end}" for name in ("effective_dimension", "relative_residual") for end in ("start", "end")),
)


def restored(setting: Setting, plan: Plan, saves: Saves, dataset: Any) -> Trajectory:
    """The trajectory of a finished flow from its dataset; its parameters are those of the last save."""
    problem, params = plan.problem, setting.params
    zero = jnp.zeros((), problem.ravel(params)[0].dtype)
    struct = eqx.filter_eval_shape(lambda t, params: _measured(problem, saves, t, params), zero, params)
    ts, rows = unlabelled(dataset, struct)
    saved = jax.tree.map(jnp.asarray, rows)
    last = eqx.combine(jax.tree.map(lambda leaf: leaf[-1], saved["params"]), params)
    names = (*STATS, *(STATS_OF_INVERSE if plan.flow.filter.inverts else ()))
    stats = {name: jnp.asarray(dataset.attrs[name]) for name in names}
    result = RESULTS._name_to_item[dataset.attrs["result"]]
    return Trajectory(jnp.asarray(ts), saved, last, result, stats, problem, None)


@dataclass
class _Way:
    """How far a flow has come: its place, everything saved, and the numbers that are shown."""

    place: Place
    rows: list[tuple[np.ndarray, dict[str, Any]]] = field(default_factory=list)
    pending: list[tuple[np.ndarray, dict[str, Any]]] = field(default_factory=list)
    """Of the rows, those in no segment yet."""
    seconds: float = 0.0
    deviation: float | None = None
    dimension: float | None = None
    num_checkpoints: int = 0
    num_segments: int = 0

    def arrays(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        shown = {"seconds": self.seconds, "deviation": self.deviation, "dimension": self.dimension}
        numbers = {name: np.asarray(np.nan if value is None else value, float) for name, value in shown.items()}
        return _named(self.place) | numbers


def _named(place: Place) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(place)
    return {"_".join(str(key) for key in tree_path(path)): leaf for path, leaf in leaves}


def _number(array: np.ndarray) -> float | None:
    return None if np.isnan(array) else float(array)


def _joined(rows: list[tuple[np.ndarray, dict[str, Any]]]) -> tuple[np.ndarray, dict[str, Any]]:
    ts, saved = zip(*rows, strict=True)
    return np.concatenate(ts), jax.tree.map(lambda *leaves: np.concatenate(leaves), *saved)


class Recorder:
    """Integrates one flow into a run folder, from its last good checkpoint if it has one.

    Parameters
    ----------
    setting, plan, saves
        What is integrated and saved.
    folder
        Where it is kept; held by the caller.
    watchers
        Told of every stride.
    request
        Looked at after every stride: once it is made, a checkpoint is written and Stopped raised.
    """

    def __init__(
        self, setting: Setting, plan: Plan, saves: Saves, folder: Run, watchers: Collection[Watcher], request: Request
    ):
        config = setting.config
        self.plan, self.folder, self.watchers, self.request = plan, folder, watchers, request
        self.course = Course(
            arrange(
                plan.problem,
                setting.params,
                plan.flow,
                ts=save_times(plan, config.saves),
                clock=plan.clock,
                rtol=config.rtol,
                atol=config.atol,
                max_steps=config.max_steps,
                save=saves,
            )
        )
        self.interval = config.checkpoint_seconds
        self.progress = folder.of_flow(plan.name)
        chord = Chord.of(plan.problem, plan.problem.outputs(setting.params))
        self.chord = chord if chord is not None and chord.length > 0 else None
        self.way: _Way | None = None

    def begin(self, damaged: Collection[str] = ()) -> list[str]:
        """Go to the last checkpoint that is whole, else to the start; lines that say so."""
        struct = self.course.struct()
        like = _Way(struct).arrays()
        checkpoint, reasons = self.progress.latest(like, damaged)
        if checkpoint is None:
            self.way = _Way(self.course.start())
            return [*reasons, f"{self.plan.name}: there is no checkpoint, it starts at the beginning"]
        arrays = checkpoint.arrays
        leaves = [jnp.asarray(arrays[name]) for name in _named(struct)]
        rows = [unlabelled(segment, self.course.saved_struct()) for segment in checkpoint.segments]
        place = jax.tree.unflatten(jax.tree.structure(struct), leaves)
        self.way = _Way(
            place,
            rows,
            seconds=float(arrays["seconds"]),
            deviation=_number(arrays["deviation"]),
            dimension=_number(arrays["dimension"]),
            num_checkpoints=checkpoint.number + 1,
            num_segments=len(rows),
        )
        steps, t = int(place.num_steps), float(place.t)
        return [*reasons, f"{self.plan.name}: goes on at {self.plan.variable} = {t:g}, after {steps} steps"]

    def integrate(self) -> tuple[Trajectory, float]:
        """Go to the end; the trajectory and the seconds it took.

        Raises
        ------
        Stopped
            If that was requested, at a checkpoint.
        """
        way, attempts = self._way, 1
        kept = asked = time.perf_counter()
        wait = self.interval
        while self.course.goes_on(way.place):
            begin = time.perf_counter()
            stride = self.course.stride(way.place, attempts)
            taken = time.perf_counter() - begin
            if begin - asked > taken / attempts / REACH_SHARE or way.dimension is None:
                asked = self._ask_dimension(stride)
            self._advance(stride, time.perf_counter() - begin)
            attempts = int(np.clip(attempts * STRIDE_SECONDS / taken, 1, 2 * attempts))
            over = not self.course.goes_on(way.place)
            if over or self.request or time.perf_counter() - kept >= wait:
                begin = time.perf_counter()
                self._keep()
                kept = time.perf_counter()
                wait = max(self.interval, (kept - begin) / CHECKPOINT_SHARE) if self.interval else 0.0
            if self.request and not over:
                raise Stopped(self.request.signal_number or 0, f"stopped in {self.plan.name}")
        # A run that ends before its first save has none.
        nothing = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), self.course.saved_struct())
        rows = _joined([(np.zeros(0), nothing), *way.rows])
        return self.course.trajectory(way.place, *rows), way.seconds

    @property
    def _way(self) -> _Way:
        assert self.way is not None, "begin() comes first"
        return self.way

    def _ask_dimension(self, stride: Stride) -> float:
        if self.plan.flow.filter.inverts:
            self._way.dimension = self.course.reach(stride.place.t, stride.place.theta)[0]
        return time.perf_counter()

    def _advance(self, stride: Stride, seconds: float) -> None:
        """Take a stride into account, and tell of it."""
        way, t = self._way, float(stride.place.t)
        way.place, way.seconds = stride.place, way.seconds + seconds
        if len(stride.ts):
            way.rows.append((stride.ts, stride.saved))
            way.pending.append((stride.ts, stride.saved))
        ts = jnp.asarray(np.append(stride.ts, t))
        when = (self.plan.flow, self.plan.clock, ts, float(self.plan.problem.num_samples))
        if self.chord is not None:
            outputs = np.concatenate([stride.saved["outputs"], np.asarray(stride.outputs)[None]])
            deviation = float(self.chord.deviations(clock_times(*when), outputs).max())
            way.deviation = max(deviation, way.deviation or 0.0)
        entry = {
            "flow": self.plan.name,
            "t": t,
            "s": float(gradient_times(*when)[-1]),
            "cost": stride.cost,
            "deviation": way.deviation,
            "steps": int(way.place.num_steps),
            "rejected": int(way.place.num_steps - way.place.num_accepted),
            "effective_dimension": way.dimension,
            "seconds": way.seconds,
        }
        self.folder.write_progress(entry)
        for watcher in self.watchers:
            watcher({"event": "metrics", **entry})

    def _keep(self) -> None:
        """Write a checkpoint, with a segment of what was saved since the last."""
        way, segment = self._way, None
        if way.pending:
            segment = labelled(*_joined(way.pending))
            way.num_segments += 1
        self.progress.keep(way.num_checkpoints, way.arrays(), way.num_segments, segment)
        way.num_checkpoints += 1
        way.pending = []
