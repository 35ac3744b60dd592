"""A small benchmark of the trainer against Adam and L-BFGS: seconds to a cost, and error after equal seconds."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from chordflow import data, environment, physics
from chordflow.bounds import require_within
from chordflow.config import ConfigError, read_table
from chordflow.files import replacing
from chordflow.lookup import suggestion
from chordflow.models import mlp
from chordflow.problem import Problem
from chordflow.training import fit

CHUNK = 20
"""Steps of a peer in one compiled call: dispatch vanishes beside them, and the clock is looked at often."""
Cost = Callable[[Float[Array, " K"]], Float[Array, ""]]


@dataclass(frozen=True)
class BenchConfig:
    """What ``chordflow bench`` takes as key=value.

    Parameters
    ----------
    seeds
        Initial networks per problem.
    seconds
        Limit of each run, without compilation.
    target
        Training cost to reach on diabetes.
    samples
        Samples of diabetes.
    width
        Units of both hidden layers there.
    points
        Interior points of Poisson's equation in each coordinate; 0 leaves it out.
    steps
        Steps of the trainer there; its peers get the same seconds.
    out
        JSON file for the record, or None.
    """

    # Any: words of a command line, checked below.
    seeds: Any = 2
    seconds: Any = 8.0
    target: Any = 1e-6
    samples: Any = 442
    width: Any = 64
    points: Any = 28
    steps: Any = 75
    out: Any = None

    def __post_init__(self):
        for key, least in (("seeds", 1), ("samples", 2), ("width", 1), ("points", 0), ("steps", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{key} = {value!r}: expected an integer of at least {least}")
        for key in ("seconds", "target"):
            require_within("bench", key, getattr(self, key), 0.0, open_left=True)
        if self.out is None:
            return
        path = Path(str(self.out)).expanduser()
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"out = {self.out!r}: expected a JSON file in a folder that exists")

    @classmethod
    def from_words(cls, words: Sequence[str]) -> "BenchConfig":
        """From ``key=value`` words.

        Examples
        --------
        >>> BenchConfig.from_words(["seeds=1", "target=1e-4"]).target
        0.0001
        """
        table, known = read_table(None, words), [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                raise ConfigError(f"{key} = {table[key]!r}: unknown key, {suggestion(key, known)}")
        return cls(**table)


class Run(NamedTuple):
    """One method on one problem from one start.

    Parameters
    ----------
    seconds
        Wall-clock seconds until the cost was at the target, or until the run ended; compilation is not in them.
    reached
        Whether the target was reached.
    cost
        Training cost at the end.
    steps
        Steps taken.
    first_call
        Seconds of a first call of one step: mostly compilation.
    curve
        (seconds, cost) along the way.
    theta
        Parameters at the end.
    """

    seconds: float
    reached: bool
    cost: float
    steps: int
    first_call: float
    curve: list[tuple[float, float]]
    theta: Float[Array, " K"]


class Descent:
    """An optax optimiser as a loop in compiled chunks of steps; made once per problem, run from several starts."""

    def __init__(self, transform: optax.GradientTransformation, cost: Cost, *, has_line_search: bool = False):
        self.transform = optax.with_extra_args_support(transform)
        self.first_call = 0.0
        value_and_grad: Any = jax.value_and_grad(cost)
        if has_line_search:  # the line search has them already
            value_and_grad = optax.value_and_grad_from_state(cost)

        def body(carry: Any) -> Any:
            theta, state, _, count = carry
            value, grad = value_and_grad(theta, state=state) if has_line_search else value_and_grad(theta)
            updates, state = self.transform.update(grad, state, theta, value=value, grad=grad, value_fn=cost)
            return theta + jnp.asarray(updates), state, value, count + 1

        def chunk(theta: Any, state: Any, target: Any, bound: Any) -> Any:
            start = (theta, state, jnp.asarray(jnp.inf, theta.dtype), jnp.zeros((), int))
            return jax.lax.while_loop(lambda carry: (carry[2] > target) & (carry[3] < bound), body, start)

        self.chunk = jax.jit(chunk)

    def __call__(self, theta: Float[Array, " K"], *, target: float, seconds: float) -> Run:
        """Steps until the cost is at the target, is not finite, or the time is up."""
        # optax mixes dtypes, whatever the process thinks of that.
        with jax.numpy_dtype_promotion("standard"):
            return self._run(theta, target, seconds)

    def _run(self, theta: Float[Array, " K"], target: float, seconds: float) -> Run:
        goal, bound = jnp.asarray(target, theta.dtype), jnp.asarray(CHUNK)
        state = self.transform.init(theta)
        if not self.first_call:
            self.first_call = _seconds_of(lambda: self._compile(theta, state))
        start, value, steps, curve = time.perf_counter(), math.inf, 0, []
        elapsed = 0.0
        while elapsed < seconds and value > target:
            theta, state, last, count = self.chunk(theta, state, goal, bound)
            value, steps = float(last), steps + int(count)
            elapsed = time.perf_counter() - start
            curve.append((elapsed, value))
        return Run(elapsed, value <= target, value, steps, self.first_call, curve, theta)

    def _compile(self, theta: Float[Array, " K"], state: Any) -> Any:
        """Two steps: what a step returns may have other weak types than what init makes, and so compiles anew."""
        never, one = jnp.asarray(-jnp.inf, theta.dtype), jnp.asarray(1)
        theta, state, *_ = self.chunk(theta, state, never, one)
        return self.chunk(theta, state, never, one)


def chord(
    problem: Problem, params: PyTree, *, target: float | None, seconds: float, max_steps: int = 10_000, **options: Any
) -> Run:
    """:func:`chordflow.fit`, its defaults unless there are ``options``; seconds are those of the whole call."""
    first_call = _seconds_of(lambda: fit(problem, params, target=target, max_steps=1, **options).cost)
    start = time.perf_counter()
    result = fit(problem, params, target=target, max_steps=max_steps, time_limit=seconds, **options)
    elapsed = time.perf_counter() - start
    curve = [(float(s), float(c)) for s, c in zip(result.history.seconds, result.history.cost, strict=True)]
    reached = result.result_name == "target_reached"
    return Run(elapsed, reached, float(result.cost), len(curve), first_call, curve, result.state.theta)


def flat_cost(problem: Problem, params: PyTree) -> tuple[Float[Array, " K"], Cost]:
    """The trainable vector θ and the cost as a function of it."""
    theta, unravel = problem.ravel(params)
    return theta, lambda theta: problem.cost(unravel(theta))


def network_problem(inputs: np.ndarray, targets: np.ndarray, widths: Sequence[int], seed: int) -> tuple[Problem, Any]:
    """A tanh network with hidden ``widths`` on an array of samples, squared error; and parameters of this seed."""
    model = mlp((inputs.shape[1], *widths, targets.shape[1]), activation="tanh", seed=seed)
    problem = Problem(model.apply, jnp.asarray(inputs), jnp.asarray(targets))
    return problem, jax.tree.map(jnp.asarray, model.params)


def _seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


# --- the two problems -----------------------------------------------------------------------------------------


def run(config: BenchConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Both problems, a table line by line as they come, and the record as a dictionary.

    Raises
    ------
    ValueError
        scikit-learn, which brings diabetes, is missing.
    """
    rows = []
    say(f"{'problem':<10}{'method':<12}{'seed':>5}{'seconds':>9}{'cost':>10}{'error':>10}  ended")
    sections: list[Iterator[dict[str, Any]]] = [_diabetes(config)]
    if config.points:
        sections.append(_poisson(config))
    for section in sections:
        for row in section:
            rows.append(row)
            say(_line(row))
    for line in _summary(rows, config.target):
        say(line)
    record = {
        "benchmark": "chordflow bench",
        "environment": environment.describe(),
        "config": asdict(config),
        "results": rows,
    }
    if config.out is not None:
        path = Path(config.out).expanduser()
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        say(f"record: {path}")
    return record


