"""The statements of the theory, each checked on a given problem: predicted by one code and measured by another."""

from chordflow.verification import hypotheses, pointwise, chords, logits  # noqa: F401, I001  in the order of lines
from chordflow.verification.evidence import Evidence
from chordflow.verification.registry import STATEMENTS, Check, Finding, Outcome, Statement
from chordflow.verification.verdicts import examine, lines, verify

__all__ = [
    "STATEMENTS",
    "Check",
    "Evidence",
    "Finding",
    "Outcome",
    "Statement",
    "examine",
    "lines",
    "verify",
]
