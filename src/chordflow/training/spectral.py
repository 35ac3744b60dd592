"""Steps from one singular value decomposition: every damping at the price of one, the best by true cost."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.training.linearise import Aim, Flat, Scalar, Theta


class Model(NamedTuple):
    """A = U Σ Vᵀ at θ, the outputs there and the coefficients of the step."""

    theta: Theta
    x: Flat
    U: Float[Array, "n k"]
    sigma: Float[Array, " k"]
    Vt: Float[Array, "k K"]
    load: Float[Array, " k"]
    """Vᵀ times the negative gradient, formed as σ Uᵀr where there is a residual: exact at small σ."""
    outside: Theta
    """The part of −αNθ outside the range of Aᵀ."""
    ridge: Scalar
    """αN."""


class Step(NamedTuple):
    """Outcome of one step."""

    theta: Theta
    cost: Scalar
    lam: Scalar
    accepted: Array
    gain: Scalar
    effective_dimension: Scalar
    unreachable_fraction: Scalar
    gradient_norm: Scalar
    scale: Scalar
    """σ_max²."""


def linearise(aim: Aim, theta: Theta) -> Model:
    """One dense Jacobian and its singular value decomposition."""
    x = aim.outputs(theta)
    D = aim.problem.jacobian(aim.full(theta)).as_matrix()
    U, sigma, Vt = jnp.linalg.svd(aim.to_metric(x, D), full_matrices=False)
    ridge = aim.alpha * aim.problem.num_samples
    pull = ridge * (Vt @ theta)
    load = sigma * (U.T @ aim.residual(x)) - pull if aim.is_least_squares else Vt @ aim.gradient(x, theta)
    outside = -ridge * theta + Vt.T @ pull
    return Model(theta, x, U, sigma, Vt, load, outside, ridge)


def _realise(model: Model, lam: Scalar, metric_dx: Flat) -> Theta:
    """The damped inverse of A on a displacement of the outputs in the metric."""
    return model.Vt.T @ (model.sigma / (model.sigma**2 + lam + model.ridge) * (model.U.T @ metric_dx))


def candidate(aim: Aim, model: Model, lam: Scalar, order: int, corrections: int) -> tuple[Scalar, Theta]:
    """The step of one damping, followed to higher order: true cost and the new θ.

    v solves the damped model; a = −A⁺R x''[v,v]; θ + v + a/2, then chord corrections θ ← θ − A⁺R(x(θ) − (x + Dv)) with
    the same factor pull the outputs back to the straight line. The plain damped step replaces a corrected one that
    costs more.
    """
    damping = model.sigma**2 + lam + model.ridge
    v = model.Vt.T @ (model.load / damping) + model.outside / (lam + model.ridge)
    plain = model.theta + v
    best = aim.cost(aim.outputs(plain), plain), plain
    if order < 2 and corrections == 0:
        return best

    def along(t: Scalar) -> Flat:
        return aim.outputs(model.theta + t * v)

    zero, one = jnp.zeros_like(lam), jnp.ones_like(lam)
    if order < 2:
        # R Dv from the factor, where the model has no forward derivative.
        wanted, bent = model.U @ (model.sigma * (model.Vt @ v)), plain
    else:
        dx, ddx = jax.jvp(lambda t: jax.jvp(along, (t,), (one,))[1], (zero,), (one,))
        wanted = aim.to_metric(model.x, dx)
        bent = plain - 0.5 * _realise(model, lam, aim.to_metric(model.x, ddx))
    for _ in range(corrections):
        moved = aim.to_metric(model.x, aim.outputs(bent) - model.x)
        bent = bent - _realise(model, lam, moved - wanted)
    corrected = aim.cost(aim.outputs(bent), bent), bent
    return jax.tree.map(lambda c, p: jnp.where(corrected[0] <= best[0], c, p), corrected, best)


def step(aim: Aim, theta: Theta, cost: Scalar, lam: Scalar, *, order: int, corrections: int) -> Step:
    """Best of 13 dampings around the last one, by true cost; on rejection the damping grows a thousandfold."""
    model = linearise(aim, theta)
    top = model.sigma[0] ** 2
    exponents = jnp.arange(-6, 7, dtype=theta.dtype) / 2
    lams = jnp.clip(lam * 10.0**exponents, 1e-18 * top, 1e2 * top)
    costs, thetas = jax.vmap(lambda one: candidate(aim, model, one, order, corrections))(lams)
    finite = jnp.isfinite(costs) & jnp.all(jnp.isfinite(thetas), axis=1)
    costs = jnp.where(finite, costs, jnp.inf)
    best = jnp.argmin(costs)
    accepted = costs[best] < cost
    damping = model.sigma**2 + lams[best] + model.ridge
    predicted = jnp.sum(model.load**2 / damping * (1 - 0.5 * (model.sigma**2 + model.ridge) / damping))
    predicted = predicted / aim.problem.num_samples
    reached = model.sigma**2 / damping
    load = jnp.linalg.norm(model.load)
    return Step(
        jnp.where(accepted, thetas[best], theta),
        jnp.where(accepted, costs[best], cost),
        jnp.where(accepted, lams[best], lam * 1e3),
        accepted,
        (cost - costs[best]) / predicted,
        jnp.sum(reached),
        jnp.linalg.norm((1 - reached) * model.load) / jnp.where(load > 0, load, 1),
        load / aim.problem.num_samples,
        top,
    )


@eqx.filter_jit
def initial_damping(aim: Aim, theta: Theta) -> Scalar:
    """λ₀ = 10⁻² σ_max²."""
    return 1e-2 * linearise(aim, theta).sigma[0] ** 2
