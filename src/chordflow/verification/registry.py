"""What a checked statement is, how it is judged, and the list of all statements."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from chordflow.verification.evidence import Evidence

Quantity = float | str
Hypothesis = Callable[[Evidence], str | None]
"""None where the hypothesis holds on the problem, otherwise the reason why it does not."""


class Outcome(StrEnum):
    """How a statement fares on a problem."""

    HOLDS = "holds"
    FAILS = "does not hold"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Finding:
    """What a statement found: two numbers (or short descriptions) by two codes, and how far they may be apart.

    Attributes
    ----------
    predicted, measured
        From the theory, and from the library's problem, flows and geometry. Norms where arrays are compared.
    error
        The largest relative difference, of the arrays and not of their norms; NaN never holds.
    tolerance
        What the error is compared with.
    reason
        Where the tolerance comes from.
    limit
        A larger tolerance tells nothing apart: the statement is then not applicable.
    """

    predicted: Quantity
    measured: Quantity
    error: float
    tolerance: float
    reason: str
    limit: float = 1e-2


@dataclass(frozen=True)
class Check:
    """One line of the verification: a statement, its equation in the paper, and how it fares on the problem.

    ``reason`` says where the tolerance comes from, or why the statement is not applicable. Where a hypothesis does not
    hold, nothing was measured: predicted, measured, error and tolerance are then None.
    """

    name: str
    statement: str
    equation: str
    outcome: Outcome
    predicted: Quantity | None
    measured: Quantity | None
    error: float | None
    tolerance: float | None
    reason: str


@dataclass(frozen=True)
class Statement:
    """A statement of the theory with its hypotheses and the code that compares prediction and measurement."""

    name: str
    text: str
    equation: str
    hypotheses: tuple[Hypothesis, ...]
    find: Callable[[Evidence], Finding | str]

    def check(self, evidence: Evidence) -> Check:
        """Look at the hypotheses in turn, then at the statement itself."""
        for hypothesis in self.hypotheses:
            if (reason := hypothesis(evidence)) is not None:
                return self._not_applicable(reason)
        found = self.find(evidence)
        if isinstance(found, str):
            return self._not_applicable(found)
        if not found.tolerance <= found.limit:
            return self._not_applicable(
                f"cannot be decided here: the tolerance would be {found.tolerance:.1g} ({found.reason})"
            )
        holds = found.error <= found.tolerance
        return Check(
            self.name,
            self.text,
            self.equation,
            Outcome.HOLDS if holds else Outcome.FAILS,
            found.predicted,
            found.measured,
            found.error,
            found.tolerance,
            found.reason,
        )

    def _not_applicable(self, reason: str) -> Check:
        outcome = Outcome.NOT_APPLICABLE
        return Check(self.name, self.text, self.equation, outcome, None, None, None, None, reason)


STATEMENTS: dict[str, Statement] = {}
"""All statements by name, in the order of the paper."""


def statement(
    text: str, equation: str, *hypotheses: Hypothesis
) -> Callable[[Callable[[Evidence], Finding | str]], Callable[[Evidence], Finding | str]]:
    """Register a function of the evidence as a statement; it returns a finding, or why it does not apply.

    Parameters
    ----------
    text
        What is claimed, in one line.
    equation
        Its number in the paper.
    *hypotheses
        What must hold on the problem; looked at in this order, cheap ones first.
    """

    def register(find: Callable[[Evidence], Finding | str]) -> Callable[[Evidence], Finding | str]:
        name = find.__name__
        if name in STATEMENTS:
            raise ValueError(f"statement {name!r} is registered twice")
        STATEMENTS[name] = Statement(name, text, equation, hypotheses, find)
        return find

    return register
