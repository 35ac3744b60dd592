"""Chordflow: train networks so that their outputs travel a known path, a straight line to the labels."""

import importlib
from typing import Any

from chordflow import (
    clocks,
    data,
    events,
    filters,
    flows,
    geometry,
    losses,
    models,
    optim,
    physics,
    solve,
    theory,
    velocities,
    verification,
)
from chordflow.flows import Flow, adapted, along, interpolated, standard, straight
from chordflow.integration import evolve, expected_steps
from chordflow.kernel import GramPlan, gram, gram_blocks, gram_mv, gram_plan, gram_rows, gram_trace
from chordflow.losses import CrossEntropy, Loss, SquaredError
from chordflow.problem import Problem, Term
from chordflow.record import open_run
from chordflow.results import RESULTS, FlowError
from chordflow.training import FIT_RESULTS, Fit, FitState, fit
from chordflow.trajectory import Trajectory

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
    "sklearn",  # pyright: ignore[reportUnsupportedDunderAll]  # see __getattr__
    "solve",
    "standard",
    "straight",
    "theory",
    "velocities",
    "verification",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``cf.sklearn`` loads scikit-learn when it is first used."""
    if name == "sklearn":
        return importlib.import_module("chordflow.sklearn")
    raise AttributeError(f"module 'chordflow' has no attribute {name!r}")
