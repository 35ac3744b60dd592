"""Statements about softmax cross-entropy (Section 2.3): logits on their hyperplanes, Hessian, equilibrium.

Per-sample statements are about output space alone and need no rank; where a network's run is compared, it must be full.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from chordflow import theory
from chordflow.losses import AbstractLoss
from chordflow.problem import Problem
from chordflow.verification.evidence import EPS, Evidence, Matrix
from chordflow.verification.hypotheses import (
    cross_entropy,
    full_rank_along,
    moves,
    positive_labels,
    smooth,
    zero_labels,
)
from chordflow.verification.pointwise import ROUNDING, TINY, compare, worst
from chordflow.verification.registry import Finding, statement

LONGEST = 1e5
"""The longest Euclidean run, in units of N: some 20 000 explicit steps."""


Blocks = tuple[Float[np.ndarray, "..."], ...]


def _flat(blocks: Blocks) -> np.ndarray:
    return np.concatenate([np.ravel(block) for block in blocks])


def _euclidean(e: Evidence, ts: list[float]) -> Blocks:
    """Euclidean flow of the logits of each term, to the problem's own labels: (T, N_k, Q_k)."""
    loss = e.problem.loss
    return tuple(
        np.asarray(theory.euclidean_flow(x, term.targets, loss, jnp.asarray(ts), n=e.num_samples))
        for x, term in zip(e.logits, e.problem.terms, strict=True)
    )


def _targets(e: Evidence) -> tuple[Matrix, ...]:
    """Log yₙ + cₙ 1 per term."""
    return tuple(np.log(y) + c[:, None] for y, c in zip(e.labels, e.offsets, strict=True))


@statement("logits: xₙ' = −(1/N)(softmax(xₙ) − yₙ)", "2.69–2.71", cross_entropy, moves)
def logit_dynamics(e: Evidence) -> Finding:
    """NumPy's softmax against the velocity that the problem tells the outputs to have."""
    predicted = _flat(tuple(-(p - y) / e.num_samples for p, y in zip(e.probabilities, e.labels, strict=True)))
    measured = np.asarray(e.problem.flatten(e.problem.descent(e.outputs)))
    return compare(predicted, measured, ROUNDING, "1000 machine epsilons")


@statement(
    "adapted flow moves logits as the Euclidean flow does",
    "2.19 with 2.69–2.71",
    cross_entropy,
    moves,
    smooth,
    full_rank_along("descent_run"),
)
def logit_flow(e: Evidence) -> Finding:
    """The Euclidean flow in output space against the network's run to s = N, in units of the way travelled."""
    run = e.descent_run
    flow = _euclidean(e, [float(s) for s in run.ts])
    predicted = e.seen(np.concatenate([x.reshape(len(run.ts), -1) for x in flow], axis=1))
    measured = e.path(run)
    scale = float(np.linalg.norm(predicted[-1] - e.start))
    tolerance, reason = e.run_tolerance(run, scale)
    error = float(np.max(np.linalg.norm(measured - predicted, axis=1))) / scale
    return Finding(scale, float(np.linalg.norm(measured[-1] - e.start)), error, tolerance, reason)


@statement("1ᵀxₙ is conserved: logits stay on their hyperplanes", "2.72–2.74", cross_entropy)
def hyperplane(e: Evidence) -> Finding:
    """The Euclidean flow to s = 10 N."""
    flow = _euclidean(e, [10 * e.num_samples])
    drift = max(
        float(np.max(np.abs((x[-1] - x0) @ normal))) for x, x0, normal in zip(flow, e.logits, e.normals, strict=True)
    )
    scale = max(1.0, max(float(np.max(np.abs(x))) for x in e.logits))
    return Finding(0.0, drift, drift / scale, 1e-10, "1e-10: Runge–Kutta steps keep linear invariants to rounding")


