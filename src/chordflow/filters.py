"""Spectral filters φ(σ): how parameters realise an output velocity.

Every flow is θ' = Σᵢ φ(σᵢ) vᵢ uᵢᵀ(W^½u) with singular triplets of W^½D, and its outputs move with the transfer
S = Σᵢ σᵢφ(σᵢ) uᵢuᵢᵀ. λ = (ε σ_max)² comes from :class:`chordflow.solve.RankPolicy`, which alone decides rank.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.bounds import require_within

Sigma = Float[Array, "*k"]
Scalar = Float[Array, ""]


class Blend(NamedTuple):
    """φ(σ) = α σ + β φ_damped(σ): rational in σ², so that products and one Cholesky factor are enough."""

    transpose: float | Array
    damped: float | Array
    passes: int


class AbstractFilter(eqx.Module):
    """φ(σ; λ) for singular values σ ≥ 0 of any shape; φ(0) = 0, so directions that D does not reach stay still."""

    @abstractmethod
    def phi(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """φ(σ; λ), the factor of θ' on each singular direction."""

    def transfer(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """σ φ(σ; λ), the eigenvalues of S: 1 where the outputs move exactly as told."""
        return sigma * self.phi(sigma, lam)

    def blend(self) -> Blend | None:
        """How the filter is made of the transpose and the damped inverse, or None if it needs a spectrum."""
        return None

    @property
    def inverts(self) -> bool:
        """Whether the filter needs a factorisation: anything but the bare transpose."""
        return True


class Transpose(AbstractFilter):
    """φ(σ) = σ: the standard gradient flow θ' = −Dᵀg (2.3); S = DDᵀ (2.17)."""

    def phi(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """σ."""
        del lam
        return sigma

    def blend(self) -> Blend:
        """The transpose alone."""
        return Blend(1.0, 0.0, 1)

    @property
    def inverts(self) -> bool:
        """No: one product with the transposed Jacobian."""
        return False


class Cutoff(AbstractFilter):
    """φ(σ) = 1/σ above ε σ_max and 0 at or below it: the pseudoinverse D⁺ (2.26); S is the projection P (2.27).

    Discontinuous where a singular value crosses the cutoff, so step-size control can fail there; it also has
    more equilibria than the paper's flow. :class:`Damped` is the continuous realisation.

    Parameters
    ----------
    eps
        ε in (0, 1), relative to σ_max of W^½D at the start.
    """

    eps: Float[Array, ""] | float = 1e-6

    def __check_init__(self):
        require_within("Cutoff", "eps", self.eps, 0, 1, open_left=True, open_right=True)

    def phi(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """1/σ where σ² > λ, else 0."""
        kept = sigma**2 > lam
        return jnp.where(kept, 1 / jnp.where(kept, sigma, 1), 0)


class Damped(AbstractFilter):
    """φ(σ) = (1 − (λ/(σ²+λ))^m)/σ, λ = (ε σ_max)²: m-times iterated Tikhonov; S = 1 − (λ(DDᵀ+λ)⁻¹)^m on range D.

    m = 1 is Levenberg–Marquardt, m = 2 squares the bias for one more solve with the same factor. Smooth in σ and
    non-zero for σ > 0, so equilibria of the pseudoinverse flow are kept. The default (ε = 1e-6, m = 2) is what this
    library calls "adapted".

    Where a path loses rank and regains it, singular values pass through ε σ_max and S turns within that passage: smooth
    for every ε > 0, but the steps that resolve it grow as ε falls. Measured on 1-3-1 tanh and 20 samples, where two
    units steepen until they are steps between neighbouring samples and the effective dimension goes 10, 6, 9: 71, 407,
    738, 1196, 2135 Dopri5 steps for ε = 1e-3 … 1e-7 at rtol 1e-6, the path converging with rtol; on a path along which
    the rank stays, 56 to 143 for all of them.

    Parameters
    ----------
    eps
        ε in (0, 1), relative to σ_max of W^½D at the start.
    passes
        m ≥ 1.
    """

    eps: Float[Array, ""] | float = 1e-6
    passes: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        require_within("Damped", "eps", self.eps, 0, 1, open_left=True, open_right=True)
        _require_passes("Damped", self.passes)

    def phi(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """(1 − r^m)/σ with r = λ/(σ²+λ), summed as σ/(σ²+λ) Σ_{j<m} rʲ so that nothing cancels at small σ."""
        total = sigma**2 + lam
        safe = jnp.where(total > 0, total, 1)  # D = 0 has λ = 0 and φ = 0
        powers = sum(((lam / safe) ** j for j in range(1, self.passes)), jnp.ones_like(sigma))
        return sigma / safe * powers

    def blend(self) -> Blend:
        """The damped inverse alone."""
        return Blend(0.0, 1.0, self.passes)


class Interpolated(AbstractFilter):
    """φ(σ) = (1−τ) σ + τ φ_damped(σ): A_τ = (1−τ) 1 + τ (DᵀD)⁺ (Theorem 2.3); S = (1−τ) DDᵀ + τ S_damped (2.30–2.41).

    Parameters
    ----------
    tau
        τ in [0, 1]; 0 is the standard flow, 1 the adapted one.
    eps, passes
        As in :class:`Damped`.
    """

    tau: Float[Array, ""] | float
    eps: Float[Array, ""] | float = 1e-6
    passes: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        require_within("Interpolated", "tau", self.tau, 0, 1)
        require_within("Interpolated", "eps", self.eps, 0, 1, open_left=True, open_right=True)
        _require_passes("Interpolated", self.passes)

    def phi(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """(1−τ) σ + τ φ_damped(σ)."""
        tau = jnp.asarray(self.tau, sigma.dtype)
        return (1 - tau) * sigma + tau * Damped(self.eps, self.passes).phi(sigma, lam)

    def blend(self) -> Blend:
        """(1−τ, τ)."""
        return Blend(1 - self.tau, self.tau, self.passes)


class Power(AbstractFilter):
    """φ(σ) = σ (σ²+λ)^(−p): S = DDᵀ(DDᵀ+λ)^(−p); p = 0 is the standard flow, p = 1 damped with m = 1. Beyond the paper.

    Parameters
    ----------
    p
        Exponent in [0, 1].
    eps
        As in :class:`Damped`.
    """

    p: Float[Array, ""] | float
    eps: Float[Array, ""] | float = 1e-6

    def __check_init__(self):
        require_within("Power", "p", self.p, 0, 1)
        require_within("Power", "eps", self.eps, 0, 1, open_left=True, open_right=True)

    def phi(self, sigma: Sigma, lam: Scalar) -> Sigma:
        """σ (σ²+λ)^(−p), 0 at σ = 0."""
        total = sigma**2 + lam
        safe = jnp.where(total > 0, total, 1)
        return sigma * safe ** -jnp.asarray(self.p, sigma.dtype)


def _require_passes(owner: str, passes: Any) -> None:
    if not isinstance(passes, int) or isinstance(passes, bool) or passes < 1:
        raise ValueError(f"{owner}: passes must be an integer of at least 1, got {passes!r}")
