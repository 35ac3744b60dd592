"""How a run can end. Each code says what happened, the usual causes, and what to do about them."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool


class RESULTS(eqx.Enumeration):
    """Outcome of :func:`chordflow.evolve`. In every case the last good time, outputs and parameters are kept."""

    successful = ""
    event_occurred = "An event ended the run before t1; traj.stats['event'] says which."
    step_limit = (
        "max_steps was reached before t1. (a) The standard and interpolated flows are as stiff as DDᵀ: expect about "
        "s (1−τ) σ_max²/(3.3 N) explicit steps (cf.expected_steps). (b) With a hard cutoff the vector field is "
        "discontinuous: use adapted(). (c) Otherwise raise max_steps or loosen rtol."
    )
    not_finite = (
        "The outputs or their derivatives became NaN or infinite ahead of the last good t. Check the model at "
        "traj.params; a function such as sqrt or log may have left its domain."
    )
    velocity_unreachable = (
        "The parameters can no longer make the outputs move as told: the step size fell to nothing, or an event "
        "VelocityUnreachable was watching (traj.stats['event']). (a) The Jacobian has lost rank in a direction the "
        "velocity needs, and the parameters run away: look at save=('unreachable_fraction', 'spectrum'), or damp more "
        "(larger eps). (b) A hard cutoff is discontinuous: use adapted()."
    )
    step_size_underflow = (
        "The step size fell to nothing. The vector field is not smooth enough for rtol: mollify non-smooth "
        "activations, or loosen rtol."
    )
    solver_failed = "The implicit solver's nonlinear iteration failed: use an explicit solver or loosen rtol."


def from_diffrax(result: diffrax.RESULTS, inverts: bool) -> RESULTS:
    """Translate a diffrax outcome; ``inverts`` says whether the flow's filter inverts singular values."""
    underflow = RESULTS.velocity_unreachable if inverts else RESULTS.step_size_underflow
    translated = RESULTS.solver_failed
    for theirs, ours in (
        (diffrax.RESULTS.successful, RESULTS.successful),
        (diffrax.RESULTS.event_occurred, RESULTS.event_occurred),
        (diffrax.RESULTS.max_steps_reached, RESULTS.step_limit),
        (diffrax.RESULTS.nonfinite, RESULTS.not_finite),
        (diffrax.RESULTS.dt_min_reached, underflow),
    ):
        translated = RESULTS.where(result == theirs, ours, translated)
    return translated


def is_okay(result: RESULTS) -> Bool[Array, ""]:
    """Whether the run ended as asked: at t1 or by an event."""
    return jnp.asarray((result == RESULTS.successful) | (result == RESULTS.event_occurred))


class FlowError(RuntimeError):
    """Raised by ``evolve(..., throw=True)`` when a run does not end as asked; carries the trajectory so far."""

    def __init__(self, message: str, trajectory: object):
        super().__init__(message)
        self.trajectory = trajectory
