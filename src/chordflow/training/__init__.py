"""The trainer: damped higher-order straight-line steps, acceptance, stopping codes."""

from chordflow.training.loop import fit
from chordflow.training.outcomes import FIT_RESULTS, Fit, FitState, History

__all__ = ["FIT_RESULTS", "Fit", "FitState", "History", "fit"]
