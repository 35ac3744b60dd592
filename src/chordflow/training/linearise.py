"""What a fit minimises, and the quadratic model of it at a point.

With B Bᵀ = ∇²ℓ per sample, R = BᵀW^½ and A = R D, the generalised Gauss–Newton model of N (C + ½α|θ|²) is
½|A δ|² + ½αN|θ + δ|² − bᵀδ with b = −N Dᵀ∇ₓC. For squared error B = 1 and b = Aᵀr with r = W^½(y − x).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
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
    params
        Any parameters of the model: shapes, and the values of frozen leaves.
    goal
        Flat outputs (n,) to aim at in the metric of squared error, or None for the loss's own Gauss–Newton direction.
    alpha
        α of the penalty ½α|θ|², None for no penalty.
    fraction
        f in (0, 1]: a step aims at x + f (target − x); without a residual its direction is multiplied by f.
    aims_part
        Whether f < 1.
    """

    problem: Problem
    params: Any
    goal: Flat | None
    alpha: Scalar | None
    fraction: Scalar
    aims_part: bool = eqx.field(static=True)

    def toward_waypoint(self, x: Flat) -> "Aim":
        """The aim of one step from x: the same, or with x + f (goal − x) as its goal."""
        if not (self.aims_part and self.is_least_squares):
            return self
        waypoint = x + self.fraction * (self._goal - x)
        return Aim(self.problem, self.params, waypoint, self.alpha, self.fraction, self.aims_part)

    def redrawn(self, key: Array) -> "Aim":
        """The same on newly drawn samples."""
        return eqx.tree_at(lambda aim: aim.problem, self, self.problem.redrawn(key))

    def full(self, theta: Theta) -> Any:
        """Full parameters from the trainable vector."""
        return self.problem.ravel(self.params)[1](theta)

    def outputs(self, theta: Theta) -> Flat:
        """Flat outputs x(θ)."""
        return self.problem.flatten(self.problem.outputs(self.full(theta)))

    def cost(self, x: Flat, theta: Theta) -> Scalar:
        """C(x) + ½α|θ|²."""
        cost = self.problem.cost_at(self.problem.unflatten(x))
        return cost if self.alpha is None else cost + 0.5 * self.alpha * jnp.sum(theta**2)

    def merit(self, x: Flat, theta: Theta) -> Scalar:
        """What candidates of a step are compared by: the cost, or ½|W^½(x − goal)|²/N where there is a goal.

        By the cost a candidate that overshoots a waypoint would be the better one, and the path be lost; and the gain
        ratio compares with what the linear model promised, which is the distance.
        """
        if self.goal is None:
            return self.cost(x, theta)
        distance = 0.5 * jnp.sum(self.residual(x) ** 2) / self.problem.num_samples
        return distance if self.alpha is None else distance + 0.5 * self.alpha * jnp.sum(theta**2)

    @property
    def ridge(self) -> Scalar:
        """αN, what the penalty adds to AᵀA."""
        N = self.problem.num_samples
        return jnp.zeros_like(N) if self.alpha is None else self.alpha * N

    @property
    def is_least_squares(self) -> bool:
        """Whether B = 1 and the residual is known: squared error, or any goal in output space."""
        return self.goal is not None or isinstance(self.problem.loss, SquaredError)

    def linearised(self, theta: Theta) -> tuple[Flat, WeightedJacobian]:
        """x(θ) and A = R D there."""
        in_loss_metric = not self.is_least_squares
        return WeightedJacobian.with_outputs(self.problem, self.full(theta), in_loss_metric=in_loss_metric)

    def residual(self, x: Flat) -> Flat:
        """W^½(goal − x)."""
        return jnp.sqrt(self.problem.inner_product) * (self._goal - x)

    @property
    def _goal(self) -> Flat:
        return self.problem.flatten(self.problem.targets) if self.goal is None else self.goal

    def force(self, theta: Theta, x: Flat, A: WeightedJacobian) -> Theta:
        """b − αNθ, the right-hand side of the model: −N ∇_θ(C + ½α|θ|²) unless there is a goal. One product with Aᵀ."""
        if self.is_least_squares:
            b = A.rmv(self.residual(x))
        else:
            descent = self.problem.flatten(self.problem.descent(self.problem.unflatten(x)))
            cotangent = self.problem.num_samples * self.problem.inner_product * descent
            b = ravel_pytree(A.jacobian.T.mv(self.problem.unflatten(cotangent)))[0]
        return b if self.alpha is None else b - self.ridge * theta
