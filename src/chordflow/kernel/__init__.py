"""The Gram engine: G = DDᵀ of per-sample functions from layer inputs and output cotangents, without D."""

from chordflow.kernel.engine import Options, Setup, diagonal_blocks, gram_matrix, matrix
from chordflow.kernel.samples import Blocks, PerSample, dense, outputs, pull, push

__all__ = [
    "Blocks",
    "Options",
    "PerSample",
    "Setup",
    "dense",
    "diagonal_blocks",
    "gram_matrix",
    "matrix",
    "outputs",
    "pull",
    "push",
]