@statement(
    "the adapted flow of the network stays on the hyperplanes",
    "2.72–2.74, 2.90",
    cross_entropy,
    moves,
    smooth,
    full_rank_along("descent_run"),
)
def hyperplane_of_network(e: Evidence) -> Finding:
    """The largest change of 1ᵀxₙ along the run to s = N, in units of the way travelled."""
    run = e.descent_run
    measured = e.path(run)
    scale = float(np.linalg.norm(measured[-1] - e.start))
    outputs = run.outputs if not e.problem.single else (run.outputs,)
    drift = 0.0
    for x, normal, term in zip(outputs, e.normals, e.problem.terms, strict=True):
        present = np.asarray(term.weights) * float(term.weight) > 0
        changes = (np.asarray(x) - np.asarray(x)[:1])[:, present] @ normal
        drift = max(drift, float(np.max(np.abs(changes), initial=0.0)))
    tolerance, reason = e.run_tolerance(run, scale)
    weight = float(np.min(e.root[e.kept]))
    spread = float(np.sqrt(max(len(normal) for normal in e.normals))) / weight
    return Finding(0.0, drift, drift / scale, tolerance * spread, f"{reason}; times √Q for the sum")


@statement("Hessian of the loss: Hₙ = diag(p) − ppᵀ", "2.75–2.76", cross_entropy)
def hessian(e: Evidence) -> Finding:
    """diag(p) − ppᵀ against automatic second derivatives of the loss, and against its own Hessian."""
    predicted = _flat(tuple(_hessians(p) for p in e.probabilities))
    second, own = (_flat(blocks) for blocks in zip(*_loss_hessians(e), strict=True))
    return worst([compare(predicted, measured, ROUNDING, "1000 machine epsilons") for measured in (second, own)])


@statement("null vector: Hₙ1 = 0", "2.77–2.88, Lemma 2.6", cross_entropy)
def null_vector(e: Evidence) -> Finding:
    """Products of the Hessian of the loss with 1, in units of its norm."""
    images = []
    for x, term, normal in zip(e.logits, e.problem.terms, e.normals, strict=True):
        v = jnp.asarray(np.broadcast_to(normal, x.shape))
        images.append(np.asarray(_hessian_products(e.problem.loss, jnp.asarray(x), term.targets, v)))
    size = float(np.linalg.norm(_flat(tuple(own for _, own in _loss_hessians(e)))))
    measured = float(np.linalg.norm(_flat(tuple(images))))
    return Finding(0.0, measured, measured / max(size, TINY), ROUNDING, "1000 machine epsilons of |H|")


@statement("semidefinite: vᵀHₙv = Σ pᵢ(vᵢ − pᵀv)² ≥ 0", "2.77–2.88, Lemma 2.6", cross_entropy)
def semidefiniteness(e: Evidence) -> Finding:
    """The variance of v under p for random v, and the smallest eigenvalue of the Hessian of the loss."""
    rng = np.random.default_rng(e.seed)
    predicted, measured, least = [], [], 0.0
    for x, p, (_, H) in zip(e.logits, e.probabilities, _loss_hessians(e), strict=True):
        v = rng.normal(size=x.shape)
        mean = np.sum(p * v, axis=1, keepdims=True)
        predicted.append(np.sum(p * (v - mean) ** 2, axis=1))
        measured.append(np.einsum("nq,nqr,nr->n", v, H, v))
        least = min(least, float(np.min(np.linalg.eigvalsh(H))))
    forms = compare(_flat(tuple(predicted)), _flat(tuple(measured)), ROUNDING, "1000 machine epsilons")
    return Finding(0.0, least, max(forms.error, -least), ROUNDING, forms.reason)


@statement("positive on 1^⊥: least eigenvalue between the two smallest pᵢ", "2.77–2.88, Lemma 2.6", cross_entropy)
def positivity_on_hyperplane(e: Evidence) -> Finding | str:
    """Interlacing for diag(p) − ppᵀ against eigenvalues of the Hessian of the loss, restricted to 1^⊥."""
    findings = []
    for p, (_, H), normal in zip(e.probabilities, _loss_hessians(e), e.normals, strict=True):
        if p.shape[1] == 1:
            return "Q = 1: the hyperplane is a point"
        basis = np.linalg.svd(normal[None, :])[2][1:]  # (Q−1, Q)
        measured = np.linalg.eigvalsh(basis @ H @ basis.T)[:, 0]
        low, high = np.sort(p, axis=1)[:, :2].T
        worst_row = int(np.argmin(measured))
        if low.min() < 1e4 * EPS:
            return f"softmax is saturated: a component {low.min():.1g} is below the rounding of eigenvalues"
        error = np.max(np.maximum(low - measured, measured - high))
        findings.append(
            Finding(
                f"{low[worst_row]:.3g} … {high[worst_row]:.3g}",
                float(measured[worst_row]),
                float(max(error, 0.0)),
                ROUNDING,
                "1000 machine epsilons",
            )
        )
    return worst(findings)


