"""Realise a filter for a Jacobian: θ' = Σ φ(σᵢ) vᵢ uᵢᵀ(W^½u).

By a Cholesky factor, a singular value decomposition or conjugate gradients.
"""

from chordflow.solve.dense import SVD, AbstractDecomposition, AbstractFactor, AbstractMethod, Cholesky
from chordflow.solve.iterative import Iterative
from chordflow.solve.rank import RankPolicy
from chordflow.solve.realisation import default_method, realise
from chordflow.solve.weighted import WeightedJacobian

__all__ = [
    "SVD",
    "AbstractDecomposition",
    "AbstractFactor",
    "AbstractMethod",
    "Cholesky",
    "Iterative",
    "RankPolicy",
    "WeightedJacobian",
    "default_method",
    "realise",
]
