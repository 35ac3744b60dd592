"""Metrics as a stream: one JSON object a line, appended while the run goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chordflow.files import naming, sync
from chordflow.record.errors import RunError
from chordflow.record.text import from_json, plain

NAME = "metrics.jsonl"


def as_line(values: Mapping[str, Any]) -> str:
    r"""One object as JSON on a line of its own, floats exact, those that are not finite as ``{"float": "inf"}``.

    Examples
    --------
    >>> as_line({"flow": "straight", "t": 1.0, "s": float("inf")})
    '{"flow": "straight", "t": 1.0, "s": {"float": "inf"}}\n'
    """
    return json.dumps(plain(values, ""), ensure_ascii=False, allow_nan=False) + "\n"


def append(folder: Path, values: Mapping[str, Any]) -> None:
    """Add a line; it is on disk when this returns."""
    path = folder / NAME
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        with naming(path):
            line = memoryview(as_line(values).encode())
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        sync(folder)


def drop_torn_line(folder: Path) -> None:
    """Cut off a last line that was not finished, so that the next one starts on its own."""
    path = folder / NAME
    if path.is_file():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)
        sync(path)


def read_stream(folder: Path) -> list[dict[str, Any]]:
    """All lines in the order of flows and steps, without those of what was done again after a kill.

    A resumed flow goes back to its checkpoint: what was noted behind it is left out where a later line has no more
    steps, or fewer seconds, so that both increase.

    Raises
    ------
    RunError
        If a line other than the last is damaged; the last may be unfinished.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    flows: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = from_json(line.decode())
            kept = flows.setdefault(entry["flow"], [])
            while kept and (kept[-1]["steps"] >= entry["steps"] or kept[-1]["seconds"] > entry["seconds"]):
                kept.pop()
            kept.append(entry)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RunError(f"{path} is damaged in line {number}: remove that line") from None
    return [entry for kept in flows.values() for entry in kept]
