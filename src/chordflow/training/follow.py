"""One candidate of a step: aim along the straight line in output space, and follow it to higher order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chordflow.solve import AbstractDecomposition, AbstractFactor, AbstractMethod, WeightedJacobian
from chordflow.training.linearise import Aim, Flat, Scalar, Theta


class Point(NamedTuple):
    """θ, the outputs there, A = R D and what its method knows of it."""

    theta: Theta
    x: Flat
    A: WeightedJacobian
    decomposition: AbstractDecomposition


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
    x = aim.outputs(theta)
    A = aim.jacobian(x, theta)
    return Point(theta, x, A, method.decompose(A))


def follow(
    aim: Aim, point: Point, factor: AbstractFactor, start: Theta | None, *, order: int, corrections: int
) -> Candidate:
    """The step of one factor from ``start``, or from the factor's own point if that is None.

    v solves the damped model; a = −A⁺R x''[v,v] bends it; then chord corrections θ ← θ − A⁺(R(x(θ) − x) − A v) with the
    same factor pull the outputs back to the straight line. The plain damped step replaces a corrected one that ends
    worse. From another point than its own the factor is a stale one: no second derivative would belong to it.
    """
    theta, x = (point.theta, point.x) if start is None else (start, aim.outputs(start))
    v = _aimed(aim, factor, x, theta)
    plain = _ended(aim, theta + v)
    if start is None and order == 2:
        wanted, bend = _derivatives(aim, point, v)
        bent = theta + v - 0.5 * factor.damped(bend, 1)
    else:
        wanted, bent = factor.push(v), theta + v
    if order < 2 and corrections == 0:
        return Candidate(*plain, v, wanted)

    def correct(_: Any, bent: Theta) -> Theta:
        moved = point.A.to_metric(aim.outputs(bent) - x)
        return bent - factor.damped(moved - wanted, 1)

    followed = _ended(aim, jax.lax.fori_loop(0, corrections, correct, bent))
    theta, cost, merit = (jnp.where(followed[2] <= plain[2], a, b) for a, b in zip(followed, plain, strict=True))
    return Candidate(theta, cost, merit, v, wanted)


def _aimed(aim: Aim, factor: AbstractFactor, x: Flat, theta: Theta) -> Theta:
    """(AᵀA + λ + αN)⁻¹ of the force; from the residual where there is one, which is exact at small σ."""
    if not aim.is_least_squares:
        return aim.fraction * factor.shifted(aim.force(x, theta))
    v = factor.damped(aim.residual(x), 1)
    return v if aim.alpha is None else v - factor.shifted(aim.ridge * theta)


def _derivatives(aim: Aim, point: Point, v: Theta) -> tuple[Flat, Flat]:
    """R x'[v] and R x''[v,v], by two nested forward passes."""

    def along(t: Scalar) -> Flat:
        return aim.outputs(point.theta + t * v)

    zero, one = jnp.zeros((), v.dtype), jnp.ones((), v.dtype)
    dx, ddx = jax.jvp(lambda t: jax.jvp(along, (t,), (one,))[1], (zero,), (one,))
    return point.A.to_metric(dx), point.A.to_metric(ddx)


def _ended(aim: Aim, theta: Theta) -> tuple[Theta, Scalar, Scalar]:
    """(θ, cost, merit); a candidate that left the domain of the model costs infinitely much."""
    x = aim.outputs(theta)
    cost, merit = aim.cost(x, theta), aim.merit(x, theta)
    finite = jnp.isfinite(cost) & jnp.isfinite(merit) & jnp.all(jnp.isfinite(theta))
    return theta, jnp.where(finite, cost, jnp.inf), jnp.where(finite, merit, jnp.inf)
