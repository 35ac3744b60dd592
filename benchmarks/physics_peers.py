"""The peers of `cf.fit` on equations: each runs for so many seconds from given parameters, compilation apart."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import chordflow as cf

Look = tuple[int, float, float]
"""Steps, seconds and L² error so far."""
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""L² errors; steps and seconds to each are recorded."""


class Run(NamedTuple):
    """Seconds of a first call, mostly compilation, and looks at the error along the way."""

    first_call: float
    looks: list[Look]


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


def iterate(equation: cf.physics.Equation, states: Iterator[Any], *, seconds: float, every: int = 1) -> Run:
    """Run a peer for so many seconds and look at the error every so many steps.

    A peer is an iterator over its parameters: it compiles, gives those of the start, and then one after each step.
    """
    began = time.perf_counter()
    start = next(states)
    first_call = time.perf_counter() - began
    looks: list[Look] = [(0, 0.0, float(equation.error(start)))]
    clock = Clock()
    clock.start()
    for count, params in enumerate(states, start=1):
        if count % every:
            continue
        jax.block_until_ready(params)
        spent = clock.stop()
        looks.append((count, spent, float(equation.error(params))))
        if spent > seconds:
            break
        clock.start()
    return Run(first_call, looks)


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
    yield params
    while True:
        params, state = many(params, state)
        for _ in range(chunk):
            yield params


def scipy_minimiser(method: str) -> Callable[..., Run]:
    """SciPy's BFGS or L-BFGS-B with jax's gradients."""

    def run(equation: cf.physics.Equation, params: Any, *, seconds: float) -> Run:
        theta, unravel = equation.problem.ravel(params)
        value = jax.jit(jax.value_and_grad(lambda v: equation.problem.cost(unravel(v))))
        began = time.perf_counter()
        jax.block_until_ready(value(theta))
        first_call = time.perf_counter() - began
        looks = Looks(lambda point: float(equation.error(unravel(jnp.asarray(point)))), np.asarray(theta))
        clock = Clock()

        def look(point: np.ndarray) -> None:
            spent = clock.stop()
            looks.add(spent, point)
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
        return Run(first_call, looks.settle())

    return run


class Looks:
    """The error at every 20th of many quick steps, and at each of the 20 where it fell below one of ``LEVELS``."""

    def __init__(self, error: Callable[[np.ndarray], float], start: np.ndarray) -> None:
        self.error, self.found, self.waiting = error, [(0, 0.0, error(start))], []

    def add(self, seconds: float, point: np.ndarray) -> None:
        """One more step."""
        self.waiting.append((seconds, point.copy()))
        if len(self.waiting) == 20:
            self.settle()

    def settle(self) -> list[Look]:
        """All looks, the last step's among them."""
        if self.waiting:
            count, before = len(self.waiting), self.found[-1][2]
            after = self.error(self.waiting[-1][1])
            crossed = any(after < level <= before for level in LEVELS)
            errors = [self.error(point) for _, point in self.waiting[:-1]] if crossed else [before] * (count - 1)
            steps = range(self.found[-1][0] + 1, self.found[-1][0] + count + 1)
            self.found += zip(steps, (seconds for seconds, _ in self.waiting), [*errors, after], strict=True)
            self.waiting = []
        return self.found


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
    yield params
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
    # Twice: what a step returns has other weak types than what init makes.
    jax.block_until_ready(jax.tree.leaves(step(*step(theta, state))))
    yield params
    while True:
        theta, state = step(theta, state)
        yield unravel(theta)


PEERS: dict[str, Callable[[cf.physics.Equation, Any, float], Run]] = {
    "energy natural gradient": lambda e, p, s: iterate(e, natural_gradient(e, p), seconds=s),
    "optimistix Levenberg–Marquardt": lambda e, p, s: iterate(e, levenberg_marquardt(e, p), seconds=s),
    "scipy BFGS": lambda e, p, s: scipy_minimiser("BFGS")(e, p, seconds=s),
    "scipy L-BFGS": lambda e, p, s: scipy_minimiser("L-BFGS-B")(e, p, seconds=s),
    "optax Adam": lambda e, p, s: iterate(e, adam(e, p), seconds=s, every=200),
}
