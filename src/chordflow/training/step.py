"""One step: dampings tried on the true cost from one decomposition, until one lowers it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from chordflow.solve import SVD, AbstractMethod
from chordflow.training.follow import Candidate, Point, follow, linearise
from chordflow.training.linearise import Aim, Scalar, Theta

HIGHEST = 1e2
"""Of the dampings that an SVD tries, in units of σ_max²."""
HOPELESS = 1e12
"""Damping above this many σ_max² (Σσ² with Cholesky) moves nothing that a float64 cost could show."""


class Rule(eqx.Module):
    """How a step is made; everything static.

    Parameters
    ----------
    method
        How the damped inverse is realised. With an SVD all λ are free, so that 13 of them are tried on the true cost;
        otherwise there is one λ, led by the gain ratio.
    order
        Taylor terms of the curve that is followed: 2 or more, or 1 for models without a forward derivative.
    corrections
        Chord corrections per candidate.
    reuses
        How often the same decomposition aims anew from where it has arrived (Shamanskii's method).
    """

    method: AbstractMethod = eqx.field(static=True)
    order: int = eqx.field(static=True)
    corrections: int = eqx.field(static=True)
    reuses: int = eqx.field(static=True)

    @property
    def searches(self) -> bool:
        """Whether other dampings are free."""
        return isinstance(self.method, SVD)

    @property
    def rejection(self) -> float:
        """Growth of the damping after a candidate that lowers nothing."""
        return 1e3 if self.searches else 4.0

    @property
    def hopeless(self) -> float:
        """The scaled damping from which a step is given up: a search around it would repeat the one before."""
        return 1e3 * HIGHEST if self.searches else HOPELESS


class Step(NamedTuple):
    """Outcome of one step."""

    theta: Theta
    cost: Scalar
    damping: Scalar
    """λ that was taken."""
    lam: Scalar
    """λ for the next step."""
    tries: Array
    rejections: Array
    """Since the last accepted step, those before this one included."""
    accepted: Array
    gain: Scalar
    effective_dimension: Scalar
    unreachable_fraction: Scalar
    gradient_norm: Scalar
    scale: Scalar
    is_hopeless: Array
    """Whether no further damping is left to try."""


class Start(NamedTuple):
    """Where a step begins."""

    theta: Theta
    cost: Scalar
    """That of θ as the last step left it, infinite if there was none: its rounding is not to be undercut."""
    lam: Scalar
    """NaN for a first step, which takes ``damping`` times the scale of the decomposition."""
    damping: Scalar
    rejections: Array
    """Of a step that an earlier fit began here and was cut short in."""


def step(aim: Aim, rule: Rule, start: Start, *, max_tries: Array, gradient_tol: Scalar) -> Step:
    """Try dampings from λ on until one lowers the cost, at most ``max_tries`` times, from one decomposition.

    Nothing is tried where the gradient is already within its tolerance.
    """
    theta = start.theta
    point = linearise(aim, rule.method, theta)
    cost = jnp.minimum(start.cost, aim.cost(point.x, theta))
    lam = jnp.where(jnp.isnan(start.lam), start.damping * point.decomposition.scale, start.lam)
    gradient_norm = jnp.linalg.norm(point.force) / aim.problem.num_samples
    if aim.aims_part:
        aim = aim.toward_waypoint(point.x)
        point = point._replace(force=aim.force(theta, point.x, point.A))
    merit = aim.merit(point.x, theta)
    nothing = Candidate(theta, cost, merit, jnp.zeros_like(theta), jnp.zeros_like(point.x))
    tried = _Tried(lam, nothing, nothing, jnp.full_like(lam, jnp.nan))

    def unfinished(carry: Any) -> Array:
        lam, tries, tried = carry
        hopeful = (lam <= rule.hopeless * point.decomposition.scale) & (gradient_norm > gradient_tol)
        return ~(tried.best.cost < cost) & (tries < max_tries) & hopeful

    def body(carry: Any) -> Any:
        lam, tries, _ = carry
        tried = _try_many(aim, rule, point, lam) if rule.searches else _try_one(aim, rule, point, lam, cost)
        lam = jnp.where(tried.best.cost < cost, tried.lam, lam * rule.rejection)
        return lam, tries + 1, tried

    lam, tries, tried = jax.lax.while_loop(unfinished, body, (lam, jnp.zeros_like(max_tries), tried))
    accepted = tried.best.cost < cost
    gain = (merit - tried.first.merit) / _predicted(aim, point.force, tried.first, tried.lam)
    rejections = start.rejections + tries - accepted.astype(tries.dtype)
    return Step(
        theta=jnp.where(accepted, tried.best.theta, theta),
        cost=jnp.where(accepted, tried.best.cost, cost),
        damping=tried.lam,
        lam=lam if rule.searches else jnp.where(accepted, _led(rule, point, lam, gain, rejections), lam),
        tries=tries,
        rejections=jnp.where(accepted, 0, rejections),
        accepted=accepted,
        gain=gain,
        effective_dimension=tried.dimension,
        unreachable_fraction=jnp.where(tries > 0, _held_back(aim, point, tried.first, tried.lam), jnp.nan),
        gradient_norm=gradient_norm,
        scale=point.decomposition.scale,
        # Where nothing was tried another step would not try anything either.
        is_hopeless=~accepted & ((lam > rule.hopeless * point.decomposition.scale) | (tries == 0)),
    )


class _Tried(NamedTuple):
    """The damping of a try, its candidate from the point itself, the best after reuses, the effective dimension."""

    lam: Scalar
    first: Candidate
    best: Candidate
    dimension: Scalar


def _try_one(aim: Aim, rule: Rule, point: Point, lam: Scalar, cost: Scalar) -> _Tried:
    """One damping, one factor."""
    factor = point.decomposition.at(lam + aim.ridge)
    first = follow(aim, point, factor, None, order=rule.order, corrections=rule.corrections)

    def reuse(_: Any, best: Candidate) -> Candidate:
        again = follow(aim, point, factor, best.theta, order=rule.order, corrections=rule.corrections)
        return _cheaper(again, best)

    # What was refused from its own point is not worth following further.
    reuses = jnp.where(first.cost < cost, rule.reuses, 0)
    best = jax.lax.fori_loop(0, reuses, reuse, first) if rule.reuses else first
    return _Tried(lam, first, best, factor.dimension_estimate())


def _try_many(aim: Aim, rule: Rule, point: Point, lam: Scalar) -> _Tried:
    """13 dampings around λ, the best by true cost; again around the one that was chosen for each reuse."""
    scale = point.decomposition.scale
    low = max(rule.method.floor(lam.dtype) ** 2, 1e-18)

    def search(lam: Scalar, start: Theta | None) -> tuple[Scalar, Candidate]:
        def one(lam: Scalar) -> Candidate:
            factor = point.decomposition.at(lam + aim.ridge)
            return follow(aim, point, factor, start, order=rule.order, corrections=rule.corrections)

        lams = jnp.clip(lam * 10.0 ** (jnp.arange(-6, 7, dtype=lam.dtype) / 2), low * scale, HIGHEST * scale)
        candidates = jax.vmap(one)(lams)
        least = jnp.argmin(candidates.merit)
        return lams[least], jax.tree.map(lambda leaf: leaf[least], candidates)

    chosen, first = search(lam, None)

    def reuse(_: Any, carry: tuple[Scalar, Candidate]) -> tuple[Scalar, Candidate]:
        around, again = search(carry[0], carry[1].theta)
        return around, _cheaper(again, carry[1])

    best = jax.lax.fori_loop(0, rule.reuses, reuse, (chosen, first))[1] if rule.reuses else first
    return _Tried(chosen, first, best, point.decomposition.at(chosen + aim.ridge).dimension_estimate())


def _cheaper(a: Candidate, b: Candidate) -> Candidate:
    return jax.tree.map(lambda a_leaf, b_leaf: jnp.where(a.merit < b.merit, a_leaf, b_leaf), a, b)


def _predicted(aim: Aim, force: Theta, candidate: Candidate, lam: Scalar) -> Scalar:
    """Decrease bᵀv − ½ vᵀHv of the model with H = AᵀA + αN, over N.

    (H + λ) v = f b, so that it is (1 − f/2) bᵀv + ½ λ|v|²; f = 1 where b comes from a residual.
    """
    v, f = candidate.v, 1.0 if aim.is_least_squares else aim.fraction
    return ((1 - 0.5 * f) * (force @ v) + 0.5 * lam * v @ v) / aim.problem.num_samples


def _led(rule: Rule, point: Point, lam: Scalar, gain: Scalar, rejections: Array) -> Scalar:
    """Next damping by the gain ratio: less after a step as good as promised, more after a poor one.

    After a rejection it is held: what was just refused would be refused again. Poisson 5-D, 966 points drawn anew,
    35 steps: 43 tries instead of 53 with a tenth after good steps, ten times as much on rejection, and no holding.
    """
    shrink = jnp.where(rejections > 0, 1.0, 0.3)
    least = rule.method.floor(lam.dtype) ** 2 * point.decomposition.scale
    return jnp.maximum(lam * jnp.where(gain > 0.75, shrink, jnp.where(gain > 0.25, 1.0, 4.0)), least)


def _held_back(aim: Aim, point: Point, candidate: Candidate, lam: Scalar) -> Scalar:
    """|r − A v|/|r| for a residual r; |b − (AᵀA + αN) v|/|b| = λ|v|/|b| where there is only a force."""
    if aim.is_least_squares:
        r = aim.residual(point.x)
        part, whole = jnp.linalg.norm(r - candidate.wanted), jnp.linalg.norm(r)
    else:
        part, whole = lam * jnp.linalg.norm(candidate.v), aim.fraction * jnp.linalg.norm(point.force)
    return part / jnp.where(whole > 0, whole, 1)
