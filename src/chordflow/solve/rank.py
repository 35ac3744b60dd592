"""The one object that decides rank: damping, effective dimension and the report come from here."""

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from chordflow.filters import AbstractFilter, Damped

Scalar = Float[Array, ""]


class RankPolicy(eqx.Module):
    """λ = (ε σ_max)², with σ_max of W^½D frozen at the start of a run.

    Network spectra decay without a gap, so "rank" is a function of tolerance: everything that needs one (solver,
    diagnostics, events, report) asks this object.

    Parameters
    ----------
    eps
        ε relative to ``scale``.
    scale
        σ_max of W^½D at θ(0).
    passes
        m of the damped filter by which reachability is measured.
    """

    eps: Scalar
    scale: Scalar
    passes: int = eqx.field(static=True, default=2)

    @classmethod
    def of(cls, filter: AbstractFilter, scale: Scalar, floor: float) -> "RankPolicy":  # noqa: A002
        """Take ε and m from a filter (defaults of :class:`chordflow.filters.Damped` where it has none).

        Raises ValueError if ε is below ``floor``, the smallest ratio σ/σ_max the factorisation can see.
        """
        fallback = Damped()
        eps = getattr(filter, "eps", fallback.eps)
        if not isinstance(eps, Tracer) and eps < floor:
            raise ValueError(
                f"eps = {float(eps):g} is below what the factorisation can see in {scale.dtype} ({floor:.1g}): "
                "use a larger eps, float64, or linear_solver=cf.solve.SVD()"
            )
        return cls(jnp.asarray(eps, scale.dtype), scale, getattr(filter, "passes", fallback.passes))

    @property
    def lam(self) -> Scalar:
        """λ = (ε σ_max)²."""
        return (self.eps * self.scale) ** 2

    @property
    def damped(self) -> Damped:
        """The damped filter by which reachability is measured, whatever the flow's own filter."""
        return Damped(self.eps, self.passes)

    def effective_dimension(self, sigma: Float[Array, "*t k"]) -> Float[Array, "*t"]:
        """Σ σ²/(σ²+λ), a smooth count of the directions that are followed; 0 for D = 0."""
        total = sigma**2 + self.lam
        return jnp.sum(jnp.where(total > 0, sigma**2 / jnp.where(total > 0, total, 1), 0), axis=-1)
