"""One candidate of a step: aim along the straight line in output space, and follow it to higher order."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chordflow.solve import AbstractDecomposition, AbstractFactor, AbstractMethod, WeightedJacobian
from chordflow.training.linearise import Aim, Flat, Scalar, Theta


class Point(NamedTuple):
    """θ, the outputs there, A = R D, what its method knows of it, and the force Aᵀr (see :meth:`Aim.force`)."""

    theta: Theta
    x: Flat
    A: WeightedJacobian
    decomposition: AbstractDecomposition
    force: Theta


class Candidate(NamedTuple):
    """Where a candidate ends and what its linear model promised."""

    theta: Theta
    cost: Scalar
    merit: Scalar
    """What candidates are compared by: the cost, or the distance to the goal where there is one."""
    v: Theta
    """The damped step before anything of higher order."""
    wanted: Flat
    """R D v: where it should take the outputs, in the metric."""


def linearise(aim: Aim, method: AbstractMethod, theta: Theta) -> Point:
    """One Jacobian or Gram matrix, and its decomposition."""
    x, A = aim.linearised(theta)
    return Point(theta, x, A, method.decompose(A), aim.force(theta, x, A))


def follow(
    aim: Aim, point: Point, factor: AbstractFactor, start: Theta | None, *, order: int, corrections: int
) -> Candidate:
    """The step of one factor from ``start``, or from the factor's own point if that is None.

    v solves the damped model; further Taylor terms bend it; then chord corrections θ ← θ − A⁺(R(x(θ) − x) − A v) with
    the same factor pull the outputs back to the straight line. The plain damped step replaces a corrected one that ends
    worse. From another point than its own the factor is a stale one: no higher derivative would belong to it.
    """
    theta, x = (point.theta, point.x) if start is None else (start, aim.outputs(start))
    v = _aimed(aim, point, factor, start, x)
    plain = _ended(aim, theta + v)
    if start is None and order > 1:
        wanted, bent = _bent(aim, point, factor, v, order)
    else:
        wanted, bent = factor.push(v), theta + v
        if corrections == 0:
            return Candidate(*plain, v, wanted)

    def correct(_: Any, bent: Theta) -> Theta:
        moved = point.A.to_metric(aim.outputs(bent) - x)
        return bent - factor.damped(moved - wanted, 1)

    followed = _ended(aim, jax.lax.fori_loop(0, corrections, correct, bent))
    theta, cost, merit = (jnp.where(followed[2] <= plain[2], a, b) for a, b in zip(followed, plain, strict=True))
    return Candidate(theta, cost, merit, v, wanted)


def _aimed(aim: Aim, point: Point, factor: AbstractFactor, start: Theta | None, x: Flat) -> Theta:
    """(AᵀA + λ + αN)⁻¹ of the force; from the residual where there is one, which is exact at small σ."""
    if not aim.is_least_squares:
        force = point.force if start is None else aim.force(start, *aim.linearised(start))
        return aim.fraction * factor.shifted(force)
    v = factor.damped(aim.residual(x), 1)
    theta = point.theta if start is None else start
    return v if aim.alpha is None else v - factor.shifted(aim.ridge * theta)


def _bent(aim: Aim, point: Point, factor: AbstractFactor, v: Theta, order: int) -> tuple[Flat, Theta]:
    """A v, and the end at t = 1 of a curve θ + tv + t²a/2 + t³b/6 … along which the outputs go straight.

    Each coefficient cancels the next derivative of the outputs along the curve of those before it:
    a = −A⁺R x″[v,v] (geodesic acceleration), b = −A⁺R(x‴[v,v,v] + 3x″[v,a]).
    """
    first, second = _derivatives(aim, point.theta, [v])
    coefficients = [v, -factor.damped(point.A.to_metric(second), 1)]
    while len(coefficients) < order:
        highest = _derivatives(aim, point.theta, coefficients)[1]
        coefficients.append(-factor.damped(point.A.to_metric(highest), 1))
    return point.A.to_metric(first), _curve(point.theta, coefficients, jnp.ones((), v.dtype))


def _derivatives(aim: Aim, theta: Theta, coefficients: list[Theta]) -> tuple[Flat, Flat]:
    """The derivatives of order k and k + 1 of the outputs along a curve of k coefficients, by nested forward passes."""

    def derivative(t: Scalar) -> Flat:
        return aim.outputs(_curve(theta, coefficients, t))

    for _ in coefficients:
        derivative = partial(_slope, derivative)
    one = jnp.ones((), theta.dtype)
    return jax.jvp(derivative, (jnp.zeros_like(one),), (one,))


def _slope(fn: Callable[[Scalar], Flat], t: Scalar) -> Flat:
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


def _curve(theta: Theta, coefficients: list[Theta], t: Scalar) -> Theta:
    """Θ + t c₁ + t² c₂/2 + t³ c₃/6 …, by Horner's rule."""
    total = jnp.zeros_like(theta)
    for k in range(len(coefficients), 0, -1):
        total = (coefficients[k - 1] + total) * (t / k)
    return theta + total


def _ended(aim: Aim, theta: Theta) -> tuple[Theta, Scalar, Scalar]:
    """(θ, cost, merit); a candidate that left the domain of the model costs infinitely much."""
    x = aim.outputs(theta)
    cost, merit = aim.cost(x, theta), aim.merit(x, theta)
    finite = jnp.isfinite(cost) & jnp.isfinite(merit) & jnp.all(jnp.isfinite(theta))
    return theta, jnp.where(finite, cost, jnp.inf), jnp.where(finite, merit, jnp.inf)
