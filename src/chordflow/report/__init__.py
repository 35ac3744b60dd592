"""The HTML page of one or several run folders: self-contained, opens offline, asks nothing of a network."""

from chordflow.report.page import write_report

__all__ = ["write_report"]
