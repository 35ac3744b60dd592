"""Outcomes of a verification kept in a run folder, beside the run whose problem they are about."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chordflow.record import Run, RunError
from chordflow.record.text import from_json
from chordflow.verification.registry import Check, Outcome

NAME, FORMAT = "verification.json", 1


@dataclass(frozen=True)
class Kept:
    """Checks as they were kept, and on how many samples of the run's problem they were made."""

    checks: tuple[Check, ...]
    samples: int


def keep(folder: Path, checks: Sequence[Check], samples: int) -> Path:
    """Replace ``verification.json`` in a run folder and list its sum; floats keep every bit.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    entries = [{**asdict(check), "outcome": str(check.outcome)} for check in checks]
    path = folder / NAME
    try:
        Run(folder).write_beside(NAME, {"format": FORMAT, "samples": samples, "checks": entries})
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}): the checks were not kept") from error
    return path


def read_kept(folder: Path) -> Kept | None:
    """What :func:`keep` wrote into a run folder, or None where it did not.

    Raises
    ------
    RunError
        If the file is damaged, or of a newer format than this version reads.

    Examples
    --------
    >>> import tempfile
    >>> from chordflow.record import create
    >>> folder = create(tempfile.mkdtemp(), {"seed": 0}).path
    >>> check = Check("name", "1 + 1 = 2", "0.1", Outcome.HOLDS, 2.0, 2.0, 0.0, 1e-15, "rounding")
    >>> _ = keep(folder, [check], 20)
    >>> read_kept(folder).checks == (check,)
    True
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        found = from_json(path.read_text(encoding="utf-8"))
        if found["format"] > FORMAT:
            raise RunError(f"{path} has format {found['format']}, this version reads {FORMAT}: upgrade chordflow")
        checks = tuple(Check(**{**entry, "outcome": Outcome(entry["outcome"])}) for entry in found["checks"])
        return Kept(checks, int(found["samples"]))
    except RunError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it, or run chordflow verify {folder} again") from error
