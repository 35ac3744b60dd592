"""One formula for all flows: θ' = Σᵢ φ(σᵢ) vᵢ uᵢᵀv for v = W^½u."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.filters import AbstractFilter
from chordflow.solve.dense import SVD, AbstractMethod, Cholesky, SpectralFactor
from chordflow.solve.weighted import WeightedJacobian


def default_method(filter: AbstractFilter) -> AbstractMethod:  # noqa: A002
    """Cholesky for filters made of the transpose and the damped inverse, SVD for those that need a spectrum."""
    return SVD() if filter.blend() is None else Cholesky()


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
