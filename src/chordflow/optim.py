"""The damped straight-line step for mini-batches, as an optax gradient transformation."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from chordflow.bounds import require_within
from chordflow.losses import AbstractLoss
from chordflow.problem import Problem, is_concrete
from chordflow.solve import AbstractMethod, Cholesky
from chordflow.training.follow import Point, linearise
from chordflow.training.linearise import Aim

if TYPE_CHECKING:
    import optax

Scalar = Float[Array, ""]
Schedule = Callable[[Array], Any]


class AdaptiveDamping(eqx.Module):
    """λ led by the gain ratio of each batch: actual over predicted decrease of that batch's cost.

    After a step of gain above 3/4 the damping shrinks, below 1/4 it grows; a step that raises the cost of its own batch
    is still taken, because the next batch judges it, but the damping grows. A step that is not finite is not taken: the
    update is 0 and the damping grows. A change of the cost within its rounding leaves the damping alone. λ stays
    between what the factorisation can see and 100 Σσ².

    Parameters
    ----------
    initial
        λ₀ in units of Σσ² of the batch.
    shrink, grow
        Factors.
    """

    initial: float = 1e-3
    shrink: float = 0.5
    grow: float = 4.0

    def __check_init__(self) -> None:
        require_within("AdaptiveDamping", "initial", self.initial, 0.0, open_left=True)
        require_within("AdaptiveDamping", "shrink", self.shrink, 0.0, 1.0, open_left=True)
        require_within("AdaptiveDamping", "grow", self.grow, 1.0)

    def next(self, damping: Scalar, gain: Scalar, lowest: float) -> Scalar:
        """The damping after a step of this gain, at least ``lowest``."""
        grown = jnp.where(gain > 0.25, damping, damping * self.grow)
        # NaN compares as False twice: a batch that left the domain counts as a poor one.
        return jnp.clip(jnp.where(gain > 0.75, damping * self.shrink, grown), lowest, 1e2)


class AdaptedState(NamedTuple):
    """State of :func:`adapted`: steps taken, the last increment φ, and the damping in units of Σσ²."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # optax's name for it
    momentum: PyTree
    damping: Scalar


