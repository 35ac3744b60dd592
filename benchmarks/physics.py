"""How near do networks come to the solutions of differential equations, in how many steps and seconds, by whom?

    OPENBLAS_NUM_THREADS=1 python benchmarks/physics.py [SECTION ...] [--seeds 0-9] [--methods ...] [--out PART.json]
    python benchmarks/merge.py PART.json ...

One step is one Jacobian or Gram matrix and its factorisation, rejected ones counted. Peers run on the same problem,
from the same parameters, in float64; the first call, mostly compilation, is apart. Quantiles are over seeds. All of
it takes an hour on two cores; pieces of some sections, seeds and methods are merged to the same records.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import parts  # noqa: E402
from physics_peers import LEVELS, PEERS, Clock, Look, Run  # noqa: E402

import chordflow as cf  # noqa: E402

PEER_SEEDS = 3
"""Peers run from so many of the seeds, and the curves of so many are kept."""


def ours(equation: cf.physics.Equation, params: Any, *, max_steps: int, **options: Any) -> Run:
    """``cf.fit``: error after each step. The error's own time is not counted."""
    looks: list[Look] = []
    unravel = equation.problem.ravel(params)[1]
    clock = Clock()
    clock.start()
    jax.block_until_ready(cf.fit(equation.problem, params, max_steps=1, **options).cost)
    first_call = clock.stop()
    clock = Clock()

    def look(state: cf.FitState) -> None:
        seconds = clock.stop()
        looks.append((int(state.num_steps), seconds, float(equation.error(unravel(state.theta)))))
        clock.start()

    clock.start()
    cf.fit(equation.problem, params, max_steps=max_steps, callback=look, **options)
    return Run(first_call, looks)


def row(method: str, seed: int, run: Run, options: argparse.Namespace) -> parts.Row:
    """A run for the part: its end, steps and seconds to each level, and a thin curve."""
    below = {f"{level:g}": next((look[:2] for look in run.looks if look[2] < level), None) for level in LEVELS}
    steps, seconds, error = run.looks[-1]
    found = {"method": method, "seed": seed, "first_call": run.first_call, "steps": steps, "seconds": seconds}
    found |= {"error": error, "below": below}
    return found | ({"curve": thin(run.looks)} if seed < PEER_SEEDS or options.smoke else {})


def thin(looks: list[Look], num: int = 100) -> list[Look]:
    """At most so many looks, the last among them."""
    keep = sorted({int(i) for i in np.linspace(0, len(looks) - 1, num)})
    return [looks[i] for i in keep]


def summary(rows: list[parts.Row]) -> dict[str, Any]:
    """Method → quantiles over seeds: error at the end, steps and seconds to each level."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {method: quantiles([row for row in rows if row["method"] == method]) for method in methods}


def quantiles(rows: list[parts.Row]) -> dict[str, Any]:
    """Of one method, rows in the order of their seeds."""
    ends = [row["error"] for row in rows]
    result: dict[str, Any] = {
        "seeds": len(rows),
        "end": {"median": float(np.median(ends)), "worst": max(ends), "best": min(ends)},
        **{key: [row[key] for row in rows] for key in ("seed", "steps", "seconds", "first_call", "load")},
    }
    for level in rows[0]["below"]:
        hits = [row["below"][level] for row in rows if row["below"][level] is not None]
        result[f"below {level}"] = {
            "seeds": len(hits),
            "steps": sorted(hit[0] for hit in hits),
            "median_seconds": float(np.median([hit[1] for hit in hits])) if hits else None,
        }
    return result | {"curves": [row["curve"] for row in rows if "curve" in row]}


def compare(
    equation: cf.physics.Equation,
    widths: tuple[int, ...],
    options: argparse.Namespace,
    *,
    max_steps: int,
    peer_seconds: float,
) -> Iterator[parts.Row]:
    """Ours from all seeds, the peers from some."""
    for seed in options.seeds:
        params = cf.physics.small_normal(jax.random.key(seed), widths)
        for name in [name for name in OURS if name in options.methods]:
            yield row(name, seed, ours(equation, params, max_steps=max_steps, **OURS[name]), options)
        for name in [name for name in PEERS if name in options.methods and seed < PEER_SEEDS]:
            yield row(name, seed, PEERS[name](equation, params, options.peer_seconds or peer_seconds), options)


def small(options: argparse.Namespace, **sizes: int) -> dict[str, Any]:
    """Sizes of an equation where it is only to be seen that everything runs."""
    return sizes if options.smoke else {}


def poisson_2d(options: argparse.Namespace) -> Iterator[parts.Row]:
    """Published problem: 2-32-1 tanh, 100 steps."""
    equation = cf.physics.poisson_2d(**small(options, num=5, num_test=9))
    return compare(equation, (2, 32, 1), options, max_steps=options.steps or 100, peer_seconds=15.0)


def heat(options: argparse.Namespace) -> Iterator[parts.Row]:
    """2-64-1 tanh, 200 steps."""
    equation = cf.physics.heat_1d(**small(options, num=4, num_test=9))
    widths = (2, 8 if options.smoke else 64, 1)
    return compare(equation, widths, options, max_steps=options.steps or 200, peer_seconds=30.0)


def burgers(options: argparse.Namespace) -> Iterator[parts.Row]:
    """2-40-40-40-1 tanh, uniform initial law: the error after the seconds of ours."""
    sizes = small(options, num_interior=20, num_boundary=4, num_test=9)
    equation, anew = cf.physics.burgers(**sizes), cf.physics.burgers(**sizes, drawn=True)
    for seed in options.seeds:
        params = cf.physics.uniform(jax.random.key(seed), (2, *(8 if options.smoke else 40,) * 3, 1))
        if DRAWN in options.methods:
            run = ours(anew, params, max_steps=options.steps or 100, key=jax.random.key(seed))
            yield row(DRAWN, seed, run, options)
        seconds = options.peer_seconds
        if "cf.fit" in options.methods:
            run = ours(equation, params, max_steps=options.steps or 100)
            seconds = seconds or run.looks[-1][1]
            yield row("cf.fit", seed, run, options)
        for name in [name for name in PEERS if name in options.methods]:
            yield row(name, seed, PEERS[name](equation, params, seconds), options)


def needs_seconds(options: argparse.Namespace) -> None:
    """Peers on Burgers' equation take the seconds of `cf.fit`, or those that are given."""
    peers = set(BURGERS) & set(options.methods or ()) - {"cf.fit", DRAWN}
    if peers and "cf.fit" not in options.methods and not options.peer_seconds:
        raise ValueError("burgers: peers take the seconds of cf.fit: add it to --methods, or give --peer-seconds")


