"""How a fit can end, and what it leaves."""

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from chordflow.solve import AbstractMethod


class FIT_RESULTS(eqx.Enumeration):  # noqa: N801
    """Outcome of :func:`chordflow.fit`; the best parameters are kept in every case."""

    target_reached = "C − C_min fell to the target."
    gradient_small = "The gradient of the cost fell below gradient_tol: a stationary point."
    no_progress = (
        "The damping rose to its limit without a step that lowers the cost: a minimum to the precision of the dtype, "
        "or a model that is not smooth."
    )
    step_limit = "max_steps was reached."
    time_limit = "time_limit was reached."
    stopped = "The callback asked for it."
    not_finite = (
        "The derivatives of the cost are not finite at the last good parameters, or the loss is not convex there: "
        "it has no Gauss–Newton metric."
    )
    running = "The fit has not ended."


class History(eqx.Module):
    """One row per Jacobian or Gram matrix; (T,) arrays. Under jit unused rows are NaN, and so is what belongs to a
    candidate in a row where none was tried (the gradient was small already).

    Attributes
    ----------
    cost
        C (with the penalty) after the step.
    damping
        λ of the step, the last one tried where none was accepted.
    gain
        Actual over predicted decrease of the cost (with ``goal`` or ``fraction``, of the distance to where the step
        aims), of the first candidate, before the factorisation is used again.
    effective_dimension
        Σ σ²/(σ²+λ+αN): exact with an SVD, from 16 random probes with Cholesky, of the sketch without a matrix.
    unreachable_fraction
        |r − A v|/|r|, the part of the weighted residual that damping holds back; without a residual (cross-entropy,
        user losses) λ|v|/|b|, that part of the gradient b.
    tries
        Dampings tried, rejected ones counted: what ``max_steps`` counts.
    accepted
        1 where one of them was taken, 0 where all were rejected.
    seconds
        Wall-clock time since the start; NaN under jit.
    """

    cost: Float[Array, " T"]
    damping: Float[Array, " T"]
    gain: Float[Array, " T"]
    effective_dimension: Float[Array, " T"]
    unreachable_fraction: Float[Array, " T"]
    tries: Float[Array, " T"]
    accepted: Float[Array, " T"]
    seconds: Float[Array, " T"]


class FitState(eqx.Module):
    """Everything the next step depends on: a fit restarted from it goes on exactly.

    Attributes
    ----------
    theta
        Trainable parameters (K,), in ravel order.
    cost
        C with the penalty there, on the samples of the last step; infinite before the first.
    lam
        λ that the next step begins with; NaN before the first, which begins with ``damping`` of :func:`chordflow.fit`.
    num_steps
        Steps so far, rejected ones counted.
    rejections
        Of the step that goes on here: not 0 only where ``max_steps`` ended the fit between two of its tries.
    key
        For drawn samples.
    """

    theta: Float[Array, " K"]
    cost: Float[Array, ""]
    lam: Float[Array, ""]
    num_steps: Array
    rejections: Array
    key: Array


class Fit(eqx.Module):
    """Result of :func:`chordflow.fit`."""

    params: PyTree
    """The best that were found, like those that were given."""
    cost: Float[Array, ""]
    """C with the penalty, there."""
    history: History
    result: FIT_RESULTS
    state: FitState
    order: int = eqx.field(static=True)
    """Taylor terms by which the line was followed; 1 where the model has no forward derivative."""
    method: AbstractMethod = eqx.field(static=True)
    """How the damped inverse was realised."""

    @property
    def result_name(self) -> str:
        """Name of the result code, as a string."""
        return next(name for name, item in FIT_RESULTS._name_to_item.items() if bool(self.result == item))

    def explain(self) -> str:
        """What the result code means."""
        return str(FIT_RESULTS[self.result])
