"""Realise a filter for a Jacobian: θ' = Σ φ(σᵢ) vᵢ uᵢᵀ(W^½u) by a Cholesky factor or a singular value decomposition."""

from chordflow.solve.dense import SVD, AbstractFactor, AbstractMethod, Cholesky
from chordflow.solve.rank import RankPolicy
from chordflow.solve.realisation import default_method, realise
from chordflow.solve.weighted import WeightedJacobian

__all__ = [
    "SVD",
    "AbstractFactor",
    "AbstractMethod",
    "Cholesky",
    "RankPolicy",
    "WeightedJacobian",
    "default_method",
    "realise",
]
