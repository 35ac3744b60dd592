"""Velocities u(t, x): where the outputs are told to go.

A velocity is bound to a problem and its first outputs before a run; what results is a small pytree of arrays, so that
one compiled right-hand side serves every flow with the same filter.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.bounds import require_within
from chordflow.jacobian import OutputsLike
from chordflow.problem import Problem, is_concrete

Flat = Float[Array, " n"]
Scalar = Float[Array, ""]


class AbstractBoundVelocity(eqx.Module):
    """u(t, x) on flat outputs (n,) of one problem."""

    @abstractmethod
    def __call__(self, problem: Problem, t: Scalar, x: Flat) -> Flat:
        """The velocity the outputs are told to have."""


class Affine(AbstractBoundVelocity):
    """u = gain · (−W⁻¹∇ₓC(x)) + constant: the descent velocity and the straight line are its two ends."""

    gain: Scalar
    constant: Flat

    def __call__(self, problem: Problem, t: Scalar, x: Flat) -> Flat:
        """Gain times descent, plus the constant."""
        del t
        return self.gain * problem.flatten(problem.descent(problem.unflatten(x))) + self.constant


class Tracking(AbstractBoundVelocity):
    """u = ẋ*(t) + κ (x*(t) − x)."""

    path: Callable[[Scalar], Any]
    gain: Scalar

    def __call__(self, problem: Problem, t: Scalar, x: Flat) -> Flat:
        """Feed-forward plus feedback."""
        x_star, dx_star = jax.jvp(lambda t: problem.flatten(self.path(t)), (t,), (jnp.ones_like(t),))
        return dx_star + self.gain * (x_star - x)


class AbstractVelocity(eqx.Module):
    """What a flow tells its outputs to do; :meth:`bind` fits it to a problem."""

    @property
    @abstractmethod
    def is_autonomous(self) -> bool:
        """Whether the run is in gradient-flow time s (and may take a clock), rather than t in [0, 1]."""

    @abstractmethod
    def bind(self, problem: Problem, outputs_0: OutputsLike) -> AbstractBoundVelocity:
        """Fit to a problem that starts at ``outputs_0``; errors where the problem does not allow the velocity."""


class Descent(AbstractVelocity):
    """u = −W⁻¹∇ₓC(x), steepest descent of the cost in output space; −(x−y)/N for squared error (2.19)."""

    @property
    def is_autonomous(self) -> bool:
        """Yes: in gradient-flow time."""
        return True

    def bind(self, problem: Problem, outputs_0: OutputsLike) -> Affine:
        """Gain 1, no constant."""
        x0 = problem.flatten(outputs_0)
        return Affine(jnp.ones((), x0.dtype), jnp.zeros_like(x0))


class Straight(AbstractVelocity):
    """u = target − x(0), constant on t in [0, 1]: outputs travel the chord (2.53).

    Parameters
    ----------
    target
        Outputs-like; None takes the loss's equilibrium: the labels for squared error, log y + c 1 for cross-entropy.
    """

    target: Any = None

    @property
    def is_autonomous(self) -> bool:
        """No: its own t runs from 0 to 1."""
        return False

    def bind(self, problem: Problem, outputs_0: OutputsLike) -> Affine:
        """Gain 0 and the chord as constant; ValueError if there is no finite target in closed form."""
        target = problem.equilibrium(outputs_0) if self.target is None else self.target
        if target is None:
            raise ValueError(
                f"straight(): {type(problem.loss).__name__} has no target in closed form; give target=, or "
                "equilibrium= to cf.Loss"
            )
        x0 = problem.flatten(outputs_0)
        got, expected = jax.tree.map(jnp.shape, target), jax.tree.map(jnp.shape, outputs_0)
        if got != expected:
            raise ValueError(f"straight(): target must be like the outputs, got {got}, expected {expected}")
        goal = problem.flatten(jax.tree.map(lambda t, x: jnp.asarray(t, x.dtype), target, outputs_0))
        if is_concrete(goal) and not bool(jnp.all(jnp.isfinite(goal))):
            raise ValueError(
                "straight(): the target is not finite: one-hot labels have no finite equilibrium under cross-entropy "
                "(2.89); smooth them with cf.losses.smooth_labels, or use adapted()"
            )
        return Affine(jnp.zeros((), x0.dtype), goal - x0)


class Along(AbstractVelocity):
    """u = ẋ*(t) + κ (x*(t) − x) along a prescribed path, t in [0, 1]; κ pulls the outputs back to it.

    Parameters
    ----------
    path
        Differentiable ``path(t) -> outputs-like``; starts at the initial outputs.
    gain
        κ ≥ 0, per unit of t.
    """

    path: Callable[[Scalar], Any]
    gain: Scalar | float = 0.0

    def __check_init__(self):
        if not callable(self.path):
            raise ValueError(f"along(): path must be a function path(t) -> outputs, got {type(self.path).__name__}")
        require_within("along()", "gain", self.gain, 0)

    @property
    def is_autonomous(self) -> bool:
        """No: its own t runs from 0 to 1."""
        return False

    def bind(self, problem: Problem, outputs_0: OutputsLike) -> Tracking:
        """Check the shape of the path's value."""
        x0 = problem.flatten(outputs_0)
        value = jax.eval_shape(self.path, jax.ShapeDtypeStruct((), x0.dtype))
        expected = jax.tree.map(lambda x: x.shape, outputs_0)
        if jax.tree.map(lambda x: x.shape, value) != expected:
            got = jax.tree.map(lambda x: x.shape, value)
            raise ValueError(f"along(): path(t) must be like the outputs {expected}, got {got}")
        return Tracking(self.path, jnp.asarray(self.gain, x0.dtype))