def poisson_5d(options: argparse.Namespace) -> Iterator[parts.Row]:
    """5-64-64-48-48-1 tanh, 3000 + 500 points drawn anew for each step, and what the step costs otherwise."""
    equation = cf.physics.poisson(**small(options, num_interior=20, num_boundary=5, num_test=50))
    widths = (5, 8, 1) if options.smoke else (5, 64, 64, 48, 48, 1)
    for seed in options.seeds:
        params = cf.physics.uniform(jax.random.key(seed), widths)
        if "cf.fit" in options.methods:
            run = ours(equation, params, max_steps=options.steps or 67, key=jax.random.key(seed + 1))
            yield row("cf.fit", seed, run, options)
        if DENSE in options.methods:
            yield {"method": DENSE, "seed": seed, "seconds": dense_step_seconds(equation, params)}


FIVE_AIMS = "cf.fit, reuses=4"
OURS: dict[str, dict[str, int]] = {"cf.fit": {}, FIVE_AIMS: {"reuses": 4}}
"""Ours by name, with its options: the second aims five times with each decomposition."""
DRAWN = "cf.fit, drawn points"
DENSE = "dense step"


def dense_step_seconds(equation: cf.physics.Equation, params: Any) -> float:
    """D by vmap(grad), DDᵀ and its eigendecomposition: least of two after a first call."""

    @jax.jit
    def dense(params: Any) -> Any:
        blocks = []
        for term in equation.problem.terms:
            rows = jax.vmap(lambda z, fn=term.fn: jax.grad(lambda p: fn(p, z)[0])(params))(term.samples)
            blocks.append(jnp.concatenate([leaf.reshape(len(term.targets), -1) for leaf in jax.tree.leaves(rows)], 1))
        D = jnp.concatenate(blocks)
        return jnp.linalg.eigh(D @ D.T)

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(dense(params))
        return time.perf_counter() - start

    seconds()
    return min(seconds(), seconds())


def with_dense_step(rows: list[parts.Row]) -> dict[str, Any]:
    """Ours, and by how much its steps are quicker."""
    own, dense = ([row for row in rows if (row["method"] == DENSE) == is_dense] for is_dense in (False, True))
    results = summary(own)
    if own and dense:
        per_step = float(np.median([row["seconds"] / row["steps"] for row in own]))
        naive = float(np.median([row["seconds"] for row in dense]))
        results |= {"seconds_per_step": per_step, "seconds_per_dense_step": naive, "ratio": naive / per_step}
    return results


METHODS = ("cf.fit", *PEERS)
BURGERS = ("cf.fit", DRAWN, "scipy L-BFGS", "optax Adam")
SECTIONS = {
    "poisson_2d": parts.Section(poisson_2d, summary, range(30), METHODS),
    "heat": parts.Section(heat, summary, range(10), ("cf.fit", FIVE_AIMS, *PEERS)),
    "burgers": parts.Section(burgers, summary, range(3), BURGERS, check=needs_seconds),
    "poisson_5d": parts.Section(poisson_5d, with_dense_step, range(1), ("cf.fit", DENSE)),
}


def main(words: list[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = parts.parser(__doc__, SECTIONS)
    parser.add_argument("--steps", type=int, help="of cf.fit (default: 100, 200, 100, 67)")
    parser.add_argument("--peer-seconds", type=float, help="default: 15 s, 30 s, those of cf.fit")
    parts.run("physics", SECTIONS, parser, words)


if __name__ == "__main__":
    main()
