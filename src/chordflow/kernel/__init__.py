"""The Gram engine: G = DDᵀ of per-sample functions from layer inputs and output cotangents, without D."""

from chordflow.kernel.engine import diagonal_blocks, full, traced
from chordflow.kernel.samples import Blocks, PerSample, dense, outputs, pull, push

__all__ = ["Blocks", "PerSample", "dense", "diagonal_blocks", "full", "outputs", "pull", "push", "traced"]
