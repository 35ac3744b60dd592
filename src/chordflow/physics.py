"""Differential equations as problems: residuals at interior points and conditions at the boundary, one term each.

A physics-informed network minimises the weighted means of squared residuals; every term moves on its own straight line.
The equations here are those published for energy natural gradients (Müller, Zeinhofer: Achieving High Accuracy with
PINNs via Energy Natural Gradients, 2023) and for SPRING-like methods in five dimensions, with their exact solutions.
"""

import itertools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow.models import MLP
from chordflow.problem import Problem, Term

Point = Float[Array, " d"]
Scalar = Float[Array, ""]
Field = Callable[[Point], Scalar]
Network = Callable[[PyTree, Point], Float[Array, " 1"]]
TANH = MLP("tanh")
"""The network of the published benchmarks; its widths are those of the parameters."""


def derivatives(u: Field, z: Point) -> tuple[Scalar, Float[Array, " d"], Float[Array, " d"]]:
    """u, all ∂u/∂zᵢ and all ∂²u/∂zᵢ² at one point (d,), by two nested forward passes per coordinate.

    Forward mode twice is Taylor mode to second order: about 3d evaluations, no Hessian, and the Gram engine sees
    through it layer by layer.

    Examples
    --------
    >>> value, first, second = derivatives(lambda z: z[0] ** 3 * z[1], jnp.array([2.0, 5.0]))
    >>> float(value), first.tolist(), second.tolist()
    (40.0, [60.0, 8.0], [60.0, 0.0])
    """

    def along(direction: Point) -> tuple[Scalar, Scalar]:
        def slope(z: Point) -> tuple[Scalar, Scalar]:
            return jax.jvp(u, (z,), (direction,))

        (value, first), (_, second) = jax.jvp(slope, (z,), (direction,))
        del value
        return first, second

    first, second = jax.vmap(along)(jnp.eye(z.size, dtype=z.dtype))
    return u(z), first, second


def laplacian(u: Field, z: Point) -> Scalar:
    """Δu = Σᵢ ∂²u/∂zᵢ² at one point."""
    return jnp.sum(derivatives(u, z)[2])


class Equation(eqx.Module):
    """A differential equation as a :class:`chordflow.Problem` for a network, with its exact solution.

    Attributes
    ----------
    problem
        Terms in the order interior, boundary, initial condition.
    model
        ``model(params, z) -> (1,)``.
    exact
        The solution at points (N, d): (N,).
    test_points
        Where :meth:`error` is measured, (M, d).
    """

    problem: Problem
    model: Network
    exact: Callable[[Float[Array, "n d"]], Float[Array, " n"]] = eqx.field(static=True)
    test_points: Float[Array, "m d"]

    def solution(self, params: PyTree, points: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The network's u at points (N, d)."""
        return jax.vmap(lambda z: self.model(params, z)[0])(points)

    @eqx.filter_jit
    def error(self, params: PyTree) -> Scalar:
        """Root mean square of u − u_exact over the test points, absolute: the L² error over the root of the volume."""
        return jnp.sqrt(jnp.mean((self.solution(params, self.test_points) - self.exact(self.test_points)) ** 2))


def small_normal(key: Array, widths: Sequence[int], scale: float = 0.1) -> PyTree:
    """Parameters of an :class:`chordflow.models.MLP`: all weights and biases scale · N(0, 1), one key per array."""
    return _layers(key, widths, lambda key, shape, _: scale * jax.random.normal(key, shape))


def uniform(key: Array, widths: Sequence[int]) -> PyTree:
    """Parameters of an :class:`chordflow.models.MLP`: all uniform on ±1/√fan_in, one key per array."""

    def draw(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
        return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

    return _layers(key, widths, draw)


def _layers(key: Array, widths: Sequence[int], draw: Callable[[Array, tuple[int, ...], int], Array]) -> PyTree:
    pairs = list(itertools.pairwise(widths))
    keys = jax.random.split(key, (len(pairs), 2))
    return tuple(
        {"w": draw(of_w, pair, pair[0]), "b": draw(of_b, pair[1:], pair[0])}
        for (of_w, of_b), pair in zip(keys, pairs, strict=True)
    )


def poisson_2d(num: int = 28, *, model: Network = TANH, boundary_weight: float = 4.0, num_test: int = 150) -> Equation:
    """−Δu = 2π² sin πx sin πy on the unit square, u = 0 on its boundary; u = sin πx sin πy.

    Interior points i/(num+1) in both coordinates, num + 1 midpoints on each side, error on a num_test² grid. With the
    network 2-32-1 tanh (129 parameters) drawn 0.1 · N(0,1) this is the problem published for energy natural gradients.

    Examples
    --------
    >>> import jax, chordflow as cf
    >>> jax.config.update("jax_enable_x64", True)
    >>> equation = cf.physics.poisson_2d(num=8)
    >>> params = cf.physics.small_normal(jax.random.key(0), (2, 16, 1))
    >>> fit = cf.fit(equation.problem, params, max_steps=30)
    >>> bool(equation.error(fit.params) < 1e-3 * equation.error(params))
    True
    """
    inner, middle = jnp.linspace(0, 1, num + 2)[1:-1], _midpoints(num + 1)
    low, high = jnp.zeros(num + 1), jnp.ones(num + 1)
    sides = [(middle, low), (middle, high), (low, middle), (high, middle)]
    boundary = jnp.concatenate([jnp.stack(side, axis=1) for side in sides])

    def residual(params: PyTree, z: Point) -> Float[Array, " 1"]:
        source = 2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * z))
        return jnp.reshape(laplacian(lambda z: model(params, z)[0], z) + source, (1,))

    interior = _grid(inner, inner)
    terms = [
        Term(residual, interior, jnp.zeros((len(interior), 1))),
        Term(model, boundary, jnp.zeros((len(boundary), 1)), weight=boundary_weight),
    ]
    line = jnp.linspace(0, 1, num_test)
    return Equation(Problem.from_terms(terms), model, _sines, _grid(line, line))


