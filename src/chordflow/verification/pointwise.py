"""Statements about D and the flows at one point (Section 2.1): no integration.

Predictions are linear algebra on the dense D with NumPy; measurements are the library's products and solves.
"""

from collections.abc import Callable

import equinox as eqx
import numpy as np

from chordflow.filters import Cutoff
from chordflow.flows import Flow, standard
from chordflow.geometry import OutputMetric, transfer
from chordflow.velocities import Descent
from chordflow.verification.evidence import EPS, FRACTIONS, Evidence, Matrix, Vector
from chordflow.verification.hypotheses import full_rank, moves, rank_deficient
from chordflow.verification.registry import Finding, statement

ROUNDING = 1e3 * EPS
"""Sums over n or K entries and LAPACK, on numbers of order one; conditions multiply it."""
TINY = float(np.finfo(np.float64).tiny)

_metric_at = eqx.filter_jit(OutputMetric.at)


def compare(
    predicted: np.ndarray, measured: np.ndarray, tolerance: float, reason: str, scale: float | None = None
) -> Finding:
    """|predicted − measured| in units of ``scale``, by default |predicted|."""
    size, difference = float(np.linalg.norm(predicted)), float(np.linalg.norm(predicted - measured))
    scale = size if scale is None else scale
    return Finding(size, float(np.linalg.norm(measured)), difference / max(scale, TINY), tolerance, reason)


def worst(findings: list[Finding]) -> Finding:
    """The finding whose error is largest in units of its tolerance."""
    return max(findings, key=lambda f: np.inf if np.isnan(f.error) else f.error / max(f.tolerance, TINY))


def _pseudoinverse_tolerance(e: Evidence) -> tuple[float, str]:
    """Rounding of D turns its singular vectors by rounding times condition."""
    return ROUNDING * e.condition, f"1000 machine epsilons times the condition {e.condition:.1g} of D"


def _family(e: Evidence, tau: float) -> tuple[Vector, Vector]:
    return e.velocity(Flow(Descent(), e.member(tau)))


@statement("∇_θC = Dᵀ∇ₓC", "2.14–2.15", moves)
def chain_rule(e: Evidence) -> Finding:
    """Dense D and the output gradient against the gradient of the cost in parameter space."""
    predicted = e.jacobian.T @ e.gradient
    scale = float(np.linalg.norm(np.abs(e.jacobian).T @ np.abs(e.gradient)))
    measured = e.parameter_gradient
    return compare(predicted, measured, 10 * ROUNDING, "10⁴ machine epsilons of |D|ᵀ|∇ₓC|", scale)


@statement("standard flow: x' = −DDᵀ∇ₓC", "2.17", moves)
def standard_flow(e: Evidence) -> Finding:
    """The product with the dense D twice against where the library's standard flow moves the outputs."""
    predicted = -e.jacobian @ (e.jacobian.T @ e.gradient)
    lost = float(e.svd[1][0] ** 2 * np.linalg.norm(e.gradient)) / max(float(np.linalg.norm(predicted)), TINY)
    reason = f"10⁴ machine epsilons, times {lost:.1g} for what cancels"
    return compare(predicted, e.velocity(standard())[1], 10 * ROUNDING * lost, reason)


@statement("full rank: θ' = −Dᵀ(DDᵀ)⁻¹∇ₓC gives x' = −∇ₓC", "2.18–2.19, Lemma 2.2", full_rank, moves)
def lemma_full_rank(e: Evidence) -> Finding:
    """−∇ₓC, and θ' through a QR factorisation of Dᵀ, against the library's adapted flow."""
    tolerance, reason = _pseudoinverse_tolerance(e)
    theta, z = _family(e, 1.0)
    Q, R = np.linalg.qr(e.jacobian.T)
    return worst(
        [
            compare(-e.gradient, z, tolerance, reason),
            compare(-Q @ np.linalg.solve(R.T, e.gradient), theta, tolerance, reason),
        ]
    )


@statement("rank loss: θ' = −Dᵀψ with DDᵀψ = P∇ₓC gives x' = −P∇ₓC", "2.20–2.22, Lemma 2.2", rank_deficient, moves)
def lemma_rank_deficient(e: Evidence) -> Finding:
    """P∇ₓC, and the ψ of least norm, against the library's adapted flow."""
    tolerance, reason = _pseudoinverse_tolerance(e)
    theta, z = _family(e, 1.0)
    U, sigma = e.svd[0][:, : e.rank], e.svd[1][: e.rank]
    psi = U @ (U.T @ e.gradient / sigma**2)
    lost = float(np.linalg.norm(e.gradient) / (sigma[-1] * max(np.linalg.norm(theta), TINY)))
    return worst(
        [
            compare(-e.projection @ e.gradient, z, tolerance, reason, float(np.linalg.norm(e.gradient))),
            compare(-e.jacobian.T @ psi, theta, tolerance * max(lost, 1.0), reason),
        ]
    )


