"""Files that are whole or absent: nothing that reads them ever sees half of one."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends, and vanishes when it raises.

    A file, or a folder where there is none yet. The bytes are on disk before the name changes hands, and the name
    before the block ends, so a crash at any moment leaves the old or the new. A ``new`` file is the first of its name:
    of two processes that write it at once, one raises FileExistsError.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("42")
    >>> path.read_text()
    '42'
    """
    # Hidden and in the same folder: no reader lists it, and os.replace cannot cross file systems.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with naming(path):
            yield temporary
            for inner in sorted(temporary.rglob("*"), reverse=True) if temporary.is_dir() else ():
                sync(inner)
            sync(temporary)
            _link(temporary, path) if new else os.replace(temporary, path)
            sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(temporary, path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none, as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless they are there; their names are on disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def remove_litter(folder: Path) -> None:
    """Remove what :func:`replacing` leaves in a folder, and below it, when the process is killed."""
    # From the leaves up: what lies in a temporary folder goes with it.
    for path in [path for path in folder.rglob(".*.tmp") if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def is_litter(path: Path) -> bool:
    """Whether a name is one that :func:`replacing` gives to what is not finished."""
    return bool(_TEMPORARY.fullmatch(path.name))


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> sha256(path)[:8]
    'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes) -> str:
    """SHA-256 of bytes, as :func:`sha256` of a file that holds them."""
    return hashlib.sha256(content).hexdigest()
