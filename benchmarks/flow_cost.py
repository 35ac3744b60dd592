"""What does a flow cost? Compile seconds, seconds per right-hand side, and steps to tolerance, against N, width, depth.

Run as ``python benchmarks/flow_cost.py [--smoke] [--out FILE]``; the record is JSON with the environment beside it.
"""

import argparse
import statistics
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from environment import write_record

import chordflow as cf
from chordflow import data, models, theory
from chordflow.geometry import rank_policy
from chordflow.solve import Cholesky, WeightedJacobian, realise

SIZES = [(50, 64, 1), (100, 64, 1), (200, 64, 1), (100, 32, 1), (100, 128, 1), (100, 64, 2), (100, 64, 4)]
SMOKE = [(5, 8, 1)]


def make_problem(samples: int, width: int, depth: int) -> tuple[cf.Problem, Any]:
    """Digits with a tanh network of ``depth`` hidden layers."""
    digits = data.load("digits", samples=samples)
    model = models.mlp((64, *(width,) * depth, 10))
    return cf.Problem(model.apply, digits.inputs, digits.targets), model.params


def right_hand_side(problem: cf.Problem, params: Any, flow: cf.Flow) -> dict[str, float]:
    """Compile seconds, and the median of seven evaluations after a warm-up."""
    policy = rank_policy(problem, params, flow.filter)

    @eqx.filter_jit
    def velocity(params: Any, lam: jax.Array) -> jax.Array:
        A = WeightedJacobian.at(problem, params)
        u = problem.flatten(problem.descent(problem.outputs(params)))
        return realise(flow.filter, Cholesky(), A, A.root * u, lam)

    start = time.perf_counter()
    jax.block_until_ready(velocity(params, policy.lam))
    first = time.perf_counter() - start
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(velocity(params, policy.lam))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {"compile_seconds": first - median, "seconds": median, "seconds_min": min(seconds)}


def steps_to_tolerance(problem: cf.Problem, params: Any, rtols: list[float]) -> list[dict[str, float]]:
    """Steps, deviation from the chord and seconds of the straight flow; the first call's compilation apart."""
    records = []
    cf.evolve(problem, params, cf.straight(), rtol=1e-2, ts=np.linspace(0, 1, 11))
    for rtol in rtols:
        start = time.perf_counter()
        traj = jax.block_until_ready(cf.evolve(problem, params, cf.straight(), rtol=rtol, ts=np.linspace(0, 1, 11)))
        seconds = time.perf_counter() - start
        x0 = traj.outputs[0]
        chord = theory.linear_interpolation(x0, jnp.asarray(problem.targets), traj.ts)
        deviation = float(jnp.abs(traj.outputs - chord).max() / jnp.abs(x0 - problem.targets).max())
        steps = int(traj.stats["num_steps"])
        records.append({"rtol": rtol, "steps": steps, "deviation": deviation, "seconds": seconds})
    return records


def measure(samples: int, width: int, depth: int, rtols: list[float]) -> dict[str, Any]:
    """One size: the right-hand sides of the named flows and the straight flow's work-precision curve."""
    problem, params = make_problem(samples, width, depth)
    flows = {"standard": cf.standard(), "adapted": cf.adapted(), "interpolated(0.5)": cf.interpolated(0.5)}
    return {
        "samples": samples,
        "width": width,
        "depth": depth,
        "n": problem.num_outputs,
        "K": int(problem.ravel(params)[0].size),
        "right_hand_side": {name: right_hand_side(problem, params, flow) for name, flow in flows.items()},
        "straight": steps_to_tolerance(problem, params, rtols),
        "standard_steps_expected_to_s=N": cf.expected_steps(problem, params, cf.standard(), float(samples)),
    }


def main() -> None:
    """Measure all sizes and write the record."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one tiny size, to see that it runs")
    parser.add_argument("--out", default="benchmarks/records/flow_cost.json")
    arguments = parser.parse_args()
    sizes, rtols = (SMOKE, [1e-4]) if arguments.smoke else (SIZES, [1e-4, 1e-6, 1e-8])
    records = []
    for size in sizes:
        records.append(measure(*size, rtols))
        adapted = records[-1]["right_hand_side"]["adapted"]
        print(f"N, width, depth = {size}: {adapted['seconds']:.4f} s per right-hand side, {records[-1]['straight']}")
    write_record(arguments.out, "flow_cost", records)


if __name__ == "__main__":
    main()
