"""How near do networks come to the solutions of differential equations, in how many steps and seconds, by whom?

    python benchmarks/physics.py [--only poisson_2d heat burgers poisson_5d] [--seeds 30] [--out benchmarks/records]

One step is one Jacobian or Gram matrix and its factorisation, rejected ones counted. Peers run on the same problem,
from the same parameters, in float64, in the same process; compile time is apart. Quantiles are over seeds.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import scipy.optimize  # noqa: E402
from environment import write_record  # noqa: E402

import chordflow as cf  # noqa: E402

Row = tuple[int, float, float]
"""Steps, seconds and L² error so far."""


def ours(equation: cf.physics.Equation, params: Any, *, max_steps: int, **options: Any) -> list[Row]:
    """``cf.fit``: error after each step. The error's own time is not counted."""
    rows: list[Row] = []
    unravel = equation.problem.ravel(params)[1]
    cf.fit(equation.problem, params, max_steps=1, **options)  # compiles
    clock = Clock()

    def look(state: cf.FitState) -> None:
        seconds = clock.stop()
        rows.append((int(state.num_steps), seconds, float(equation.error(unravel(state.theta)))))
        clock.start()

    clock.start()
    cf.fit(equation.problem, params, max_steps=max_steps, callback=look, **options)
    return rows


class Clock:
    """Seconds that add up over several stretches."""

    def __init__(self) -> None:
        self.total, self.begun = 0.0, 0.0

    def start(self) -> None:
        """Go on."""
        self.begun = time.perf_counter()

    def stop(self) -> float:
        """Pause; all seconds so far."""
        self.total += time.perf_counter() - self.begun
        return self.total


def iterate(
    equation: cf.physics.Equation, theta: Any, states: Iterator[Any], *, seconds: float, every: int = 1
) -> list[Row]:
    """Run a peer, an iterator over its parameters, for so many seconds; look at the error every so many steps."""
    rows: list[Row] = [(0, 0.0, float(equation.error(theta)))]
    clock = Clock()
    clock.start()
    for count, params in enumerate(states, start=1):
        if count % every:
            continue
        jax.block_until_ready(params)
        spent = clock.stop()
        rows.append((count, spent, float(equation.error(params))))
        if spent > seconds:
            break
        clock.start()
    return rows


def adam(equation: cf.physics.Equation, params: Any, *, rate: float = 1e-3, chunk: int = 200) -> Iterator[Any]:
    """Optax Adam, 200 steps per compiled call, with exponential decay by ten every 15 000 steps."""
    tx = optax.adam(optax.exponential_decay(rate, 15000, 0.1))

    @jax.jit
    def many(params: Any, state: Any) -> tuple[Any, Any]:
        def one(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(equation.problem.cost)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, state), None, length=chunk)[0]

    state = tx.init(params)
    jax.block_until_ready(many(params, state))
    while True:
        params, state = many(params, state)
        for _ in range(chunk):
            yield params


def scipy_minimiser(method: str) -> Callable[..., list[Row]]:
    """SciPy's BFGS or L-BFGS-B with jax's gradients."""

    def run(equation: cf.physics.Equation, params: Any, *, seconds: float) -> list[Row]:
        theta, unravel = equation.problem.ravel(params)
        value = jax.jit(jax.value_and_grad(lambda v: equation.problem.cost(unravel(v))))
        jax.block_until_ready(value(theta))
        rows: list[Row] = []
        clock = Clock()

        def look(point: np.ndarray) -> None:
            spent = clock.stop()
            if len(rows) % 20 == 0 or spent > seconds:
                rows.append((len(rows) + 1, spent, float(equation.error(unravel(jnp.asarray(point))))))
            else:
                rows.append((len(rows) + 1, spent, rows[-1][2]))
            if spent > seconds:
                raise StopIteration
            clock.start()

        def fun(point: np.ndarray) -> tuple[float, np.ndarray]:
            cost, gradient = value(jnp.asarray(point))
            return float(cost), np.asarray(gradient)

        clock.start()
        options = {"maxiter": 10**6, "gtol": 1e-14} | ({"maxfun": 10**7, "ftol": 0} if method == "L-BFGS-B" else {})
        with contextlib.suppress(StopIteration):
            scipy.optimize.minimize(fun, np.asarray(theta), jac=True, method=method, callback=look, options=options)
        return rows

    return run