@statement("Hessian of the cost: (1/N) diag(H₁, …, H_N)", "2.93", cross_entropy)
def block_structure(e: Evidence) -> Finding:
    """Blocks diag(p) − ppᵀ over N against second derivatives of the cost in all outputs; elsewhere 0."""
    n = len(e.root)
    predicted, start = np.zeros((n, n)), 0
    for p in e.probabilities:
        for H in _hessians(p):
            rows = slice(start, start + len(H))
            predicted[rows, rows] = H / e.num_samples * e.root[rows] ** 2
            start += len(H)
    measured = np.asarray(_cost_hessian(e.problem, e.problem.flatten(e.outputs)))
    return compare(predicted, measured, ROUNDING, "1000 machine epsilons")


@statement("one equilibrium on the hyperplane: log yₙ + cₙ1", "2.89–2.90, 2.95–2.104", cross_entropy, positive_labels)
def equilibrium(e: Evidence) -> Finding:
    """Log y + c 1 against the loss's and the theory's closed forms; the library's velocity vanishes there."""
    targets = _targets(e)
    predicted = _flat(targets)
    library = e.problem.equilibrium(e.outputs)
    closed = _flat(
        tuple(np.asarray(theory.cross_entropy_equilibrium(x, y)) for x, y in zip(e.logits, e.labels, strict=True))
    )
    left = np.asarray(e.problem.flatten(e.problem.descent(e.like_outputs(targets)))) * e.num_samples
    tolerance, reason = ROUNDING, "1000 machine epsilons"
    return worst(
        [
            compare(predicted, np.asarray(e.problem.flatten(library)), tolerance, reason),
            compare(predicted, closed, tolerance, reason),
            compare(np.zeros_like(left), left, tolerance, reason, 1.0),
        ]
    )


@statement("its cost is the mean label entropy, the least there is", "2.91", cross_entropy, positive_labels)
def equilibrium_cost(e: Evidence) -> Finding:
    """Weighted label entropies against the library's cost at log y + c 1 and its closed-form minimum."""
    weights = _sample_weights(e)
    entropies = np.concatenate([np.asarray(_entropies(jnp.asarray(y))) for y in e.labels])
    predicted = np.atleast_1d(weights @ entropies)
    reached = np.atleast_1d(e.problem.cost_at(e.like_outputs(_targets(e))))
    minimum = e.problem.minimum()
    assert minimum is not None
    reason = "1000 machine epsilons"
    return worst([compare(predicted, np.atleast_1d(m), ROUNDING, reason) for m in (reached, minimum)])


@statement("the Euclidean flow ends there", "2.95–2.104", cross_entropy, positive_labels)
def approach_to_equilibrium(e: Evidence) -> Finding | str:
    """Distance from log y + c 1 once s ≥ N (d₀ + ln(d₀/1e-6))/min y, in units of the first distance d₀."""
    targets = _targets(e)
    d0 = max(float(np.max(np.abs(x - goal))) for x, goal in zip(e.logits, targets, strict=True))
    slowest = min(float(np.min(y)) for y in e.labels)
    # At least a unit: far from its end a logit moves linearly, so ln d₀ alone is not enough.
    s = e.num_samples * (d0 + np.log(max(d0, 1.0) / 1e-6)) / slowest
    if s > LONGEST * e.num_samples:
        return f"the smallest label component {slowest:.1g} makes it too slow to follow; smooth the labels more"
    flow = _euclidean(e, [s])
    distance = max(float(np.max(np.abs(x[-1] - goal))) for x, goal in zip(flow, targets, strict=True))
    return Finding(0.0, distance, distance / max(d0, 1.0), 1e-6, "e^(−s min y/N) at the end of the run")