def _diabetes(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """Seconds to the target from the same starts."""
    samples = data.load("diabetes", samples=config.samples)
    peers: dict[str, Descent] = {}
    for seed in range(config.seeds):
        problem, params = network_problem(samples.inputs, samples.targets, [config.width] * 2, seed)
        theta, cost = flat_cost(problem, params)
        peers = peers or _peers(cost)
        target, seconds = config.target, config.seconds
        yield _row("diabetes", "cf.fit", seed, chord(problem, params, target=target, seconds=seconds))
        for name, peer in peers.items():
            yield _row("diabetes", name, seed, peer(theta, target=target, seconds=seconds))


def _poisson(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """L² error after so many steps of the trainer, and after the same seconds of its peers."""
    equation = physics.poisson_2d(num=config.points)
    peers: dict[str, Descent] = {}
    for seed in range(config.seeds):
        params = physics.small_normal(jax.random.key(seed), (2, 32, 1))
        theta, cost = flat_cost(equation.problem, params)
        unravel = equation.problem.ravel(params)[1]
        peers = peers or _peers(cost)
        own = chord(equation.problem, params, target=None, seconds=5 * config.seconds, max_steps=config.steps)
        runs = {"cf.fit": own}
        runs |= {name: peer(theta, target=0.0, seconds=own.seconds) for name, peer in peers.items()}
        for name, it in runs.items():
            yield _row("poisson", name, seed, it, error=float(equation.error(unravel(it.theta))))


def _peers(cost: Cost) -> dict[str, Descent]:
    return {
        "Adam 3e-3": Descent(optax.adam(3e-3), cost),
        "L-BFGS": Descent(optax.lbfgs(), cost, has_line_search=True),
    }


def _row(problem: str, method: str, seed: int, it: Run, **more: float) -> dict[str, Any]:
    kept = {key: value for key, value in it._asdict().items() if key not in ("theta", "curve")}
    return {"problem": problem, "method": method, "seed": seed, **kept, **more}


def _line(row: dict[str, Any]) -> str:
    error = f"{row['error']:.1e}" if "error" in row else ""
    ended = f"{row['steps']} steps" if "error" in row else "target reached" if row["reached"] else "not reached"
    return (
        f"{row['problem']:<10}{row['method']:<12}{row['seed']:>5}{row['seconds']:>9.2f}{row['cost']:>10.1e}"
        f"{error:>10}  {ended}"
    )


def _summary(rows: list[dict[str, Any]], target: float) -> Iterator[str]:
    """How many times faster, and how many times more accurate, by medians."""

    def median(problem: str, method: str, key: str) -> float:
        return float(np.median([r[key] for r in rows if (r["problem"], r["method"]) == (problem, method)]))

    for problem, method in dict.fromkeys((r["problem"], r["method"]) for r in rows if r["method"] != "cf.fit"):
        key = "error" if problem == "poisson" else "seconds"
        ratio = median(problem, method, key) / median(problem, "cf.fit", key)
        if problem == "poisson":
            yield f"{problem}: {method} has {ratio:.2g} times the error of cf.fit after the same seconds (medians)"
        else:
            all_reached = all(r["reached"] for r in rows if (r["problem"], r["method"]) == (problem, method))
            yield (
                f"{problem}: {method} takes {'' if all_reached else 'more than '}{ratio:.2g} times the seconds of "
                f"cf.fit to cost {target:g} (medians)"
            )
