"""One writer at a time: a lock that vanishes with its process."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chordflow.record.errors import RunningError

PATIENCE = 1.0
"""Seconds to wait for one who only looks whether the folder is locked."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for writing while the block runs; the lock is on ``config.toml``, which is never replaced.

    Raises
    ------
    RunningError
        If another process holds it.
    """
    import fcntl

    descriptor = os.open(folder / "config.toml", os.O_RDONLY)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    line = f"run folder {folder} is being written by another process: wait for it, or stop it first"
                    raise RunningError(line) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing the folder now."""
    import fcntl

    descriptor = os.open(folder / "config.toml", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