def adapted(
    model: Callable[[Any, Any], Array],
    loss: AbstractLoss | None = None,
    *,
    learning_rate: float | Schedule = 1.0,
    damping: float | Schedule | AdaptiveDamping = 1e-3,
    momentum: float | Schedule = 0.0,
    max_norm: float | None = None,
    linear_solver: AbstractMethod | None = None,
    trainable: PyTree = None,
) -> "optax.GradientTransformationExtraArgs":
    """Mini-batch steps along the straight line in output space, with subsampled projected-increment momentum.

    With A = BᵀW^½D of the batch (B Bᵀ = ∇²ℓ, 1 for squared error) and r the residual in that metric:

        φₖ = argmin |A φ − r|² + λ |φ − μ φₖ₋₁|² = μ φₖ₋₁ + Aᵀ(AAᵀ + λ)⁻¹(r − μ A φₖ₋₁)
        θₖ₊₁ = θₖ + η min(1, c/(η|φ̂|)) φ̂,        φ̂ = φₖ / √(1 − μ²ᵏ)

    μ = 0 is the damped Gauss–Newton (Levenberg–Marquardt) step, the adapted gradient flow in one Euler step of η N;
    μ > 0 is SPRING, which solves for the part of the increment that this batch sees and remembers the rest.

    Parameters
    ----------
    model
        ``model(params, input) -> (Q,)`` for one input, as :class:`chordflow.Problem` takes it.
    loss
        :class:`chordflow.SquaredError` by default.
    learning_rate
        η, or a schedule of the step count.
    damping
        λ in units of Σσ² of the batch (the trace of AAᵀ, with ``Iterative()`` an estimate of it): a number, a schedule,
        or :class:`AdaptiveDamping`. Below what the factorisation can see it is an error; a schedule under jit cannot be
        looked at, and a step with too little of it is not finite.
    momentum
        μ in [0, 1), or a schedule.
    max_norm
        c: the Euclidean norm of an update is at most this. None: unbounded.
    linear_solver
        ``cf.solve.Cholesky()`` by default; ``SVD()`` or ``Iterative()`` as for :func:`chordflow.fit`.
    trainable
        As for :class:`chordflow.Problem`; updates of frozen leaves are 0.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update(grads, state, params, batch=(inputs, targets))``; a third entry of ``batch`` is sample weights. For
        several terms give ``problem=`` instead of ``batch``: its functions, loss and trainable parameters then stand in
        place of those given here, of which loss must be the same or None and trainable None. ``grads`` is not used
        and may be None: the step needs the residual of every sample. Updates are added to the parameters, as in optax;
        works under jit, scan and vmap, and chains with transforms after it. Outside jit the values of each batch are
        looked at, as by :class:`chordflow.Problem`, which takes a part of the time of a small step.

    Raises
    ------
    ValueError
        A mistake in the options, at construction; a missing batch or params, in ``update``.

    References
    ----------
    Goldshlager, Abrahamsen, Lin: A Kaczmarz-inspired approach to accelerate the optimization of neural network
    wavefunctions (2024); bias correction as in Guzmán-Cordero, Dangel, Goldshlager, Zeinhofer: Improving energy natural
    gradient descent through Woodbury, momentum, and randomization (2025).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, chordflow as cf
    >>> z = jnp.linspace(0, 1, 8)[:, None]
    >>> tx = cf.optim.adapted(lambda w, z: w @ z, damping=1e-6)
    >>> w = jnp.zeros((1, 1))
    >>> updates, state = tx.update(None, tx.init(w), w, batch=(z, 3 * z))
    >>> round(float(optax.apply_updates(w, updates)[0, 0]), 4)
    3.0
    """
    import optax

    rule = _Rule(
        model, loss, learning_rate, damping, momentum, max_norm, Cholesky() if linear_solver is None else linear_solver
    )
    rule.check()

    def init(params: PyTree) -> AdaptedState:
        zeros = jax.tree.map(jnp.zeros_like, eqx.filter(params, eqx.is_inexact_array))
        dtype = jnp.result_type(*jax.tree.leaves(zeros))
        start = damping.initial if isinstance(damping, AdaptiveDamping) else jnp.nan
        return AdaptedState(jnp.zeros((), jnp.int32), zeros, jnp.asarray(start, dtype))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        batch: tuple[Any, ...] | None = None,
        problem: Problem | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del updates, extra
        if params is None:
            raise ValueError("adapted: update needs params: tx.update(None, state, params, batch=(inputs, targets))")
        rule.check_step(state.count, state.momentum)
        return _update(rule, _problem(model, loss, trainable, batch, problem), state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _problem(
    model: Callable[[Any, Any], Array],
    loss: AbstractLoss | None,
    trainable: PyTree,
    batch: tuple[Any, ...] | None,
    problem: Problem | None,
) -> Problem:
    if (batch is None) == (problem is None):
        raise ValueError("adapted: update needs either batch=(inputs, targets) or problem=cf.Problem(...)")
    if problem is not None:
        if loss is not None and eqx.tree_equal(loss, problem.loss) is False:
            raise ValueError(
                f"adapted: loss={type(loss).__name__} is not that of the problem, {type(problem.loss).__name__}: "
                "give it to the problem alone"
            )
        if trainable is not None:
            raise ValueError("adapted: trainable is not used where update has a problem: give it to the problem alone")
        return problem
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise ValueError("adapted: batch must be (inputs, targets) or (inputs, targets, weights)")
    return Problem(model, batch[0], batch[1], loss, weights=batch[2] if len(batch) == 3 else None, trainable=trainable)


class _Rule(NamedTuple):
    """The options of a transformation."""

    model: Any
    loss: Any
    learning_rate: Any
    damping: Any
    momentum: Any
    max_norm: Any
    method: Any

    def check(self) -> None:
        """One line for each mistake."""
        if not callable(self.model):
            raise ValueError(f"adapted: model must be a function model(params, input), got {self.model!r}")
        if self.loss is not None and not isinstance(self.loss, AbstractLoss):
            raise ValueError(
                f"adapted: loss must be cf.SquaredError(), cf.CrossEntropy() or cf.Loss(fn), got {self.loss!r}"
            )
        self._check_values(self.learning_rate, self.damping, self.momentum)
        if self.max_norm is not None:
            require_within("adapted", "max_norm", self.max_norm, 0.0, open_left=True)
        if not isinstance(self.method, AbstractMethod):
            raise ValueError(f"adapted: linear_solver must be of cf.solve, such as cf.solve.SVD(), got {self.method!r}")

    def check_step(self, count: Array, momentum: PyTree) -> None:
        """One line where a value of this step is outside its interval, or a damping that the factorisation cannot see.

        Where the step count is traced, schedules are not looked at.
        """

        def now(value: Any) -> Any:
            return value(count) if callable(value) and is_concrete(count) else value

        rate, damping, mu = now(self.learning_rate), now(self.damping), now(self.momentum)
        self._check_values(rate, damping, mu)
        damping = damping.initial if isinstance(damping, AdaptiveDamping) else damping
        dtype = jnp.result_type(*jax.tree.leaves(momentum))
        if not callable(damping) and is_concrete(damping) and damping < self._lowest(dtype):
            raise ValueError(
                f"adapted: damping = {float(damping):g} is below what the factorisation can see in {dtype} "
                f"({self._lowest(dtype):.1g}): use more, or linear_solver=cf.solve.SVD()"
            )

    @staticmethod
    def _check_values(learning_rate: Any, damping: Any, momentum: Any) -> None:
        if not callable(learning_rate):
            require_within("adapted", "learning_rate", learning_rate, 0.0, open_left=True)
        if not callable(damping) and not isinstance(damping, AdaptiveDamping):
            require_within("adapted", "damping", damping, 0.0, open_left=True)
        if not callable(momentum):
            require_within("adapted", "momentum", momentum, 0.0, 1.0, open_right=True)

    def step(self, problem: Problem, state: AdaptedState, params: PyTree) -> tuple[PyTree, AdaptedState]:
        """Updates to add to the parameters, and the next state."""
        theta, unravel = problem.ravel(params)
        aim = Aim(problem, params, None, None, jnp.ones((), theta.dtype), aims_part=False)
        last = problem.ravel(eqx.combine(state.momentum, params))[0]
        point = linearise(aim, self.method, theta)
        mu = jnp.asarray(self.momentum(state.count) if callable(self.momentum) else self.momentum, theta.dtype)
        relative = self._relative_damping(state, theta.dtype)
        lam = relative * point.decomposition.sum_of_squares()
        phi = self._increment(aim, point, lam, mu * last)
        corrected = phi / jnp.sqrt(1 - mu ** (2 * (state.count + 1)).astype(theta.dtype))
        step = self._bounded(corrected * self._rate(state, theta.dtype))
        next_damping = state.damping
        if isinstance(self.damping, AdaptiveDamping):
            next_damping = self.damping.next(relative, _gain(aim, point, step), self._lowest(theta.dtype))
            finite = jnp.all(jnp.isfinite(step))
            step, phi = jnp.where(finite, step, 0), jnp.where(finite, phi, last)
        moved, remembered = (problem.partition(unravel(vector))[0] for vector in (step, phi))
        updates = eqx.combine(moved, jax.tree.map(jnp.zeros_like, eqx.filter(params, eqx.is_array)))
        return updates, AdaptedState(state.count + 1, eqx.combine(remembered, state.momentum), next_damping)

    def _relative_damping(self, state: AdaptedState, dtype: Any) -> Scalar:
        if isinstance(self.damping, AdaptiveDamping):
            return state.damping
        return jnp.asarray(self.damping(state.count) if callable(self.damping) else self.damping, dtype)

    def _lowest(self, dtype: Any) -> float:
        """The least damping the factorisation can see, in units of Σσ²."""
        return max(self.method.floor(dtype) ** 2, 1e-18)

    def _rate(self, state: AdaptedState, dtype: Any) -> Scalar:
        rate = self.learning_rate(state.count) if callable(self.learning_rate) else self.learning_rate
        return jnp.asarray(rate, dtype)

    def _increment(self, aim: Aim, point: Point, lam: Scalar, drift: Float[Array, " K"]) -> Float[Array, " K"]:
        """Μ φ + the damped solution for what μ φ leaves of the residual; from the force where there is no residual."""
        factor = point.decomposition.at(lam)
        if aim.is_least_squares:
            return drift + factor.damped(aim.residual(point.x) - point.A.mv(drift), 1)
        return drift + factor.shifted(point.force - point.A.rmv(point.A.mv(drift)))

    def _bounded(self, step: Float[Array, " K"]) -> Float[Array, " K"]:
        if self.max_norm is None:
            return step
        norm = jnp.linalg.norm(step)
        return step * jnp.where(norm > self.max_norm, self.max_norm / norm, 1)


@eqx.filter_jit
def _update(rule: _Rule, problem: Problem, state: AdaptedState, params: PyTree) -> tuple[PyTree, AdaptedState]:
    """Compiled here, so that a loop without jit of its own is not slow."""
    return rule.step(problem, state, params)


def _gain(aim: Aim, point: Point, step: Float[Array, " K"]) -> Scalar:
    """Actual over predicted decrease of the batch's cost; predicted by bᵀδ − ½|A δ|².

    −∞ where the cost rose or, with momentum, the model itself promised no decrease; ½, which changes no damping, where
    the change is within the rounding of the cost.
    """
    moved = point.A.mv(step)
    predicted = (point.force @ step - 0.5 * moved @ moved) / aim.problem.num_samples
    there = point.theta + step
    before, after = aim.cost(point.x, point.theta), aim.cost(aim.outputs(there), there)
    gain = jnp.where((predicted > 0) & (after < before), (before - after) / predicted, -jnp.inf)
    rounding = 100 * jnp.finfo(before.dtype).eps * jnp.abs(before)
    return jnp.where(jnp.abs(before - after) <= rounding, 0.5, gain)
