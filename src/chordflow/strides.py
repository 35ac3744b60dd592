"""A run in strides: the same steps as one compiled run takes, but it can be looked at, kept and resumed between them.

One compiled stride serves them all. Where a stride ends changes no number: state, next step and what the step-size
control remembers are carried as they are, so that runs of other strides are equal bit for bit.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from chordflow.integration import Arranged
from chordflow.jacobian import OutputsLike
from chordflow.results import from_diffrax
from chordflow.system import GuardedController, Scalar, System, gains, smallest_step
from chordflow.trajectory import Trajectory

FIRST_STEP = 0.01
"""What diffeqsolve begins with where no first step is given (diffrax 0.7.2 estimates one for bare ODETerms alone)."""


class Place(NamedTuple):
    """How far a run has come, and all that its next step depends on: arrays only."""

    t: Scalar
    theta: Float[Array, " K"]
    goal: Scalar
    """Where the next step goes."""
    solver: PyTree
    control: PyTree
    num_steps: Int[Array, ""]
    num_accepted: Int[Array, ""]
    num_saved: Int[Array, ""]
    result: Int[Array, ""]
    """Of diffrax; ``max_steps_reached`` while the run goes on."""


class Stride(NamedTuple):
    """What a stride leaves: the place it reached, the saves it passed with their times, outputs and cost at its end."""

    place: Place
    ts: Float[np.ndarray, " T"]
    saved: dict[str, Any]
    outputs: OutputsLike
    cost: float


class _StrideController(GuardedController):
    """GuardedController that starts from a given next step, remembers it, and stops after a number of attempts.

    diffrax (0.7.2) hands out neither the next step nor a bound on the steps that is data. The state is the base's, the
    end of the next step, and the attempts left.
    """

    goal: Array | None = None
    last: Array | None = None

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """The next step; the state that goes with it is handed to the integration."""
        del args, kwargs
        return self.goal, None

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        """As GuardedController's, with the next step clipped to the end of the run as diffrax would, or just before."""
        remembered, _, left = controller_state
        keep, t0, t1, jump, remembered, result = super().adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, remembered
        )
        assert self.last is not None
        # diffrax clips what comes within 100 ulp; clipping within 200 before leaves it nothing to do.
        near = t1 > self.last * (1 - 200 * jnp.finfo(self.last.dtype).eps)
        t1 = jnp.where(near, jnp.where(keep, self.last, t0 + 0.5 * (self.last - t0)), t1)
        left = left - 1
        pause = (left <= 0) & (t0 < self.last) & (result == diffrax.RESULTS.successful)
        result = diffrax.RESULTS.where(pause, diffrax.RESULTS.max_steps_reached, result)  # pyright: ignore[reportArgumentType]
        return keep, t0, t1, jump, (remembered, t1, left), result


@dataclass(frozen=True, eq=False)
class Course:
    """A run that is taken in strides, from what :func:`chordflow.integration.arrange` returns for save times.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, chordflow as cf
    >>> from chordflow.integration import arrange
    >>> jax.config.update("jax_enable_x64", True)
    >>> problem = cf.Problem(lambda w, z: jnp.tanh(w * z), jnp.array([[1.0]]), jnp.array([[0.5]]))
    >>> course = Course(arrange(problem, jnp.array([0.1]), cf.straight(), ts=[0.0, 0.5, 1.0]))
    >>> place = course.start()
    >>> while course.goes_on(place):
    ...     place = course.stride(place, 2).place
    >>> float(place.t)
    1.0
    """

    arranged: Arranged

    def start(self) -> Place:
        """The start."""
        return _start(*self._run)

    def struct(self) -> Place:
        """Shapes and dtypes of a place; computes nothing."""
        return eqx.filter_eval_shape(_start, *self._run)

    def goes_on(self, place: Place) -> bool:
        """Whether there is another stride to take."""
        going = bool(place.result == _GOES_ON)
        return going and int(place.num_steps) < self.arranged.options.max_steps

    def stride(self, place: Place, attempts: int) -> Stride:
        """Attempt so many steps, fewer where the run ends or comes to its ``max_steps``."""
        times = self.arranged.times
        assert times is not None, "a course is for save times: diffrax keeps room for each of max_steps without"
        left = min(attempts, self.arranged.options.max_steps - int(place.num_steps))
        place, ts, saved, outputs, cost = _stride(*self._run, times, place, jnp.asarray(left))
        count = int(np.isfinite(ts).sum())
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], saved)
        return Stride(place, np.asarray(ts)[:count], rows, outputs, float(cost))

    def saved_struct(self) -> dict[str, Any]:
        """Shapes and dtypes of one save; computes nothing."""
        run = self.arranged
        return eqx.filter_eval_shape(run.system.saved, run.end, run.params)

    def reach(self, t: Any, theta: Any) -> tuple[float, float]:
        """Effective dimension and unreachable fraction at (t, θ); about two right-hand sides."""
        values = _reach(self.arranged.system, self.arranged.params, jnp.asarray(t), jnp.asarray(theta))
        return float(values[0]), float(values[1])

    def trajectory(self, place: Place, ts: Float[np.ndarray, " T"], saved: dict[str, Any]) -> Trajectory:
        """The trajectory of :func:`chordflow.evolve` from where the run ended and all that was saved on the way."""
        system, params = self.arranged.system, self.arranged.params
        theta_0, unravel = system.problem.ravel(params)
        stats = {
            "t_last": place.t,
            "event": jnp.asarray(-1),
            "num_steps": place.num_steps,
            "num_accepted": place.num_accepted,
            "num_rejected": place.num_steps - place.num_accepted,
            "sigma_max": system.policy.scale,
        }
        if system.filter.inverts:
            stats["lam"] = system.policy.lam
            for end, moment in (("start", (jnp.zeros_like(place.t), theta_0)), ("end", (place.t, place.theta))):
                dimension, residual = self.reach(*moment)
                stats |= {
                    f"effective_dimension_{end}": jnp.asarray(dimension),
                    f"relative_residual_{end}": jnp.asarray(residual),
                }
        result = from_diffrax(_as_result(place.result), system.filter.inverts)
        rows = jax.tree.map(jnp.asarray, saved)
        return Trajectory(jnp.asarray(ts), rows, unravel(jnp.asarray(place.theta)), result, stats, system.problem, None)

    @property
    def _run(self) -> tuple[System, PyTree, Scalar, Any, Any]:
        run = self.arranged
        return run.system, run.params, run.end, run.controls, run.options