def _sines(points: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jnp.prod(jnp.sin(jnp.pi * points), axis=1)


def poisson(
    dim: int = 5,
    num_interior: int = 3000,
    num_boundary: int = 500,
    *,
    model: Network = TANH,
    num_test: int = 30000,
    test_seed: int = 0,
) -> Equation:
    """−Δu = π² Σ cos πxᵢ on the unit cube of ``dim`` dimensions, u = Σ cos πxᵢ on its boundary and inside.

    Points are drawn uniformly from a key, anew for each step of a fit: interior ones, and boundary ones on a face
    chosen at random. With the network 5-64-64-48-48-1 tanh (10 065 parameters) this is a published benchmark.
    """

    def residual(params: PyTree, z: Point) -> Float[Array, " 1"]:
        source = jnp.pi**2 * jnp.sum(jnp.cos(jnp.pi * z))
        return jnp.reshape(laplacian(lambda z: model(params, z)[0], z) + source, (1,))

    def inside(key: Array) -> Float[Array, "n d"]:
        return jax.random.uniform(key, (num_interior, dim))

    def on_faces(key: Array) -> Float[Array, "n d"]:
        points, faces, sides = jax.random.split(key, 3)
        z = jax.random.uniform(points, (num_boundary, dim))
        face = jax.random.randint(faces, (num_boundary,), 0, dim)
        side = jax.random.bernoulli(sides, shape=(num_boundary,)).astype(z.dtype)
        return z.at[jnp.arange(num_boundary), face].set(side)

    terms = [
        Term(residual, inside, jnp.zeros((num_interior, 1))),
        Term(model, on_faces, lambda z: _cosines(z)[:, None]),
    ]
    test = jax.random.uniform(jax.random.key(test_seed), (num_test, dim))
    return Equation(Problem.from_terms(terms), model, _cosines, test)


def _cosines(points: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jnp.sum(jnp.cos(jnp.pi * points), axis=1)


def heat_1d(num: int = 28, *, model: Network = TANH, num_test: int = 150) -> Equation:
    """u_t = ¼ u_xx for t, x in (0, 1), u(0, x) = sin πx, u(t, 0) = u(t, 1) = 0; u = e^{−π²t/4} sin πx.

    Points z = (t, x): interior i/(num+1) in both, num + 1 midpoints at the start and on each side; all weights 1.
    """
    inner, middle = jnp.linspace(0, 1, num + 2)[1:-1], _midpoints(num + 1)
    low, high = jnp.zeros(num + 1), jnp.ones(num + 1)
    sides = jnp.concatenate([jnp.stack([middle, low], axis=1), jnp.stack([middle, high], axis=1)])
    start = jnp.stack([low, middle], axis=1)

    def residual(params: PyTree, z: Point) -> Float[Array, " 1"]:
        _, first, second = derivatives(lambda z: model(params, z)[0], z)
        return jnp.reshape(first[0] - 0.25 * second[1], (1,))

    def exact(points: Float[Array, "n d"]) -> Float[Array, " n"]:
        return jnp.exp(-(jnp.pi**2) * points[:, 0] / 4) * jnp.sin(jnp.pi * points[:, 1])

    interior = _grid(inner, inner)
    terms = [
        Term(residual, interior, jnp.zeros((len(interior), 1))),
        Term(model, sides, jnp.zeros((len(sides), 1))),
        Term(model, start, exact(start)[:, None]),
    ]
    line = jnp.linspace(0, 1, num_test)
    return Equation(Problem.from_terms(terms), model, exact, _grid(line, line))


def burgers(
    num_interior: int = 2000,
    num_boundary: int = 100,
    *,
    model: Network = TANH,
    viscosity: float = 0.01 / np.pi,
    num_test: int = 100,
    drawn: bool = False,
) -> Equation:
    """u_t + u u_x = ν u_xx for t in (0, 1), x in (−1, 1), u(0, x) = −sin πx, u(t, ±1) = 0.

    Points z = (t, x) of a Halton sequence inside, evenly spaced at the start and on the sides. The exact solution is
    the Cole–Hopf integral by Gauss–Hermite quadrature.

    The steep layer at x = 0 is narrower than the distance of the points: a network of more parameters than points can
    put a jump between them, with residuals that are small at all of them and a solution that is wrong. With ``drawn``
    the points inside are drawn uniformly from a key, anew for each step of a fit, and no jump stays unseen.
    """

    def inside(key: Array) -> Float[Array, "n 2"]:
        return _stretched(jax.random.uniform(key, (num_interior, 2)))

    times = _midpoints(num_boundary)
    places = 2 * times - 1
    ones = jnp.ones(num_boundary)
    sides = jnp.concatenate([jnp.stack([times, -ones], axis=1), jnp.stack([times, ones], axis=1)])
    start = jnp.stack([0 * ones, places], axis=1)

    def residual(params: PyTree, z: Point) -> Float[Array, " 1"]:
        u, first, second = derivatives(lambda z: model(params, z)[0], z)
        return jnp.reshape(first[0] + u * first[1] - viscosity * second[1], (1,))

    terms = [
        Term(residual, inside if drawn else _halton(num_interior), jnp.zeros((num_interior, 1))),
        Term(model, sides, jnp.zeros((len(sides), 1))),
        Term(model, start, -jnp.sin(jnp.pi * start[:, 1:])),
    ]
    line = jnp.linspace(0, 1, num_test)
    return Equation(
        Problem.from_terms(terms), model, lambda points: cole_hopf(points, viscosity), _grid(line, 2 * line - 1)
    )


def _halton(num: int) -> Float[Array, "n 2"]:
    from scipy.stats import qmc  # takes a second to import

    return _stretched(jnp.asarray(qmc.Halton(2, scramble=False).random(num + 1)[1:]))  # the first point is the corner


def _stretched(unit: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """(t, x) in [0, 1] × [−1, 1] from the unit square."""
    return jnp.stack([unit[:, 0], 2 * unit[:, 1] - 1], axis=1)


def cole_hopf(points: Float[Array, "n d"], viscosity: float, num_nodes: int = 200) -> Float[Array, " n"]:
    """Solution of Burgers' equation with u(0, x) = −sin πx at points (t, x), by the Cole–Hopf transformation.

    u = −E[sin π(x−η) f] / E[f], η ~ N(0, 2νt), f = exp(−cos π(x−η) / (2πν)), by Gauss–Hermite quadrature; exponents are
    shifted by their largest so that nothing overflows.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(num_nodes)
    t, x = points[:, :1], points[:, 1:]
    shifted = x - 2 * jnp.sqrt(viscosity * t) * nodes[None, :]
    exponent = -jnp.cos(jnp.pi * shifted) / (2 * jnp.pi * viscosity) + jnp.log(jnp.asarray(weights))[None, :]
    f = jnp.exp(exponent - jnp.max(exponent, axis=1, keepdims=True))
    return -jnp.sum(jnp.sin(jnp.pi * shifted) * f, axis=1) / jnp.sum(f, axis=1)


def _midpoints(num: int) -> Float[Array, " n"]:
    """(i + ½)/num for i = 0 … num − 1."""
    edges = jnp.linspace(0, 1, num + 1)
    return (edges[1:] + edges[:-1]) / 2


def _grid(a: Float[Array, " n"], b: Float[Array, " m"]) -> Float[Array, "nm 2"]:
    first, second = jnp.meshgrid(a, b, indexing="ij")
    return jnp.stack([first.ravel(), second.ravel()], axis=1)