@statement(
    "the straight flow of the network reaches it at t = 1",
    "2.95–2.104 with 2.53",
    cross_entropy,
    positive_labels,
    moves,
    smooth,
    full_rank_along("chord_run"),
)
def equilibrium_reached(e: Evidence) -> Finding:
    """Log y + c 1 against the network's outputs at the end of the straight flow, in units of the chord."""
    goal = e.seen(_flat(_targets(e)))
    scale = float(np.linalg.norm(goal - e.start))
    tolerance, reason = e.run_tolerance(e.chord_run, scale)
    end = e.path(e.chord_run)[-1]
    minimum = e.problem.minimum()
    assert minimum is not None
    error = float(np.linalg.norm(end - goal)) / scale
    return Finding(float(minimum), float(e.chord_run.costs[-1]), error, tolerance, reason)


@statement("one-hot: no finite equilibrium, logits grow like log s", "2.104", cross_entropy, zero_labels)
def no_finite_equilibrium(e: Evidence) -> Finding:
    """Along the Euclidean flow: the probability q of the components with label 0 falls like 1/s and never vanishes.

    q' is −q² to leading order, so d ln q/d ln s → −1; the logits' distance is −ln q.
    """
    d0 = max(float(np.max(x) - np.min(x)) for x in e.logits)
    s = np.array([1e3, 1e4]) * (1 + d0) * e.num_samples
    slopes, still_moving = [], np.inf
    flow = _euclidean(e, list(s))
    for x, y in zip(flow, e.labels, strict=True):
        zero = y == 0
        rows = zero.any(axis=1)
        lifted = np.where(zero[None], x, -np.inf)[:, rows]
        logq = np.logaddexp.reduce(lifted, axis=-1) - np.logaddexp.reduce(x[:, rows], axis=-1)
        slopes.extend(np.diff(logq, axis=0)[0] / np.log(s[1] / s[0]))
    end = e.like_outputs(tuple(x[-1] for x in flow))
    still_moving = float(np.max(np.abs(np.asarray(e.problem.flatten(e.problem.descent(end))))))
    error = float(np.max(np.abs(np.array(slopes) + 1), initial=0.0)) if slopes and still_moving > 0 else np.inf
    return Finding(-1.0, float(np.max(slopes, initial=-np.inf)), error, 5e-3, "what is left of 1/s at s = 1000 N")


def _hessians(p: Matrix) -> np.ndarray:
    """diag(p) − ppᵀ for each row (N, Q, Q)."""
    return np.eye(p.shape[1])[None] * p[:, :, None] - p[:, :, None] * p[:, None, :]


def _loss_hessians(e: Evidence) -> list[Blocks]:
    """Per term, second derivatives of the loss by automatic differentiation and its own Hessian, each (N, Q, Q)."""
    samples = zip(e.logits, e.problem.terms, strict=True)
    pairs = (_hessian_pair(e.problem.loss, jnp.asarray(x), term.targets) for x, term in samples)
    return [tuple(np.asarray(H) for H in pair) for pair in pairs]


@eqx.filter_jit
def _hessian_pair(loss: AbstractLoss, x: Array, y: Array) -> tuple[Array, Array]:
    return jax.vmap(jax.hessian(loss.value))(x, y), jax.vmap(loss.hessian)(x, y)


@eqx.filter_jit
def _hessian_products(loss: AbstractLoss, x: Array, y: Array, v: Array) -> Array:
    return jax.vmap(loss.hessian_mv)(x, y, v)


@eqx.filter_jit
def _cost_hessian(problem: Problem, x: Array) -> Array:
    return jax.hessian(lambda x: problem.cost_at(problem.unflatten(x)))(x)


@eqx.filter_jit
def _entropies(y: Array) -> Array:
    return jax.vmap(lambda row: theory.label_entropy(row[None]))(y)


def _sample_weights(e: Evidence) -> np.ndarray:
    """Weight of each sample in C: W/N, one entry per sample."""
    starts, start = [], 0
    for y in e.labels:
        starts.extend(range(start, start + y.size, y.shape[1]))
        start += y.size
    return e.root[starts] ** 2 / e.num_samples
