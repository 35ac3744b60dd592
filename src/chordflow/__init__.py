"""Chordflow: train networks so that their outputs travel a known path, a straight line to the labels."""

from chordflow import losses, theory
from chordflow.losses import CrossEntropy, Loss, SquaredError

__all__ = ["CrossEntropy", "Loss", "SquaredError", "losses", "theory"]

__version__ = "0.1.0"
