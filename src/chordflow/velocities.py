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


class BetweenEnds(eqx.Module):
    """t → fn(t, x(0), y), with the ends as data of a compiled run."""

    fn: Callable[[Scalar, Any, Any], Any]
    start: Any
    end: Any

    def __call__(self, t: Scalar) -> Any:
        """The path at time t."""
        return self.fn(t, self.start, self.end)


class Along(AbstractVelocity):
    """u = ẋ*(t) + κ (x*(t) − x) along a prescribed path, t in [0, 1]; κ pulls the outputs back to it.

    Parameters
    ----------
    path
        Differentiable ``path(t) -> outputs-like``; starts at the initial outputs, unless a gain pulls them to it.
    gain
        κ ≥ 0, per unit of t.
    """

    path: Callable[[Scalar], Any]
    gain: Scalar | float = 0.0

    def __check_init__(self):
        _check_path(self.path, "path(t)", self.gain)

    @property
    def is_autonomous(self) -> bool:
        """No: its own t runs from 0 to 1."""
        return False

    def bind(self, problem: Problem, outputs_0: OutputsLike) -> Tracking:
        """Check the shape of the path and, without a gain, that it starts at ``outputs_0`` (to half the digits)."""
        x0 = problem.flatten(outputs_0)
        value = jax.eval_shape(self.path, jax.ShapeDtypeStruct((), x0.dtype))
        expected = jax.tree.map(lambda x: x.shape, outputs_0)
        if jax.tree.map(lambda x: x.shape, value) != expected:
            got = jax.tree.map(lambda x: x.shape, value)
            raise ValueError(f"along(): path(t) must be like the outputs {expected}, got {got}")
        self._check_start(problem, x0)
        return Tracking(self.path, jnp.asarray(self.gain, x0.dtype))

    def _check_start(self, problem: Problem, x0: Flat) -> None:
        start, weights = problem.flatten(self.path(jnp.zeros((), x0.dtype))), problem.inner_product
        if not is_concrete(start, x0, weights, self.gain) or self.gain > 0:
            return
        apart, largest = jnp.abs(start - x0), jnp.maximum(jnp.abs(start), jnp.abs(x0))
        # Samples of weight 0 are as if absent.
        distance, size = (float(jnp.max(jnp.where(weights > 0, part, 0))) for part in (apart, largest))
        if not distance <= float(jnp.finfo(x0.dtype).eps) ** 0.5 * size:
            raise ValueError(
                f"along(): path(0) is {distance:.3g} away from the outputs at the start, and with gain=0 it stays so: "
                "start the path at problem.outputs(params), or give a gain, as in gain=10"
            )


class Route(AbstractVelocity):
    """As :class:`Along`, for a path that is told its ends: x*(t) = fn(t, x(0), y), x(0) at t = 0.

    Parameters
    ----------
    fn
        Differentiable ``fn(t, x0, y) -> outputs-like``; x0 the outputs at the start and y the targets, outputs-like.
    gain
        κ ≥ 0, per unit of t.

    Examples
    --------
    A path that leaves and arrives at rest:

    >>> import chordflow as cf
    >>> smoothly = cf.velocities.Route(lambda t, x0, y: x0 + t**2 * (3 - 2 * t) * (y - x0))
    >>> flow = cf.Flow(smoothly, cf.filters.Damped())
    """

    fn: Callable[[Scalar, Any, Any], Any]
    gain: Scalar | float = 0.0

    def __check_init__(self):
        _check_path(self.fn, "fn(t, x0, y)", self.gain)

    @property
    def is_autonomous(self) -> bool:
        """No: its own t runs from 0 to 1."""
        return False

    def bind(self, problem: Problem, outputs_0: OutputsLike) -> Tracking:
        """As for :class:`Along`."""
        return Along(BetweenEnds(self.fn, outputs_0, problem.targets), self.gain).bind(problem, outputs_0)


def _check_path(path: Any, form: str, gain: Any) -> None:
    if not callable(path):
        raise ValueError(f"along(): path must be a function {form} -> outputs, got {type(path).__name__}")
    require_within("along()", "gain", gain, 0)
