"""Clocks: the variable in which a descent flow is integrated and reported.

A clock is a smooth increasing s(t) with s(0) = 0; a flow dθ/ds = F(θ) becomes dθ/dt = s'(t) F(θ). The path is the same
(2.50–2.53); only when each point is passed changes.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.bounds import require_within

Time = Float[Array, "*t"]


class AbstractClock(eqx.Module):
    """Increasing s(t) on [0, end) with s(0) = 0; all three maps accept arrays of any shape and keep their dtype."""

    @property
    def end(self) -> float:
        """The supremum of t, infinite unless said otherwise."""
        return float("inf")

    @abstractmethod
    def s(self, t: Time) -> Time:
        """Gradient-flow time s(t)."""

    @abstractmethod
    def t(self, s: Time) -> Time:
        """The inverse, clock time t(s)."""

    @abstractmethod
    def derivative(self, t: Time) -> Time:
        """ds/dt."""


class GradientTime(AbstractClock):
    """s itself: s(t) = t, the variable of (2.3) and (2.26)."""

    def s(self, t: Time) -> Time:
        """t."""
        return t

    def t(self, s: Time) -> Time:
        """s."""
        return s

    def derivative(self, t: Time) -> Time:
        """1."""
        return jnp.ones_like(t)


class Interpolation(AbstractClock):
    """s(t) = −n ln(1 − t), ds/dt = n/(1 − t), t in [0, 1) (2.51–2.53), with n = N the number of samples.

    On this clock the adapted flow of squared error is linear interpolation, x̃(t) = (1−t) x(0) + t y.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> clock = Interpolation(10)
    >>> round(float(clock.t(clock.s(jnp.asarray(0.25)))), 6), float(clock.derivative(jnp.asarray(0.5)))
    (0.25, 20.0)
    """

    n: float | Float[Array, ""]

    def __check_init__(self):
        require_within("Interpolation", "n, the number of samples,", self.n, 0, open_left=True)

    @property
    def end(self) -> float:
        """1, reached as s → ∞."""
        return 1.0

    def s(self, t: Time) -> Time:
        """−n ln(1 − t)."""
        return -self._n(t) * jnp.log1p(-t)

    def t(self, s: Time) -> Time:
        """1 − e^(−s/n)."""
        return -jnp.expm1(-s / self._n(s))

    def derivative(self, t: Time) -> Time:
        """n/(1 − t)."""
        return self._n(t) / (1 - t)

    def _n(self, like: Time) -> Float[Array, ""]:
        return jnp.asarray(self.n, like.dtype)


class Log(AbstractClock):
    """s(t) = unit (eᵗ − 1): for s ≫ unit equal steps of t multiply s, and t(0) = 0 still starts at s = 0.

    The clock for flows that end like a power or logarithm of s: one-hot cross-entropy, the standard flow's slow modes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> round(float(Log().s(jnp.asarray(1.0))), 4), float(Log(unit=5.0).derivative(jnp.asarray(0.0)))
    (1.7183, 5.0)
    """

    unit: float | Float[Array, ""] = 1.0

    def __check_init__(self):
        require_within("Log", "unit", self.unit, 0, open_left=True)

    def s(self, t: Time) -> Time:
        """Unit · (eᵗ − 1)."""
        return jnp.asarray(self.unit, t.dtype) * jnp.expm1(t)

    def t(self, s: Time) -> Time:
        """ln(1 + s/unit)."""
        return jnp.log1p(s / jnp.asarray(self.unit, s.dtype))

    def derivative(self, t: Time) -> Time:
        """Unit · eᵗ."""
        return jnp.asarray(self.unit, t.dtype) * jnp.exp(t)
