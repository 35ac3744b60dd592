"""Whether outputs and Jacobian of a model are Lipschitz in the parameters, measured along random lines."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow.problem import Problem

NUM_LINES, NUM_POINTS, NUM_CANDIDATES = 2, 129, 12
NUM_LEVELS, LEAST_FITTED, MOST_FITTED = 24, 6, 12
RADIUS = 0.5
"""Half the length of a line, in units of |θ|: far enough for units of a network to change sign on the way."""

Values = Float[np.ndarray, "m n2"]


def hoelder_exponent(problem: Problem, params: PyTree, *, seed: int = 0) -> float:
    """Find the smallest Hölder exponent of x and Dv along random lines θ + r v: 0 at a kink of x, ≥ 1 if Lipschitz.

    Where the second differences on a grid stand out from their neighbours the grid is refined again and again, each
    time around the largest second difference. Per halving it falls by a factor 4 for a smooth function, 2 for one that
    is only Lipschitz, and not at all at a jump: the exponent is log₂ of the factor, good to 0.1. Infinite where
    rounding is all there is.

    Cost: about 1500 forward-mode products with D. What no line crosses is not found.
    """
    theta, _ = problem.ravel(params)
    rng = np.random.default_rng(seed)
    exponents = [np.inf]
    for _ in range(NUM_LINES):
        direction = rng.normal(size=theta.shape)
        direction *= RADIUS * max(float(jnp.linalg.norm(theta)), 1.0) / np.linalg.norm(direction)

        exponents.append(_smallest_exponent(_line(problem, params, theta, jnp.asarray(direction))))
    return float(min(exponents))


def _line(problem: Problem, params: PyTree, theta: Array, direction: Array) -> Callable[[np.ndarray], Values]:
    def values(r: np.ndarray) -> Values:
        return np.asarray(_along(problem, params, theta, direction, jnp.asarray(r)))

    return values


@eqx.filter_jit
def _along(problem: Problem, params: PyTree, theta: Array, direction: Array, r: Array) -> Array:
    """x and Dv at each θ + r v: (m, 2n)."""
    unravel = problem.ravel(params)[1]

    def one(r: Array) -> Array:
        there = unravel(theta + r * direction)
        pushed = problem.jacobian(there).mv(unravel(direction))
        return jnp.concatenate([problem.flatten(problem.outputs(there)), problem.flatten(pushed)])

    return jax.lax.map(one, r)


def _smallest_exponent(values: Callable[[np.ndarray], Values]) -> float:
    grid = np.linspace(-1.0, 1.0, NUM_POINTS)
    f = values(grid)
    x_scale, v_scale = (np.max(np.abs(half)) for half in np.split(f, 2, axis=1))
    scale = np.repeat([x_scale, v_scale], f.shape[1] // 2)
    scale = np.where(scale > 0, scale, 1.0)
    second = np.abs(f[2:] - 2 * f[1:-1] + f[:-2]) / scale[None, :]
    # A kink stands out; the curvature of a smooth function is nearly that of the points two further.
    standout = second[2:-2] - np.maximum(second[:-4], second[4:])
    top = np.argsort(standout, axis=None)[-NUM_CANDIDATES:]
    rows, columns = np.unravel_index(top, standout.shape)
    start = np.stack([grid[rows + offset] for offset in (2, 3, 4)], axis=1)
    return min(_exponent(row) for row in _zoom(values, start, columns) / scale[columns][:, None])


def _zoom(
    values: Callable[[np.ndarray], Values], r: Float[np.ndarray, "m 3"], columns: np.ndarray
) -> Float[np.ndarray, "m levels"]:
    """Second differences at ever smaller spacing, for one column of ``values`` around each triple of points."""
    each = np.arange(len(columns))

    def at(points: np.ndarray) -> np.ndarray:
        return np.stack([values(column)[each, columns] for column in points.T], axis=1)

    f = at(r)
    differences = []
    for _ in range(NUM_LEVELS):
        between = 0.5 * (r[:, :-1] + r[:, 1:])
        r, f = _interleaved(r, between), _interleaved(f, at(between))
        second = np.abs(f[:, 2:] - 2 * f[:, 1:-1] + f[:, :-2])
        largest = np.argmax(second, axis=1)
        differences.append(second[each, largest])
        around = largest[:, None] + np.arange(3)[None, :]
        r, f = (np.take_along_axis(a, around, axis=1) for a in (r, f))
    return np.stack(differences, axis=1)


def _interleaved(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Five columns from three and the two between them."""
    return np.stack([outer[:, 0], inner[:, 0], outer[:, 1], inner[:, 1], outer[:, 2]], axis=1)


def _exponent(changes: np.ndarray) -> float:
    """log₂ of the mean factor per level, over the last levels that are above rounding."""
    rounding = 1e3 * float(np.finfo(changes.dtype).eps)
    above = np.flatnonzero(changes > rounding)
    last = int(above[-1]) if len(above) else 0
    if last < LEAST_FITTED:
        return np.inf  # nothing but rounding to see
    fitted = min(last, MOST_FITTED)
    return float(np.log2(changes[last - fitted] / changes[last]) / fitted)
