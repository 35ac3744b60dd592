"""Chordflow: train networks so that their outputs travel a known path, a straight line to the labels."""

import importlib
from typing import TYPE_CHECKING, Any

from chordflow import (
    clocks,
    events,
    filters,
    flows,
    geometry,
    losses,
    solve,
    theory,
    velocities,
)
from chordflow.flows import Flow, adapted, along, interpolated, standard, straight
from chordflow.integration import evolve, expected_steps
from chordflow.kernel import GramPlan, gram, gram_blocks, gram_mv, gram_plan, gram_rows, gram_trace
from chordflow.losses import CrossEntropy, Loss, SquaredError
from chordflow.problem import Problem, Term
from chordflow.results import RESULTS, FlowError
from chordflow.training import FIT_RESULTS, Fit, FitState, fit
from chordflow.trajectory import Trajectory

if TYPE_CHECKING:
    from chordflow import data, figures, models, optim, physics, sklearn, verification
    from chordflow import experiment as experiment
    from chordflow.experiment import resume
    from chordflow.record import open_run

__all__ = [
    "FIT_RESULTS",
    "RESULTS",
    "CrossEntropy",
    "Fit",
    "FitState",
    "Flow",
    "FlowError",
    "GramPlan",
    "Loss",
    "Problem",
    "SquaredError",
    "Term",
    "Trajectory",
    "adapted",
    "along",
    "clocks",
    "data",
    "events",
    "evolve",
    "expected_steps",
    "figures",
    "filters",
    "fit",
    "flows",
    "geometry",
    "gram",
    "gram_blocks",
    "gram_mv",
    "gram_plan",
    "gram_rows",
    "gram_trace",
    "interpolated",
    "losses",
    "models",
    "open_run",
    "optim",
    "physics",
    "resume",
    "sklearn",
    "solve",
    "standard",
    "straight",
    "theory",
    "velocities",
    "verification",
]

__version__ = "0.1.0"


_LAZY = ("data", "experiment", "figures", "models", "optim", "physics", "sklearn", "verification")
_LAZY_FUNCTIONS = {"open_run": "chordflow.record", "resume": "chordflow.experiment"}


def __getattr__(name: str) -> Any:
    """Modules that few programs use are loaded when they are first asked for; ``cf.sklearn`` loads scikit-learn."""
    if name in _LAZY:
        return importlib.import_module(f"chordflow.{name}")
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(_LAZY_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'chordflow' has no attribute {name!r}")