@statement("D(DᵀD)⁺Dᵀ = P, the orthogonal projection onto range D", "2.23–2.27", moves)
def projection_form(e: Evidence) -> Finding:
    """P from an orthonormal basis of range D against the transfer of the library's pseudoinverse; P² = P, PD = D."""
    tolerance, reason = _pseudoinverse_tolerance(e)
    S = np.asarray(transfer(e.problem, e.params, Cutoff(e.policy.eps), e.policy))[np.ix_(e.kept, e.kept)]
    return worst(
        [
            compare(e.projection, S, tolerance, reason),
            compare(S, S @ S, tolerance, reason),
            compare(e.jacobian, e.projection @ e.jacobian, tolerance, reason),
        ]
    )


@statement("A₀ = 1 and A₁ = (DᵀD)⁺, A_τ linear between them", "2.30–2.35", moves)
def endpoints_of_family(e: Evidence) -> Finding:
    """−∇_θC and −(DᵀD)⁺∇_θC against the library's interpolated flow at τ = 0, ½, 1."""
    w = e.parameter_gradient
    sigma, Vt = e.svd[1][: e.rank], e.svd[2][: e.rank]
    inverted = Vt.T @ (Vt @ w / sigma**2)
    rounding, reason = _pseudoinverse_tolerance(e)
    # Rounding of ∇_θC is of the size σ_max |∇ₓC| and is divided by σ²; the other direction loses σ_max |∇ₓC|/|∇_θC|.
    size = float(np.linalg.norm(e.gradient)) * e.svd[1][0]
    lost = size / (sigma[-1] ** 2 * e.condition * max(float(np.linalg.norm(inverted)), TINY))
    lost_standard = size / max(float(np.linalg.norm(w)), TINY)
    ends = [(-w, 0.0, 10 * ROUNDING * lost_standard), (-inverted, 1.0, rounding * max(lost, 1.0))]
    ends.append((-0.5 * (w + inverted), 0.5, max(tolerance for _, _, tolerance in ends)))
    return worst([compare(end, _family(e, tau)[0], tolerance, reason) for end, tau, tolerance in ends])


@statement("A_τ is positive: wᵀA_τw ≥ min((1−τ) + τ/σ²)|w|²", "2.30–2.35", moves)
def positivity_of_family(e: Evidence) -> Finding:
    """(1−τ)|w|² + τ|Pv|² for w = Dᵀv against wᵀA_τw of the library, for extreme and random v and all τ."""
    tolerance, reason = _pseudoinverse_tolerance(e)
    U = e.svd[0][:, : e.rank]
    v = np.stack([U[:, 0], U[:, -1], *_directions(e, 2)])
    w, reached = v @ e.jacobian, v @ e.projection
    findings = []
    for tau in FRACTIONS:
        predicted = (1 - tau) * np.sum(w**2, axis=1) + tau * np.sum(reached**2, axis=1)
        measured = np.sum(w * e.pushed(e.member(tau), v)[0], axis=1)
        error = float(np.max(np.abs(measured / predicted - 1))) if measured.min() > 0 else np.inf
        smallest = [float(np.min(q / np.sum(w**2, axis=1))) for q in (predicted, measured)]
        findings.append(Finding(smallest[0], smallest[1], error, tolerance, reason))
    return worst(findings)


@statement("interpolated flow: x' = −((1−τ)DDᵀ + τP)∇ₓC", "2.37–2.42, Theorem 2.3", moves)
def output_family(e: Evidence) -> Finding:
    """Dense D and P against where the library's interpolated flow moves the outputs, for five τ."""
    tolerance, reason = _pseudoinverse_tolerance(e)
    kernel, projected = -e.jacobian @ (e.jacobian.T @ e.gradient), -e.projection @ e.gradient
    findings = []
    for tau in FRACTIONS:
        predicted = (1 - tau) * kernel + tau * projected
        scale = float(np.linalg.norm((1 - tau) * kernel) + tau * np.linalg.norm(e.gradient))
        lost = e.svd[1][0] ** 2 * float(np.linalg.norm(e.gradient)) / max(scale, TINY) if tau < 1 else 0.0
        findings.append(compare(predicted, _family(e, tau)[1], tolerance + 10 * ROUNDING * lost, reason, scale))
    return worst(findings)