def _as_result(value: Int[Array, ""]) -> diffrax.RESULTS:
    return eqx.tree_at(lambda item: item._value, diffrax.RESULTS.successful, jnp.asarray(value, jnp.int32))


_GOES_ON: int = int(diffrax.RESULTS.max_steps_reached._value)  # pyright: ignore[reportAttributeAccessIssue]


def _strong(tree: Any) -> Any:
    """Arrays of definite dtype, as they come back from a file: another would be another program."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


@eqx.filter_jit
def _start(system: System, params: PyTree, end: Scalar, controls: Any, options: Any) -> Place:
    theta, unravel = system.problem.ravel(params)
    term = _term(system, unravel)
    t, solver = jnp.zeros_like(end), options.solver
    goal, control = _controller(GuardedController, system, end, controls).init(
        term, t, end, theta, FIRST_STEP, None, solver.func, solver.error_order(term)
    )
    goal = jnp.minimum(goal, end)
    state, zero = solver.init(term, t, goal, theta, None), jnp.asarray(0)
    return _strong(Place(t, theta, goal, state, control, zero, zero, zero, jnp.asarray(_GOES_ON)))


@eqx.filter_jit
def _stride(
    system: System,
    params: PyTree,
    end: Scalar,
    controls: Any,
    options: Any,
    ts: Float[Array, " T"],
    place: Place,
    attempts: Int[Array, ""],
) -> tuple[Place, Float[Array, " T"], dict[str, Any], OutputsLike, Scalar]:
    _, unravel = system.problem.ravel(params)
    solution = diffrax.diffeqsolve(
        _term(system, unravel),
        options.solver,
        place.t,
        end,
        None,
        place.theta,
        saveat=diffrax.SaveAt(
            subs=(
                diffrax.SubSaveAt(
                    ts=_still_to_come(ts, place.num_saved), fn=lambda t, y, _: system.saved(t, unravel(y))
                ),
                diffrax.SubSaveAt(t1=True),
            ),
            solver_state=True,
            controller_state=True,
        ),
        stepsize_controller=_controller(_StrideController, system, end, controls, goal=place.goal, last=end),
        solver_state=place.solver,
        controller_state=(place.control, place.goal, attempts),
        max_steps=options.max_steps,
        throw=False,
    )
    times: Any = solution.ts
    states: Any = solution.ys
    (passed, (t,)), (saved, (theta,)) = times, states
    remembered: Any = solution.controller_state
    control, goal, _ = remembered
    reached = Place(
        t,
        theta,
        goal,
        solution.solver_state,
        control,
        place.num_steps + solution.stats["num_steps"],
        place.num_accepted + solution.stats["num_accepted_steps"],
        place.num_saved + jnp.isfinite(passed).sum(),
        jnp.asarray(solution.result._value),  # pyright: ignore[reportAttributeAccessIssue]
    )
    moment = system.moment(t, unravel(theta))
    # As they came, so that one program serves all strides.
    reached = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), reached, place)
    return reached, passed, saved, moment.outputs, moment.cost


def _still_to_come(ts: Float[Array, " T"], num_saved: Int[Array, ""]) -> Float[Array, " T"]:
    """The save times ahead, then NaN: diffrax (0.7.2) comes to none of those, and its checks let them pass."""
    index = jnp.arange(ts.size) + num_saved
    return jnp.where(index < ts.size, ts[jnp.minimum(index, ts.size - 1)], jnp.nan)


def _term(system: System, unravel: Any) -> diffrax.ODETerm:
    def vector_field(t: Any, y: Any, _: Any) -> Array:
        return system.vector_field(t, unravel(y))

    return diffrax.ODETerm(vector_field)


def _controller(kind: Any, system: System, end: Scalar, controls: Any, **more: Any) -> Any:
    rtol, atol = controls
    pcoeff, icoeff = gains(system.filter)
    return kind(rtol, atol, pcoeff=pcoeff, icoeff=icoeff, dtmin=smallest_step(end), force_dtmin=False, **more)


@eqx.filter_jit
def _reach(system: System, params: PyTree, t: Scalar, theta: Float[Array, " K"]) -> tuple[Scalar, Scalar]:
    return system.reach(t, system.problem.ravel(params)[1](theta))
