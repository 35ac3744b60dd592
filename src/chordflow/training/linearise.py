"""The quadratic model of the cost at a point: where a step aims and in which inner product it is measured.

With B Bᵀ = ∇²ℓ per sample, R = BᵀW^½ and A = R D, the generalised Gauss–Newton model of N (C + ½α|θ|²) is
½|A δ|² + ½αN|θ + δ|² − bᵀδ with b = −N Dᵀ∇ₓC. For squared error B = 1 and b = Aᵀr with r = W^½(y − x).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.losses import SquaredError
from chordflow.problem import Problem
from chordflow.solve import WeightedJacobian

Flat = Float[Array, " n"]
Theta = Float[Array, " K"]
Scalar = Float[Array, ""]


class Aim(eqx.Module):
    """What a run minimises, as functions of the trainable vector θ.

    Parameters
    ----------
    problem
        The problem; its loss decides the output metric, unless ``goal`` is given.
    goal
        Flat outputs (n,) to aim at in the metric of squared error, or None for the loss's own Gauss–Newton direction.
    alpha
        α of the penalty ½α|θ|².
    """

    problem: Problem
    params: Any
    goal: Flat | None
    alpha: Scalar

    def outputs(self, theta: Theta) -> Flat:
        """Flat outputs x(θ)."""
        return self.problem.flatten(self.problem.outputs(self.full(theta)))

    def full(self, theta: Theta) -> Any:
        """Full parameters from the trainable vector."""
        return self.problem.ravel(self.params)[1](theta)

    def cost(self, x: Flat, theta: Theta) -> Scalar:
        """C(x) + ½α|θ|²."""
        return self.problem.cost_at(self.problem.unflatten(x)) + 0.5 * self.alpha * jnp.sum(theta**2)

    @property
    def is_least_squares(self) -> bool:
        """Whether B = 1 and the residual is known: squared error, or any goal in output space."""
        return self.goal is not None or isinstance(self.problem.loss, SquaredError)

    def residual(self, x: Flat) -> Flat:
        """W^½(goal − x)."""
        goal = self.problem.flatten(self.problem.targets) if self.goal is None else self.goal
        return jnp.sqrt(self.problem.inner_product) * (goal - x)

    def to_metric(self, x: Flat, dx: Float[Array, "n *k"]) -> Float[Array, "n *k"]:
        """R dx = BᵀW^½ dx at outputs x, for a vector (n,) or the columns of a matrix (n, K)."""
        root = jnp.sqrt(self.problem.inner_product)
        scaled = root.reshape(-1, *(1,) * (dx.ndim - 1)) * dx
        if self.is_least_squares:
            return scaled
        blocks, start = [], 0
        for values, term in zip(self._terms(x), self.problem.terms, strict=True):
            size, (N, Q) = term.targets.size, term.targets.shape
            B = jax.vmap(self.problem.loss.hessian_factor)(values, term.targets)
            part = scaled[start : start + size].reshape(N, Q, *dx.shape[1:])
            blocks.append(jnp.einsum("nqr,nq...->nr...", B, part).reshape(size, *dx.shape[1:]))
            start += size
        return jnp.concatenate(blocks)

    def _terms(self, x: Flat) -> tuple[Array, ...]:
        like = self.problem.unflatten(x)
        return (like,) if self.problem.single else tuple(like)

    def gradient(self, x: Flat, theta: Theta) -> Theta:
        """b − αNθ = −N ∇_θ(C + ½α|θ|²): one product with Dᵀ."""
        A = WeightedJacobian.at(self.problem, self.full(theta))
        N = self.problem.num_samples
        if self.goal is not None:
            b = A.rmv(self.residual(x))
        else:
            b = N * A.rmv(A.root * self.problem.flatten(self.problem.descent(self.problem.unflatten(x))))
        return b - self.alpha * N * theta
