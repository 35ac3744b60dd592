"""Events end a run early; ``traj.result`` is then ``event_occurred`` and ``traj.stats['event']`` the event's index."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from chordflow.bounds import require_within
from chordflow.measures import Moment


class AbstractEvent(eqx.Module):
    """A condition looked at after every accepted step."""

    @property
    def asks_rank(self) -> bool:
        """Whether the event needs the rank policy."""
        return False

    @abstractmethod
    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Whether the run should end at this moment."""


class CostBelow(AbstractEvent):
    """C − C_min < ``target``; C_min is 0 where the loss has no closed-form minimum. One forward pass a step."""

    target: float

    def __check_init__(self):
        require_within("CostBelow", "target", self.target, 0, open_left=True)

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """C − C_min < target."""
        minimum = moment.problem.minimum()
        excess = moment.cost if minimum is None else moment.cost - minimum
        return excess < self.target


class VelocityBelow(AbstractEvent):
    """max |u(t, x)| < ``tolerance``: the outputs are told to stand still. One forward pass a step."""

    tolerance: float

    def __check_init__(self):
        require_within("VelocityBelow", "tolerance", self.tolerance, 0, open_left=True)

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Max |u| < tolerance."""
        return moment.speed < self.tolerance


class EffectiveDimensionBelow(AbstractEvent):
    """Σ σ²/(σ²+λ) < ``level``: the Jacobian has lost directions. One singular value decomposition a step."""

    level: float

    def __check_init__(self):
        require_within("EffectiveDimensionBelow", "level", self.level, 0, open_left=True)

    @property
    def asks_rank(self) -> bool:
        """Yes."""
        return True

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Effective dimension < level."""
        return moment.effective_dimension < self.level


class EffectiveDimensionAbove(AbstractEvent):
    """Σ σ²/(σ²+λ) > ``level``: the Jacobian has gained directions. One singular value decomposition a step."""

    level: float

    def __check_init__(self):
        require_within("EffectiveDimensionAbove", "level", self.level, 0, open_left=True)

    @property
    def asks_rank(self) -> bool:
        """Yes."""
        return True

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Effective dimension > level."""
        return moment.effective_dimension > self.level


class VelocityUnreachable(AbstractEvent):
    """|u − S_λu|/|u| > ``fraction``: ends a run with ``velocity_unreachable`` once that much cannot be realised.

    One Cholesky factorisation a step.
    """

    fraction: float

    def __check_init__(self):
        require_within("VelocityUnreachable", "fraction", self.fraction, 0, 1, open_left=True, open_right=True)

    @property
    def asks_rank(self) -> bool:
        """Yes."""
        return True

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Unreachable fraction > fraction."""
        return moment.unreachable_fraction > self.fraction


def first_event(event_mask: list[Array] | None) -> Float[Array, ""] | Array:
    """Index of the event that fired, −1 for none."""
    if not event_mask:
        return jnp.asarray(-1)
    fired = jnp.stack([jnp.asarray(flag) for flag in event_mask])
    return jnp.where(jnp.any(fired), jnp.argmax(fired), -1)
