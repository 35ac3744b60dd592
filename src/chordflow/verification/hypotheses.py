"""Hypotheses of the theorems: as conditions of other statements, and as two statements of their own.

A hypothesis that fails puts the problem outside a theorem; that is no contradiction to it, and counts neither way.
"""

import numpy as np

from chordflow.geometry import above_rounding
from chordflow.losses import CrossEntropy, SquaredError
from chordflow.verification.evidence import EPS, Evidence, ended
from chordflow.verification.registry import Finding, Hypothesis, statement

LIPSCHITZ = 0.75
"""Hölder exponents above this count as Lipschitz; measured: 0.00 for relu, 1.00 for its square, 2 or more if smooth."""


def squared_error(e: Evidence) -> str | None:
    """The loss is ½|x − y|²."""
    loss = e.problem.loss
    return None if isinstance(loss, SquaredError) else f"the loss is {type(loss).__name__}, not squared error"


def cross_entropy(e: Evidence) -> str | None:
    """The loss is softmax cross-entropy."""
    loss = e.problem.loss
    return None if isinstance(loss, CrossEntropy) else f"the loss is {type(loss).__name__}, not cross-entropy"


def positive_labels(e: Evidence) -> str | None:
    """All components of all labels are positive."""
    if min(float(np.min(y)) for y in e.labels) > 0:
        return None
    return "labels have components 0 (one-hot): no finite equilibrium; smooth them with smooth_labels"


def zero_labels(e: Evidence) -> str | None:
    """Some label has a component 0."""
    zero = min(float(np.min(y)) for y in e.labels) <= 0
    return None if zero else "all components of the labels are positive: there is a finite equilibrium"


def moves(e: Evidence) -> str | None:
    """D and ∇ₓC are not zero at the start."""
    if e.rank == 0:
        return "D = 0 at the start: no parameter moves any output"
    rounding = 1e3 * EPS * float(np.max(np.abs(e.start)) + np.max(np.abs(e.target))) / e.num_samples
    return None if float(np.max(np.abs(e.gradient))) > rounding else "the outputs start at a minimum of the cost"


def full_rank(e: Evidence) -> str | None:
    """Rank D = n at the start."""
    n, K = e.jacobian.shape
    return None if e.rank == n else f"rank D = {e.rank} < n = {n} (K = {K})"


def rank_deficient(e: Evidence) -> str | None:
    """Rank D < n at the start."""
    return None if e.rank < e.jacobian.shape[0] else f"D has full rank n = {e.jacobian.shape[0]}"


def smooth(e: Evidence) -> str | None:
    """D is Lipschitz, as far as is measured and said by the model."""
    if e.declared_smooth is not False and e.hoelder >= LIPSCHITZ:
        return None
    said = "a model says it is not smooth" if e.declared_smooth is False else "D is not Lipschitz"
    return f"outside the theorem: {said} (Hölder exponent {max(e.hoelder, 0.0):.2f}): use softplus instead of relu"


def completed(name: str) -> Hypothesis:
    """The run of that name went to its end."""

    def hypothesis(e: Evidence) -> str | None:
        return ended(getattr(e, name))

    return hypothesis


def full_rank_along(name: str) -> Hypothesis:
    """Rank D = n at the start and wherever the run of that name was saved."""

    def hypothesis(e: Evidence) -> str | None:
        if (reason := full_rank(e)) is not None:
            return reason
        run = getattr(e, name)
        if (reason := ended(run)) is not None:
            return reason
        n = len(e.jacobian)
        ranks = np.sum(above_rounding(np.asarray(run.saved["spectrum"]), e.jacobian.shape), axis=1)
        return None if ranks.min() >= n else f"rank D falls to {ranks.min()} < n = {n} along the path"

    return hypothesis


@statement("D exists and is Lipschitz in θ", "2.11")
def smoothness(e: Evidence) -> Finding | str:
    """A model that says it is smooth must be measured so; one that is not smooth is outside the theorem."""
    if e.declared_smooth is not True and (reason := smooth(e)) is not None:
        return reason
    return Finding(
        1.0,
        min(e.hoelder, 1.0),
        max(0.0, 1 - e.hoelder),
        1 - LIPSCHITZ,
        "Hölder exponent of x and D along random lines: 1 if Lipschitz, 0 at a kink of x",
        limit=0.5,
    )


@statement("rank D = n along the path", "Lemma 2.2", full_rank, smooth)
def full_rank_along_path(e: Evidence) -> Finding | str:
    """Dense D at the saved points, by numpy's rule, against the spectra that the runs saved."""
    for run in e.runs:
        if (reason := ended(run)) is not None:
            return reason
    n, K = e.jacobian.shape
    spectra = np.concatenate([np.asarray(run.saved["spectrum"]) for run in e.runs])
    most, measured, least = (
        np.sum(above_rounding(spectra, (n, K), factor=factor), axis=1) for factor in (0.25, 1.0, 4.0)
    )
    unclear = int(np.max(most - least))
    predicted = np.array(e.path_ranks)
    disagreement = float(np.max(np.abs(predicted - measured)))
    if disagreement <= unclear and measured.min() < n:
        return f"outside the theorem: rank D falls to {measured.min()} < n = {n} along the path"
    ratio = float(np.min(spectra[:, n - 1] / spectra[:, 0]))
    return Finding(
        f"rank {predicted.min()}",
        f"rank {measured.min()}",
        disagreement / n,
        unclear / n,
        f"singular values within a factor 4 of rounding; the least is {ratio:.1g} of the largest",
    )
