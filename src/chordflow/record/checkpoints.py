"""A flow in progress: its saves in immutable segments, and checkpoints from which it goes on."""

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chordflow.extras import load_extra
from chordflow.files import make_folder, replacing
from chordflow.record.datasets import dataset_name, read_dataset, write_dataset
from chordflow.record.errors import first_line
from chordflow.record.sums import list_sums, read_sums

if TYPE_CHECKING:
    import xarray

STATE = "state"
"""The folder of a checkpoint that orbax writes: what it leaves beside it while it does lies in ours."""
ROOM_FOR_LABELS = 2**17
"""Bytes that a checkpoint takes beside its arrays: some twenty small files and folders."""
KEPT = 2
"""Checkpoints of a flow that are kept, so that there is another where one is damaged."""
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")

Arrays = Mapping[str, Any]
"""Arrays by name."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read: its arrays, and the segments before it."""

    number: int
    arrays: dict[str, np.ndarray]
    segments: list["xarray.Dataset"]


class Progress(NamedTuple):
    """Segments and checkpoints of one flow in a run folder."""

    folder: Path
    flow: str

    @property
    def segments(self) -> Path:
        """``segments/NAME``."""
        return self.folder / "segments" / dataset_name(self.flow)

    @property
    def checkpoints(self) -> Path:
        """``checkpoints/NAME``."""
        return self.folder / "checkpoints" / dataset_name(self.flow)

    def _prefix(self, folder: Path) -> str:
        return folder.relative_to(self.folder).as_posix() + "/"

    def keep(self, number: int, arrays: Arrays, num_segments: int, segment: "xarray.Dataset | None") -> None:
        """Write a segment, if there is one, then the checkpoint after it, then the sums of both.

        Killed between two of these, the folder is as it was before: what is not in the sums does not count.

        Parameters
        ----------
        number
            Of the checkpoint; counts up.
        arrays
            Arrays by name.
        num_segments
            How many segments go with the checkpoint, this one included.
        segment
            Saves since the last segment.
        """
        added = []
        if segment is not None:
            make_folder(self.segments)
            added.append(self.segments / f"{num_segments - 1:06d}.nc")
            write_dataset(added[0], segment)
        make_folder(self.checkpoints)
        target = self.checkpoints / f"{number:06d}"
        if target.exists():  # left by a run that was killed before its sums were written
            shutil.rmtree(target)
        with replacing(target) as temporary:
            temporary.mkdir()
            _reserve(temporary / "room", sum(np.asarray(array).nbytes for array in arrays.values()))
            _save(temporary / STATE, {**arrays, "num_segments": np.asarray(num_segments)})
        added += [path for path in target.rglob("*") if path.is_file()]
        start, oldest = self._prefix(self.checkpoints), number - KEPT
        list_sums(self.folder, added, lambda name: name.startswith(start) and _number(name, start) <= oldest)
        self._remove_checkpoints(lambda found: found <= oldest)

    def latest(self, like: Arrays, damaged: Collection[str] = ()) -> tuple[Checkpoint | None, list[str]]:
        """The last checkpoint that is whole with all its segments, and why later whole ones were not taken.

        What comes after it is removed.

        Parameters
        ----------
        like
            Arrays of the names, shapes and dtypes to expect; a checkpoint that differs is not used.
        damaged
            Names in the folder of the files not to be trusted.
        """
        names, reasons, found = set(read_sums(self.folder)) - set(damaged), [], None
        starts = self._prefix(self.segments), self._prefix(self.checkpoints)
        numbers = {_number(name, starts[1]) for name in names if name.startswith(starts[1])}
        for number in sorted(numbers, reverse=True):
            if any(name.startswith(f"{starts[1]}{number:06d}/") for name in damaged):
                continue
            path = self.checkpoints / f"{number:06d}"
            try:
                arrays = _load(path / STATE, {**like, "num_segments": np.asarray(0)})
            except (ValueError, KeyError, OSError) as error:
                reasons.append(f"{path} is of another version or configuration ({first_line(error)})")
                continue
            segments = [f"{starts[0]}{i:06d}.nc" for i in range(int(arrays.pop("num_segments")))]
            if names.issuperset(segments):
                found = Checkpoint(number, arrays, [read_dataset(self.folder / name) for name in segments])
                break
        self._forget_after(-1 if found is None else found.number, 0 if found is None else len(found.segments))
        return found, reasons

    def remove(self) -> None:
        """Remove segments and checkpoints, as when the flow has its dataset."""
        self._forget_after(-1, 0)
        for folder in (self.segments, self.checkpoints):
            for level in (folder, folder.parent):
                if level.is_dir() and not any(level.iterdir()):
                    level.rmdir()

    def _forget_after(self, number: int, num_segments: int) -> None:
        starts = self._prefix(self.segments), self._prefix(self.checkpoints)
        if any(name.startswith(starts) for name in read_sums(self.folder)):
            list_sums(
                self.folder,
                drop=lambda name: (
                    (name.startswith(starts[0]) and _number(name, starts[0]) >= num_segments)
                    or (name.startswith(starts[1]) and _number(name, starts[1]) > number)
                ),
            )
        self._remove_checkpoints(lambda found: found > number)
        for path in self.segments.glob("[0-9]*.nc"):
            if int(path.stem) >= num_segments:
                path.unlink()

    def _remove_checkpoints(self, which: Any) -> None:
        for path in self.checkpoints.glob("[0-9]*"):
            if which(int(path.name)):
                shutil.rmtree(path)


def _number(name: str, start: str) -> int:
    """The number of the segment or checkpoint a listed file belongs to; -1 for a name that is none."""
    found = re.match(r"\d{6}(?=[./])", name.removeprefix(start))
    return int(found[0]) if found else -1


def _reserve(path: Path, num_bytes: int) -> None:
    """Ask the disk for the room of a checkpoint, and give it back.

    Where it refuses orbax (0.12), threads of the storage below print tracebacks that nobody can catch.
    """
    left = num_bytes + num_bytes // 8 + ROOM_FOR_LABELS
    try:
        with open(path, "wb", buffering=0) as file:
            while left > 0:
                left -= file.write(bytes(min(left, 2**20)))
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path.parents[1])) from error
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Make an OSError of what the storage below orbax reports, and keep orbax from logging it with a traceback."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # orbax 0.12 hands on what its storage raises, under several types
        if (code := _OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path.parents[1])) from error
    finally:
        log.setLevel(level)


def _save(path: Path, arrays: Arrays) -> None:
    orbax = load_extra("orbax.checkpoint", "checkpoints")
    with _as_os_error(path), orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), {name: np.asarray(array) for name, array in arrays.items()})
        checkpointer.wait_until_finished()


def _load(path: Path, like: Arrays) -> dict[str, np.ndarray]:
    orbax = load_extra("orbax.checkpoint", "checkpoints")
    # Arrays of NumPy ask for arrays of NumPy, whatever device they were on.
    target = {name: np.zeros(array.shape, array.dtype) for name, array in like.items()}
    with orbax.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(path.absolute(), target)
    for name, array in target.items():  # orbax 0.12 takes arrays of NumPy of any shape
        if (found[name].shape, found[name].dtype) != (array.shape, array.dtype):
            raise ValueError(f"{name} is {found[name].dtype}{found[name].shape}, not {array.dtype}{array.shape}")
    return found
