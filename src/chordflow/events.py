"""Events end a run early; ``traj.stats['event']`` is then the index of the event that did.

``traj.result`` is ``event_occurred``, an end that was asked for; :class:`VelocityUnreachable` alone is a failure with a
code of its own. Costs are those of looking once: at the start, and after each accepted step; nothing is shared with the
right-hand side.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from chordflow.bounds import require_within
from chordflow.measures import Moment


class AbstractEvent(eqx.Module):
    """A condition looked at at the start and after every accepted step, not between steps.

    A run whose condition holds at the start ends there: no step is kept, ``t_last`` is 0.
    """

    @property
    def asks_rank(self) -> bool:
        """Whether the event needs the rank policy."""
        return False

    @abstractmethod
    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Whether the run should end at this moment."""


class CostBelow(AbstractEvent):
    """C − C_min < ``target``; C_min is 0 where the loss has no closed-form minimum. One forward pass."""

    target: float

    def __check_init__(self):
        require_within("CostBelow", "target", self.target, 0, open_left=True)

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """C − C_min < target."""
        minimum = moment.problem.minimum()
        excess = moment.cost if minimum is None else moment.cost - minimum
        return excess < self.target


class VelocityBelow(AbstractEvent):
    """max |u(t, x)| < ``tolerance``: the outputs are told to stand still. One forward pass."""

    tolerance: float

    def __check_init__(self):
        require_within("VelocityBelow", "tolerance", self.tolerance, 0, open_left=True)

    def occurred(self, moment: Moment) -> Bool[Array, ""]:
        """Max |u| < tolerance."""
        return moment.speed < self.tolerance


class EffectiveDimensionBelow(AbstractEvent):
    """Σ σ²/(σ²+λ) < ``level``: the Jacobian has lost directions.

    One factorisation of D by the run's ``linear_solver``; by Cholesky, the inverse of its factor too.
    """

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
    """Σ σ²/(σ²+λ) > ``level``: the Jacobian has gained directions.

    Costs as :class:`EffectiveDimensionBelow`.
    """

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
    """|u − S_λu|/|u| > ``fraction``: a run that goes on only while the parameters can do what they are told.

    It ends with ``velocity_unreachable``, which ``evolve`` raises as :class:`chordflow.FlowError` unless
    ``throw=False``; an event is a condition that is wanted, this one a requirement. One factorisation of D by the run's
    ``linear_solver`` and some products.
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