def natural_gradient(equation: cf.physics.Equation, params: Any) -> Iterator[Any]:
    """The published energy natural gradient: least squares with DᵀD as its authors' code, line search over 2^-k."""
    theta, unravel = equation.problem.ravel(params)
    root = jnp.sqrt(equation.problem.inner_product)
    targets = equation.problem.flatten(equation.problem.targets)

    @jax.jit
    def step(theta: Any) -> Any:
        point = unravel(theta)
        A = root[:, None] * equation.problem.jacobian(point).as_matrix()
        r = root * (targets - equation.problem.flatten(equation.problem.outputs(point)))
        direction = jnp.linalg.lstsq(A.T @ A, A.T @ r)[0]
        scales = 0.5 ** jnp.arange(31, dtype=theta.dtype)
        costs = jax.vmap(lambda t: equation.problem.cost(unravel(theta + t * direction)))(scales)
        return theta + scales[jnp.argmin(costs)] * direction

    jax.block_until_ready(step(theta))
    while True:
        theta = step(theta)
        yield unravel(theta)


def levenberg_marquardt(equation: cf.physics.Equation, params: Any) -> Iterator[Any]:
    """Optimistix's Levenberg–Marquardt (QR), one step of its interactive interface at a time."""
    import equinox as eqx
    import optimistix as optx

    theta, unravel = equation.problem.ravel(params)
    root = jnp.sqrt(equation.problem.inner_product / equation.problem.num_samples)
    targets = equation.problem.flatten(equation.problem.targets)

    def residuals(theta: Any, args: Any) -> Any:
        del args
        return root * (equation.problem.flatten(equation.problem.outputs(unravel(theta))) - targets), None

    solver = optx.LevenbergMarquardt(rtol=1e-14, atol=1e-14)
    struct = jax.eval_shape(lambda: residuals(theta, None))
    state = solver.init(residuals, theta, None, {}, struct[0], None, frozenset())
    step = eqx.filter_jit(lambda y, s: solver.step(residuals, y, None, {}, s, frozenset())[:2])
    jax.block_until_ready(jax.tree.leaves(step(theta, state)))
    while True:
        theta, state = step(theta, state)
        yield unravel(theta)


PEERS: dict[str, Callable[[cf.physics.Equation, Any, float], list[Row]]] = {
    "energy natural gradient": lambda e, p, s: iterate(e, p, natural_gradient(e, p), seconds=s),
    "optimistix Levenberg–Marquardt": lambda e, p, s: iterate(e, p, levenberg_marquardt(e, p), seconds=s),
    "scipy BFGS": lambda e, p, s: scipy_minimiser("BFGS")(e, p, seconds=s),
    "scipy L-BFGS": lambda e, p, s: scipy_minimiser("L-BFGS-B")(e, p, seconds=s),
    "optax Adam": lambda e, p, s: iterate(e, p, adam(e, p), seconds=s, every=200),
}


def summary(runs: list[list[Row]], levels: tuple[float, ...]) -> dict[str, Any]:
    """Quantiles over seeds: error at the end, and steps and seconds to each level (None where not reached)."""

    def first(rows: list[Row], level: float) -> Row | None:
        return next((row for row in rows if row[2] < level), None)

    ends = [rows[-1][2] for rows in runs]
    result: dict[str, Any] = {
        "seeds": len(runs),
        "end": {"median": float(np.median(ends)), "worst": max(ends), "best": min(ends)},
        "steps": [rows[-1][0] for rows in runs],
        "seconds": [rows[-1][1] for rows in runs],
    }
    for level in levels:
        hits = [hit for rows in runs if (hit := first(rows, level)) is not None]
        result[f"below {level:g}"] = {
            "seeds": len(hits),
            "steps": sorted(hit[0] for hit in hits),
            "median_seconds": float(np.median([hit[1] for hit in hits])) if hits else None,
        }
    return result


def compare(
    equation: cf.physics.Equation,
    widths: tuple[int, ...],
    levels: tuple[float, ...],
    *,
    seeds: int,
    max_steps: int,
    peer_seeds: int,
    peer_seconds: float,
    init: Callable[..., Any] = cf.physics.small_normal,
    **options: Any,
) -> dict[str, Any]:
    """Ours on all seeds, the peers on some."""
    start = [init(jax.random.key(seed), widths) for seed in range(seeds)]
    runs = [ours(equation, params, max_steps=max_steps, **options) for params in start]
    results = {"cf.fit": summary(runs, levels) | {"curves": [thin(rows) for rows in runs[:peer_seeds]]}}
    print("cf.fit", {k: v for k, v in results["cf.fit"].items() if k not in ("curves", "steps", "seconds")}, flush=True)
    for name, peer in PEERS.items():
        runs = [peer(equation, params, peer_seconds) for params in start[:peer_seeds]]
        results[name] = summary(runs, levels) | {"curves": [thin(rows) for rows in runs]}
        print(name, results[name]["end"], flush=True)
    return results


