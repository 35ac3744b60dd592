"""One formula for all flows: θ' = Σᵢ φ(σᵢ) vᵢ uᵢᵀv for v = W^½u."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.filters import AbstractFilter
from chordflow.solve.dense import SVD, AbstractMethod, Cholesky, SpectralFactor
from chordflow.solve.weighted import WeightedJacobian

SMALL = 1e6
"""Work min(n,K)² max(n,K) below which a singular value decomposition takes about a millisecond."""


def default_method(filter: AbstractFilter, shape: tuple[int, int]) -> AbstractMethod:  # noqa: A002
    """SVD for filters that need a spectrum and for small Jacobians (n, K), Cholesky for the others.

    A Gram matrix carries rounding of 1e-16/ε² of the damping: 1e-4 at ε = 1e-6, and where D lacks rank step-size
    control sees it as noise. 1-3-1 tanh on 20 samples, ε = 1e-6, to s = 5N: 282 Dopri5 steps at rtol 1e-6 and 6846 at
    1e-8, with the SVD 143 and 297.
    """
    small = min(shape) ** 2 * max(shape) <= SMALL
    return SVD() if filter.blend() is None or small else Cholesky()


def realise(
    filter: AbstractFilter,  # noqa: A002
    method: AbstractMethod,
    A: WeightedJacobian,
    v: Float[Array, " n"],
    lam: Float[Array, ""],
) -> Float[Array, " K"]:
    """θ' = Σᵢ φ(σᵢ) vᵢ uᵢᵀv (K,), for v = W^½u (n,).

    The transpose costs one product with Aᵀ and no factorisation; everything else one factorisation by ``method``.
    """
    blend = filter.blend()
    if blend is None:
        factor = method.factorise(A, lam)
        if not isinstance(factor, SpectralFactor):
            raise ValueError(f"{type(filter).__name__} needs a spectrum: use linear_solver=cf.solve.SVD()")
        return factor.filtered(v, filter)
    theta = jnp.asarray(blend.transpose, v.dtype) * A.rmv(v)
    if not filter.inverts:
        return theta
    damped = method.factorise(A, lam).damped(v, blend.passes)
    return theta + jnp.asarray(blend.damped, v.dtype) * damped
