"""Quantities of a moment (t, θ) of a run: what can be saved, watched by events, and reported."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from chordflow.geometry import relative_residual
from chordflow.jacobian import OutputsLike
from chordflow.problem import Problem
from chordflow.solve import AbstractFactor, AbstractMethod, RankPolicy, WeightedJacobian
from chordflow.velocities import AbstractBoundVelocity


class Moment:
    """One time of a run; every quantity is computed once, when first asked for."""

    def __init__(
        self,
        problem: Problem,
        velocity: AbstractBoundVelocity,
        policy: RankPolicy,
        method: AbstractMethod,
        t: Float[Array, ""],
        params: PyTree,
    ):
        self.problem, self.velocity, self.policy, self.method = problem, velocity, policy, method
        self.t, self.params = t, params

    @cached_property
    def outputs(self) -> OutputsLike:
        """x(θ)."""
        return self.problem.outputs(self.params)

    @cached_property
    def cost(self) -> Float[Array, ""]:
        """C(x)."""
        return self.problem.cost_at(self.outputs)

    @cached_property
    def flat_velocity(self) -> Float[Array, " n"]:
        """u(t, x) (n,), before the filter and without the clock's factor."""
        return self.velocity(self.problem, self.t, self.problem.flatten(self.outputs))

    @cached_property
    def weighted_jacobian(self) -> WeightedJacobian:
        """W^½D."""
        return WeightedJacobian.at(self.problem, self.params)

    @cached_property
    def factor(self) -> AbstractFactor:
        """The run's factorisation of W^½D with the policy's λ, by which reachability is measured."""
        return self.method.factorise(self.weighted_jacobian, self.policy.lam)

    @cached_property
    def spectrum(self) -> Float[Array, " k"]:
        """Singular values of W^½D, descending."""
        return self.weighted_jacobian.sigma()

    @cached_property
    def effective_dimension(self) -> Float[Array, ""]:
        """Σ σ²/(σ²+λ)."""
        return self.factor.effective_dimension()

    @cached_property
    def unreachable_fraction(self) -> Float[Array, ""]:
        """|u − S_λu|/|u| in the W-norm."""
        A = self.weighted_jacobian
        return relative_residual(A, A.root * self.flat_velocity, self.factor, self.policy.passes)

    @cached_property
    def speed(self) -> Float[Array, ""]:
        """max |u|, the largest component of the velocity the outputs are told to have; absent samples do not count."""
        counted = self.problem.inner_product > 0
        return jnp.max(jnp.where(counted, jnp.abs(self.flat_velocity), 0))


MEASURES: Mapping[str, Callable[[Moment], Any]] = {
    "outputs": lambda moment: moment.outputs,
    "cost": lambda moment: moment.cost,
    # Functions and numbers in the parameters, such as an activation, are no quantities of a moment.
    "params": lambda moment: eqx.filter(moment.params, eqx.is_array),
    "spectrum": lambda moment: moment.spectrum,
    "effective_dimension": lambda moment: moment.effective_dimension,
    "unreachable_fraction": lambda moment: moment.unreachable_fraction,
    "speed": lambda moment: moment.speed,
}

RANK_MEASURES = frozenset({"effective_dimension", "unreachable_fraction"})
"""Those that need the rank policy, hence an exact σ_max at the start."""
