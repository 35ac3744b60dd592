"""The Gram engine: G = DDᵀ of per-sample functions from layer inputs and output cotangents, without D."""

from chordflow.kernel.engine import Options, Setup, diagonal_blocks, gram_matrix, matrix, takes_columns
from chordflow.kernel.public import gram, gram_blocks, gram_mv, gram_plan, gram_rows, gram_trace
from chordflow.kernel.report import GramPlan
from chordflow.kernel.samples import Blocks, PerSample, dense, outputs, pull, push

__all__ = [
    "Blocks",
    "GramPlan",
    "Options",
    "PerSample",
    "Setup",
    "dense",
    "diagonal_blocks",
    "gram",
    "gram_blocks",
    "gram_matrix",
    "gram_mv",
    "gram_plan",
    "gram_rows",
    "gram_trace",
    "matrix",
    "outputs",
    "pull",
    "push",
    "takes_columns",
]
