"""Chordflow: train networks so that their outputs travel a known path, a straight line to the labels."""

from chordflow import clocks, events, filters, flows, geometry, losses, solve, theory, velocities
from chordflow.flows import Flow, adapted, along, interpolated, standard, straight
from chordflow.integration import evolve, expected_steps
from chordflow.losses import CrossEntropy, Loss, SquaredError
from chordflow.problem import Problem, Term
from chordflow.results import RESULTS, FlowError
from chordflow.trajectory import Trajectory

__all__ = [
    "RESULTS",
    "CrossEntropy",
    "Flow",
    "FlowError",
    "Loss",
    "Problem",
    "SquaredError",
    "Term",
    "Trajectory",
    "adapted",
    "along",
    "clocks",
    "events",
    "evolve",
    "expected_steps",
    "filters",
    "flows",
    "geometry",
    "interpolated",
    "losses",
    "solve",
    "standard",
    "straight",
    "theory",
    "velocities",
]

__version__ = "0.1.0"
