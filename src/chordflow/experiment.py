"""A run from its configuration: build the objects, integrate the flows, compare with the theory, keep everything."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from chordflow import data, figures, record
from chordflow.comparison import compare, table_lines
from chordflow.config import Config, ConfigError
from chordflow.diagnosis import FlowRun, draw, flow_dataset, flow_summary, spectra
from chordflow.integration import evolve, expected_steps
from chordflow.problem import Problem
from chordflow.results import RESULTS, is_okay
from chordflow.setting import Plan, Setting
from chordflow.trajectory import Trajectory
from chordflow.velocities import Straight

Say = Callable[[str], None]


def run(config: Config, *, say: Say = print, progress: bool = False) -> Path:
    """Do what a configuration says and return the run folder; the folder exists before the first computation.

    A flow that cannot run on the problem is named with its reason and left out; a flow that ends early keeps what it
    reached, its last good state as the last save. Only if no flow at all can run does it raise, before there is a
    folder.
    """
    setting = Setting.build(config)
    obstacles = {plan: plan.obstacle(setting.params) for plan in map(setting.plan, config.flows)}
    plans = [plan for plan, obstacle in obstacles.items() if obstacle is None]
    for plan, obstacle in obstacles.items():
        if obstacle is not None and not plans:
            raise ConfigError(f"flows = {','.join(config.flows)}: none can run on this problem. {obstacle}")
        if obstacle is not None:
            say(f"{plan.name}: left out. {obstacle}")
    folder = make_folder(config, config.data.name)
    say(f"run folder {folder.path}")
    runs: list[FlowRun] = []
    for plan in plans:
        runs.append(done := run_flow(setting, plan, say=say, progress=progress))
        folder.write_dataset(record.dataset_name(plan.name), flow_dataset(done))
        folder.write_summary({"flows": {r.plan.name: flow_summary(r) for r in runs}})
    for line in table_lines({f"{r.plan.name} N={int(r.num_samples)}": r.comparison.rows for r in runs}):
        say(line)
    for name, figure in draw(runs).items():
        figures.save(figure, folder.path / name)
    say(f"config, summary, datasets and figures: {folder.path}")
    return folder.path


def run_flow(setting: Setting, plan: Plan, *, say: Say = print, progress: bool = False) -> FlowRun:
    """Integrate one flow and compare it with the theory."""
    config, name, problem = setting.config, plan.name, plan.problem
    n, K = problem.num_outputs, problem.ravel(setting.params)[0].size
    steps = expected_steps(problem, setting.params, plan.flow, plan.t1, clock=plan.clock)
    expected = f"about {steps:.0f} steps for stability" if steps > 50 else "some tens of steps for accuracy"
    N = int(problem.num_samples)
    say(f"{name}: {N} samples, n = {n}, K = {K}, to {plan.variable} = {plan.t1:g}; expected {expected}")
    saves = _saves(setting)
    start = time.perf_counter()
    trajectory = evolve(
        problem,
        setting.params,
        plan.flow,
        ts=_save_times(plan, config.saves),
        clock=plan.clock,
        rtol=config.rtol,
        atol=config.atol,
        max_steps=config.max_steps,
        save=saves,
        progress=progress,
        throw=False,
    )
    jax.block_until_ready(trajectory.ts)
    seconds = time.perf_counter() - start
    stats = trajectory.stats
    say(f"{name}: {int(stats['num_steps'])} steps ({int(stats['num_rejected'])} rejected) in {seconds:.1f} s")
    if not bool(is_okay(trajectory.result)):
        say(f"{name}: ended at {plan.variable} = {float(stats['t_last']):g}. {RESULTS[trajectory.result]}")
        trajectory = _with_last_state(problem, trajectory, saves)
    spectrum_times, sigmas = spectra(problem, trajectory)
    comparison = compare(problem, setting.params, plan.flow, trajectory, plan.clock)
    return FlowRun(plan, trajectory, comparison, spectrum_times, sigmas, seconds)


def _with_last_state(problem: Problem, trajectory: Trajectory, saves: dict[str, Any]) -> Trajectory:
    """A run that ended early between two saves, with the last good state as one more save."""
    t, params = trajectory.stats["t_last"], trajectory.params
    if len(trajectory.ts) and not bool(t > trajectory.ts[-1]):
        return trajectory
    arrays = eqx.filter(params, eqx.is_array)  # as they are saved: an Equinox module holds functions too
    given = {"outputs": problem.outputs, "cost": problem.cost, "params": lambda _: arrays}
    last = {name: given[name](params) if fn is None else fn(t, params) for name, fn in saves.items()}
    rows = jax.tree.map(lambda saved, row: jnp.concatenate([saved, row[None]]), trajectory.saved, last)
    ts = jnp.concatenate([trajectory.ts, t[None]])
    return eqx.tree_at(lambda tr: (tr.ts, tr.saved), trajectory, (ts, rows))


def _save_times(plan: Plan, count: int) -> np.ndarray:
    """Where something happens: towards t = 1 of the chord for straight, from the start for descent flows."""
    u = np.linspace(0.0, 1.0, count)
    if isinstance(plan.flow.velocity, Straight):
        return 1.0 - (1.0 - u) ** 2
    return plan.t1 * (u**2 if plan.variable == "s" else u)


def _saves(setting: Setting) -> dict[str, Any]:
    saves: dict[str, Any] = {"outputs": None, "cost": None, "params": None}
    if len(setting.dataset.test_targets):
        saves |= _test_saves(setting.apply, setting.dataset, setting.loss)
    return saves


def _test_saves(apply: Callable, dataset: data.Dataset, loss: Any) -> dict[str, Any]:
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


def make_folder(config: Config, name: str) -> record.Run:
    """The folder ``out`` of a configuration, or ``runs/NAME-TIME`` where it names none."""
    out = config.out or _free(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    return record.create(out, config.to_dict())


def _free(out: str) -> str:
    """A default folder that is not taken: two runs within a second get different ones."""
    taken = (out, *(f"{out}-{i}" for i in range(2, 1000)))
    return next(path for path in taken if not Path(path).exists())