def thin(rows: list[Row], num: int = 100) -> list[Row]:
    """At most so many rows of a curve, the last among them."""
    keep = sorted({int(i) for i in np.linspace(0, len(rows) - 1, num)})
    return [rows[i] for i in keep]


def poisson_2d(options: argparse.Namespace) -> dict[str, Any]:
    """Published problem: 2-32-1 tanh, 100 steps."""
    return compare(
        cf.physics.poisson_2d(),
        (2, 32, 1),
        (1e-3, 1e-5, 1e-6),
        seeds=options.seeds,
        max_steps=100,
        peer_seeds=min(options.peer_seeds, options.seeds),
        peer_seconds=options.peer_seconds,
    )


def heat(options: argparse.Namespace) -> dict[str, Any]:
    """2-64-1 tanh, 200 steps, each aiming five times with its decomposition."""
    return compare(
        cf.physics.heat_1d(),
        (2, 64, 1),
        (1e-3, 1e-5, 1e-6),
        seeds=min(10, options.seeds),
        max_steps=200,
        peer_seeds=min(options.peer_seeds, options.seeds),
        peer_seconds=options.peer_seconds,
        reuses=4,
    )


def burgers(options: argparse.Namespace) -> dict[str, Any]:
    """2-40-40-40-1 tanh, uniform initial law: the error after equal seconds."""
    equation = cf.physics.burgers()
    params = cf.physics.uniform(jax.random.key(0), (2, 40, 40, 40, 1))
    rows = ours(equation, params, max_steps=options.burgers_steps)
    seconds = rows[-1][1]
    results = {"cf.fit": summary([rows], (1e-2, 1e-3)) | {"curves": [thin(rows)]}}
    for name in ("scipy L-BFGS", "optax Adam"):
        run = PEERS[name](equation, params, seconds)
        results[name] = summary([run], (1e-2, 1e-3)) | {"curves": [thin(run)]}
        print(name, results[name]["end"], flush=True)
    return results


def poisson_5d(options: argparse.Namespace) -> dict[str, Any]:
    """5-64-64-48-48-1 tanh, 3000 + 500 points drawn anew for each step, and what the step costs otherwise."""
    equation = cf.physics.poisson()
    params = cf.physics.uniform(jax.random.key(0), (5, 64, 64, 48, 48, 1))
    rows = ours(equation, params, max_steps=options.poisson_5d_steps, key=jax.random.key(1))
    naive = dense_step_seconds(equation, params)
    per_step = rows[-1][1] / rows[-1][0]
    return {
        "cf.fit": summary([rows], (1e-2, 1e-3, 1e-4)) | {"curves": [thin(rows)]},
        "seconds_per_step": per_step,
        "seconds_per_dense_step": naive,
        "ratio": naive / per_step,
    }


def dense_step_seconds(equation: cf.physics.Equation, params: Any) -> float:
    """D by vmap(grad), DDᵀ and its eigendecomposition: least of two."""

    @jax.jit
    def dense(params: Any) -> Any:
        blocks = []
        for term in equation.problem.terms:
            rows = jax.vmap(lambda z, fn=term.fn: jax.grad(lambda p: fn(p, z)[0])(params))(term.samples)
            blocks.append(jnp.concatenate([leaf.reshape(len(term.targets), -1) for leaf in jax.tree.leaves(rows)], 1))
        D = jnp.concatenate(blocks)
        return jnp.linalg.eigh(D @ D.T)

    jax.block_until_ready(dense(params))
    start = time.perf_counter()
    jax.block_until_ready(dense(params))
    return time.perf_counter() - start


EQUATIONS = {"poisson_2d": poisson_2d, "heat": heat, "burgers": burgers, "poisson_5d": poisson_5d}


def main(argv: list[str] | None = None) -> None:
    """Run what was asked for and write one record each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(EQUATIONS), default=list(EQUATIONS))
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--peer-seeds", type=int, default=5)
    parser.add_argument("--peer-seconds", type=float, default=60.0)
    parser.add_argument("--burgers-steps", type=int, default=200)
    parser.add_argument("--poisson-5d-steps", type=int, default=67)
    parser.add_argument("--out", default="benchmarks/records")
    options = parser.parse_args(argv)
    for name in options.only:
        write_record(f"{options.out}/physics_{name}.json", f"physics_{name}", EQUATIONS[name](options))


if __name__ == "__main__":
    main()