@statement("the same equilibria for τ = 0, ¼, ½, ¾, 1: just where Dᵀ∇ₓC = 0", "Theorem 2.3", moves)
def same_equilibria(e: Evidence) -> Finding:
    """For all τ the library's map moves nothing for gradients in ker Dᵀ, and everything else by no less than predicted.

    Predicted and measured are the least of x'·v over |v|² for v in range D, τ = 1: an eigenvalue 1 there, 0 on ker Dᵀ.
    """
    tolerance, reason = _pseudoinverse_tolerance(e)
    sigma, U = e.svd[1][: e.rank], e.svd[0][:, : e.rank]
    random = _directions(e, 2)
    still = random - random @ e.projection
    reached = np.stack([*(random @ U @ U.T), U[:, -1]])
    reached /= np.linalg.norm(reached, axis=1, keepdims=True)
    findings = []
    for tau in FRACTIONS:
        theta, z = e.pushed(e.member(tau), np.concatenate([still, reached]))
        moved = max(
            np.linalg.norm(theta[:2]) / ((1 - tau) * sigma[0] + tau / sigma[-1]),
            np.linalg.norm(z[:2]) / ((1 - tau) * sigma[0] ** 2 + tau),
        )
        least = (1 - tau) * sigma[-1] ** 2 + tau
        quotient = float(np.min(np.sum(z[2:] * reached, axis=1)))
        lost = ROUNDING * sigma[0] ** 2 * (1 - tau) / least
        error = max(float(moved), 1 - quotient / least)
        findings.append(Finding(float(least), quotient, error, tolerance + float(lost), reason))
    return worst(findings)


@statement("x' = −grad C for the metric ((1−τ)DDᵀ + τ)⁻¹", "2.44", full_rank, moves)
def metric(e: Evidence) -> Finding:
    """The inverse by LU against the library's metric, and the metric of the library's x' against −∇ₓC."""

    def matrix(tau: float) -> Matrix:
        return np.linalg.inv((1 - tau) * e.jacobian @ e.jacobian.T + tau * np.eye(len(e.gradient)))

    return _metric(e, matrix, e.gradient)


@statement("x' = −grad C for the bundle metric ((1−τ)DDᵀ + τP)⁺ on range D", "2.45", rank_deficient, moves)
def bundle_metric(e: Evidence) -> Finding:
    """The pseudoinverse by eigenvalues against the library's metric, and the metric of its x' against −P∇ₓC."""

    def matrix(tau: float) -> Matrix:
        S = (1 - tau) * e.jacobian @ e.jacobian.T + tau * e.projection
        # On range D eigenvalues are at least τ; outside they are rounding.
        return np.linalg.pinv(S, rcond=0.5 * tau / ((1 - tau) * e.svd[1][0] ** 2 + tau), hermitian=True)

    return _metric(e, matrix, e.projection @ e.gradient)


def _metric(e: Evidence, matrix: Callable[[float], Matrix], gradient: Vector) -> Finding:
    rounding, reason = _pseudoinverse_tolerance(e)
    sigma = e.svd[1][: e.rank]
    findings = []
    for tau in (0.25, 0.5, 0.75, 1.0):
        found = _metric_at(e.problem, e.params, e.member(tau), e.policy)
        spread = ((1 - tau) * sigma[0] ** 2 + tau) / ((1 - tau) * sigma[-1] ** 2 + tau)
        tolerance = rounding + ROUNDING * float(spread)
        moved = e.all(_family(e, tau)[1])
        flowed = np.asarray(found.mv(moved))[e.kept]
        dense = np.asarray(found.as_matrix())[np.ix_(e.kept, e.kept)]
        findings.append(compare(matrix(tau), dense, tolerance, reason))
        findings.append(compare(-gradient, flowed, tolerance, reason, float(np.linalg.norm(e.gradient))))
    return worst(findings)


def _directions(e: Evidence, number: int) -> Matrix:
    """Random unit vectors of output space, as rows."""
    v = np.random.default_rng(e.seed).normal(size=(number, len(e.start)))
    return v / np.linalg.norm(v, axis=1, keepdims=True)
