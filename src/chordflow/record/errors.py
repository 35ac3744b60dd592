"""What goes wrong with run folders, as one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunError(ValueError):
    """A run folder that cannot be made, read or trusted; the message is one line that says what to do."""


class StorageError(RunError):
    """A run folder that could not be written in mid-run, as on a full disk; what is in it is whole."""


class RunningError(RunError):
    """A run folder that another process is writing."""


def first_line(error: BaseException) -> str:
    """The reason of an error of another library, as one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(reason.splitlines()), "") or type(error).__name__


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "allow writing there",
    errno.EROFS: "allow writing there",
    errno.EEXIST: "move away the file that is where a folder must go",
    errno.ENOTDIR: "move away the file that is where a folder must go",
}


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Make one line of what the disk refuses inside the block: of an error that names a file in the folder.

    Others are none of the folder's: of what prints, of what follows the run, of the user's own functions.

    Raises
    ------
    StorageError
        For an OSError: names the path, the reason, what helps, and how the run goes on.

    Examples
    --------
    >>> with storing(Path("runs/a")):
    ...     raise OSError(errno.ENOSPC, "No space left on device", "runs/a/summary.json")
    Traceback (most recent call last):
    chordflow.record.errors.StorageError: runs/a/summary.json cannot be written (No space left on device): free some \
space, then do it again
    """
    try:
        yield
    except OSError as error:
        where = error.filename
        if not isinstance(where, str | Path) or not Path(where).absolute().is_relative_to(folder.absolute()):
            raise
        remedy = _REMEDIES.get(error.errno or 0, "see to it")
        goes_on = (folder / "config.toml").exists()  # what a failure takes away does not
        way_on = f"`chordflow resume {folder}` goes on" if goes_on else "do it again"
        line = f"{where} cannot be written ({first_line(error)}): {remedy}, then {way_on}"
        raise StorageError(line) from error
