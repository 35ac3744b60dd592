"""What the statements are checked on: ingredients of the theory at θ(0), and what the library measures.

Ingredients (NumPy, by definition) and measurements (the library's products, flows, geometry) are kept apart: a
statement compares one with the other. Everything is computed once, when first asked for, and any ingredient can be
replaced by a wrong one to see the statements notice: :meth:`Evidence.replaced`.
"""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow.clocks import Interpolation
from chordflow.filters import AbstractFilter, Damped, Interpolated
from chordflow.flows import Flow, adapted, straight
from chordflow.geometry import transfer
from chordflow.integration import evolve
from chordflow.memory import require_memory
from chordflow.problem import Problem
from chordflow.results import RESULTS, is_okay
from chordflow.solve import SVD, RankPolicy, WeightedJacobian, realise
from chordflow.trajectory import Trajectory
from chordflow.verification.kinks import hoelder_exponent

EPS = float(np.finfo(np.float64).eps)
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where runs are looked at: of N for the adapted flow in s, of 1 for the straight flow; also the members τ."""
CLOCK_TIMES = (0.0, 0.3, 0.6, 0.9)
"""Clock times at which the adapted flow is compared with the chord."""

Vector = Float[np.ndarray, "_"]
Matrix = Float[np.ndarray, "_ _"]


class Evidence:
    """Ingredients and measurements for the statements of the theory, on one problem at one point.

    Vectors and matrices are those of the inner product W: D stands for W^½D, x for W^½x, g for W^(−½)∇ₓC, without the
    rows of samples of weight 0; for one unweighted term they are D, x and ∇ₓC themselves.

    Parameters
    ----------
    problem, params
        What is examined, in float64.
    rtol
        Relative tolerance of the integrations.
    eps, passes
        Damping of the integrated flows, as in :func:`chordflow.adapted`. None for ε takes 1e-6, and for rank D < n what
        the rounding of float64 allows: an unreachable velocity reaches the parameters as noise of relative size
        (machine epsilon)/ε², which must stay below rtol. Statements at a point choose their damping themselves,
        so that the pseudoinverse is examined.
    seed
        Of the random directions.

    Raises
    ------
    ValueError
        Parameters that are not float64, a stateful model, tolerances out of range.
    MemoryError
        D, or the n × n matrices, do not fit; before they are allocated.
    """

    def __init__(
        self,
        problem: Problem,
        params: PyTree,
        *,
        rtol: float = 1e-8,
        eps: float | None = None,
        passes: int = 2,
        seed: int = 0,
    ):
        theta, _ = problem.ravel(params)
        if theta.dtype != jnp.float64:
            raise ValueError(
                f"verify: parameters are {theta.dtype}, float64 is needed to tell a statement from its rounding: "
                "jax.config.update('jax_enable_x64', True) at the start, and float64 data"
            )
        if not 1e-12 <= rtol <= 1e-4:
            raise ValueError(f"verify: rtol must be in [1e-12, 1e-4], got {rtol}")
        problem.check(params)
        self.problem, self.params, self.rtol, self.seed = problem, params, rtol, seed
        self.eps, self.passes = eps, passes
        Damped(1e-6 if eps is None else eps, passes)  # mistakes are told before anything is computed

    def replaced(self, **ingredients: Any) -> "Evidence":
        """Evidence with some ingredients given instead of computed; what was computed already is shared.

        For negative controls: with a wrong N, D, P, S, c ... the statements about it must not hold.

        Raises ValueError for a name that is no ingredient.
        """
        twin = copy.copy(self)
        for name, value in ingredients.items():
            if not isinstance(getattr(type(self), name, None), cached_property):
                raise ValueError(f"replaced: {name!r} is no ingredient of the evidence")
            twin.__dict__[name] = value
        return twin

    # --- ingredients at θ(0) ----------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Vector:
        """The diagonal of W^½, by a loop over samples (n_all,)."""
        total = sum(float(np.sum(term.weights)) for term in self.problem.terms)
        rows = [
            np.repeat(total * float(term.weight) * float(omega) / float(np.sum(term.weights)), term.targets.shape[1])
            for term in self.problem.terms
            for omega in np.asarray(term.weights)
        ]
        return np.sqrt(np.concatenate(rows))

    @cached_property
    def num_samples(self) -> float:
        """The number of samples, counted with their weights."""
        return float(sum(np.sum(np.asarray(term.weights)) for term in self.problem.terms))

    @cached_property
    def start(self) -> Vector:
        """W^½x(θ(0)) (n,)."""
        return self.seen(self.problem.flatten(self.outputs))

    @cached_property
    def target(self) -> Vector:
        """W^½y (n,)."""
        return self.seen(self.problem.flatten(self.problem.targets))

    @cached_property
    def gradient(self) -> Vector:
        """W^(−½)∇ₓC (n,), by automatic differentiation of the cost."""
        gradient = np.asarray(_cost_gradients(self.problem, self.params, self.outputs)[0])
        return gradient[self.kept] / self.root[self.kept]

    @cached_property
    def jacobian(self) -> Matrix:
        """W^½D (n, K), dense."""
        n = len(self.root)
        D = self.problem.jacobian(self.params).as_matrix()
        require_memory(64 * n * n, f"verification with n = {n} outputs", "use fewer samples")
        return (self.root[:, None] * np.asarray(D))[self.kept]

    @cached_property
    def svd(self) -> tuple[Matrix, Vector, Matrix]:
        """U (n, k), σ (k,), Vᵀ (k, K) of D."""
        return np.linalg.svd(self.jacobian, full_matrices=False)

    @cached_property
    def rank(self) -> int:
        """Number of singular values above σ_max max(n, K) machine epsilons, numpy's rule."""
        return int(np.linalg.matrix_rank(self.jacobian))

    @cached_property
    def projection(self) -> Matrix:
        """Orthogonal projection onto range D (n, n)."""
        U = self.svd[0][:, : self.rank]
        return U @ U.T

    @cached_property
    def condition(self) -> float:
        """σ_max over the smallest singular value that counts."""
        sigma = self.svd[1]
        return float(sigma[0] / sigma[self.rank - 1]) if self.rank else np.inf

    @cached_property
    def policy(self) -> RankPolicy:
        """Damping for statements at θ(0): λ = σ_r²/4, with 22 passes, which have a bias of 4e-16.

        A λ far below σ_r² needs fewer passes, but lets singular values that are rounding of 0 move parameters.
        """
        scale = jnp.asarray(self.svd[1][0])
        return RankPolicy(jnp.asarray(0.5 / self.condition), scale, 22)

    @cached_property
    def filter(self) -> Damped:
        """The damped filter of the integrated flows."""
        noisy = self.rank < len(self.start)
        default = max(1e-6, (10 * EPS / self.rtol) ** 0.5) if noisy else 1e-6
        return Damped(default if self.eps is None else self.eps, self.passes)

    @cached_property
    def labels(self) -> tuple[Matrix, ...]:
        """Y per term, (N_k, Q_k)."""
        return tuple(np.asarray(term.targets) for term in self.problem.terms)

    @cached_property
    def probabilities(self) -> tuple[Matrix, ...]:
        """Softmax of the outputs per term (N_k, Q_k), (2.69)."""
        shifted = [np.exp(x - x.max(axis=1, keepdims=True)) for x in self.logits]
        return tuple(x / x.sum(axis=1, keepdims=True) for x in shifted)

    @cached_property
    def offsets(self) -> tuple[Vector, ...]:
        """cₙ = (1/Q) 1ᵀ(xₙ(0) − log yₙ) per term (N_k,), (2.95–2.104)."""
        return tuple(np.mean(x - np.log(y), axis=1) for x, y in zip(self.logits, self.labels, strict=True))

    @cached_property
    def normals(self) -> tuple[Vector, ...]:
        """The vector 1 of each term (Q_k,): normal of the hyperplanes and null vector of the Hessian (2.72–2.76)."""
        return tuple(np.ones(y.shape[1]) for y in self.labels)

    @cached_property
    def declared_smooth(self) -> bool | None:
        """What the models say of themselves by an attribute ``smooth``; None where one does not."""
        declared = [getattr(term.fn, "smooth", None) for term in self.problem.terms]
        if False in declared:
            return False
        return None if None in declared else True

    @cached_property
    def transfer(self) -> Callable[[Any], Any]:
        """t → S_t (n_all, n_all) of the damped filter along the run on the clock."""
        scale = self.clock_run.stats["sigma_max"]
        policy = RankPolicy(jnp.asarray(self.filter.eps, scale.dtype), scale, self.filter.passes)
        return TransferAlong(self.clock_run, self.filter, policy)

    @cached_property
    def path_ranks(self) -> tuple[int, ...]:
        """Rank of dense D at the points that the runs saved, by numpy's rule."""
        ranks = []
        for run in self.runs:
            for k in range(len(run.ts)):
                D = self.root[:, None] * np.asarray(self.problem.jacobian(run.params_saved(k)).as_matrix())
                ranks.append(int(np.linalg.matrix_rank(D)))
        return tuple(ranks)

    # --- measurements ---------------------------------------------------------------------------------------------

    @cached_property
    def kept(self) -> np.ndarray:
        """Mask of the outputs of positive weight (n_all,)."""
        return self.root > 0

    @cached_property
    def outputs(self) -> Any:
        """x(θ(0)), as the problem gives them."""
        return outputs_of(self.problem, self.params)

    @cached_property
    def parameter_gradient(self) -> Vector:
        """∇_θC (K,), by automatic differentiation of the cost."""
        return np.asarray(_cost_gradients(self.problem, self.params, self.outputs)[1])

    @cached_property
    def logits(self) -> tuple[Matrix, ...]:
        """x(θ(0)) per term (N_k, Q_k), without weights."""
        return self.blocks(self.outputs)

    @cached_property
    def hoelder(self) -> float:
        """Hölder exponent of x and D along random lines through θ(0): 1 or more if D is Lipschitz, 0 if it jumps."""
        return hoelder_exponent(self.problem, self.params, seed=self.seed)

    @cached_property
    def descent_run(self) -> Trajectory:
        """The adapted flow to s = N."""
        N = float(self.problem.num_samples)
        return self._run(adapted(self.filter.eps, self.filter.passes), [N * f for f in FRACTIONS])

    @cached_property
    def chord_run(self) -> Trajectory:
        """The straight flow to the closed-form target of the loss, t from 0 to 1."""
        return self._run(straight(eps=self.filter.eps, passes=self.filter.passes), FRACTIONS)

    @cached_property
    def clock_run(self) -> Trajectory:
        """The adapted flow on the interpolation clock to t = 0.9, with dense output."""
        clock = Interpolation(float(self.problem.num_samples))
        return self._run(adapted(self.filter.eps, self.filter.passes), CLOCK_TIMES, clock=clock, dense=True)

    @property
    def runs(self) -> tuple[Trajectory, ...]:
        """Those whose points say whether the rank stays full: to s = N, and to the target where there is one."""
        equilibrium = self.problem.equilibrium(self.outputs)
        finite = equilibrium is not None and bool(jnp.all(jnp.isfinite(self.problem.flatten(equilibrium))))
        return (self.descent_run, self.chord_run) if finite else (self.descent_run,)

    def _run(self, flow: Flow, ts: Any, **options: Any) -> Trajectory:
        K = self.problem.ravel(self.params)[0].size
        # Dense output keeps 9 K numbers for each of max_steps: room for a quarter of a GiB, but for enough steps.
        steps = int(np.clip(2**28 // (72 * K), 64, 4096)) if options.get("dense") else 4096
        return evolve(
            self.problem,
            self.params,
            flow,
            ts=ts,
            rtol=self.rtol,
            max_steps=steps,
            save=("outputs", "cost", "params", "spectrum"),
            throw=False,
            **options,
        )

    def velocity(self, flow: Flow) -> tuple[Vector, Vector]:
        """(θ', W^½x') of a descent flow at θ(0), with the damping of ``policy``, by the library's own solve."""
        x = self.problem.flatten(self.outputs)
        u = flow.velocity.bind(self.problem, self.outputs)(self.problem, jnp.zeros((), x.dtype), x)
        theta, z = self.pushed(flow.filter, self.seen(u)[None])
        return theta[0], z[0]

    def pushed(self, filter: AbstractFilter, v: Matrix) -> tuple[Matrix, Matrix]:  # noqa: A002
        """(θ', W^½x') that a filter makes of each row of ``v`` (m, n) at θ(0)."""
        theta, z = _pushed(self.problem, self.params, filter, self.policy.lam, self.all(v))
        return np.asarray(theta), np.asarray(z)[:, self.kept]

    def member(self, tau: float) -> Interpolated:
        """The filter of the interpolated flow, with the damping for statements at θ(0); its numbers are data."""
        return Interpolated(jnp.asarray(tau, jnp.float64), self.policy.eps, self.policy.passes)

    # --- between the library's outputs and flat weighted vectors --------------------------------------------------

    def seen(self, flat: Any) -> Float[np.ndarray, "..."]:
        """W^½ times flat outputs (..., n_all), without the rows of weight 0."""
        return (self.root * np.asarray(flat))[..., self.kept]

    def all(self, v: Any) -> Array:
        """Put zeros where the weight is 0: (..., n) to (..., n_all)."""
        out = np.zeros((*np.shape(v)[:-1], len(self.root)))
        out[..., self.kept] = v
        return jnp.asarray(out)

    def blocks(self, outputs: Any) -> tuple[Matrix, ...]:
        """Outputs as a tuple of arrays, one per term."""
        return (np.asarray(outputs),) if self.problem.single else tuple(np.asarray(block) for block in outputs)

    def like_outputs(self, blocks: tuple[Matrix, ...]) -> Any:
        """A tuple of arrays, one per term, as the problem takes outputs."""
        return jnp.asarray(blocks[0]) if self.problem.single else tuple(jnp.asarray(block) for block in blocks)

    def path(self, run: Trajectory) -> Matrix:
        """W^½x along a run (T, n)."""
        return self.seen(jax.vmap(self.problem.flatten)(run.outputs))

    def run_tolerance(self, run: Trajectory, scale: float, *, damped: bool = True) -> tuple[float, str]:
        """What a run may be off, in units of ``scale``, and why.

        The solver keeps the error of θ below rtol |θ| per step, and D makes at most σ_max times that of it; a
        prediction that knows nothing of damping (``damped``) differs by twice the bias at most.
        """
        theta = float(jnp.linalg.norm(self.problem.ravel(self.params)[0]))
        seen = 10 * self.rtol * max(1.0, float(run.stats["sigma_max"]) * theta / scale)
        reason = f"10 rtol seen through D, {seen:.1g}"
        if not damped:
            return seen, reason
        bias = 2 * max(float(run.stats["relative_residual_start"]), float(run.stats["relative_residual_end"]))
        return seen + bias, f"{reason}, and twice the damping bias, {bias:.1g}"


class TransferAlong(eqx.Module):
    """t → S_t (n, n) along a run with dense output, by the singular value decomposition of D at each t."""

    run: Trajectory
    filter: AbstractFilter
    policy: RankPolicy

    def __call__(self, t: Any) -> Array:
        """S_t."""
        return transfer(self.run.problem, self.run.params_at(t), self.filter, self.policy)


def ended(run: Trajectory) -> str | None:
    """None if a run went to its end, otherwise how it ended."""
    if bool(is_okay(run.result)):
        return None
    text = str(RESULTS[run.result]).split(". ")[0]
    return f"the run ended at t = {float(run.stats['t_last']):.3g}: {text}"


@eqx.filter_jit
def outputs_of(problem: Problem, params: PyTree) -> Any:
    """x(θ), compiled."""
    return problem.outputs(params)


@eqx.filter_jit
def _cost_gradients(problem: Problem, params: PyTree, outputs: Any) -> tuple[Array, Array]:
    """∇ₓC (n,) at given outputs and ∇_θC (K,)."""
    theta, unravel = problem.ravel(params)
    in_outputs = problem.flatten(jax.grad(problem.cost_at)(outputs))
    return in_outputs, jax.grad(lambda theta: problem.cost(unravel(theta)))(theta)


@eqx.filter_jit
def _pushed(
    problem: Problem,
    params: PyTree,
    filter: AbstractFilter,  # noqa: A002
    lam: Array,
    v: Array,
) -> tuple[Array, Array]:
    """θ' (m, K) and W^½x' (m, n) for each row of v (m, n); one factorisation."""
    A = WeightedJacobian.at(problem, params)

    def one(v: Array) -> tuple[Array, Array]:
        theta = realise(filter, SVD(), A, v, lam)
        return theta, A.mv(theta)

    return jax.vmap(one)(v)
