"""Readers of the data sets that :func:`chordflow.data.load` knows: whole, checked arrays, before any split.

Bundled sets come from scikit-learn (imported only when one of them is asked for); files are CSV, NPZ or IDX. Nothing
is repaired: what is missing, ragged, truncated or not a number is a one-line ``ValueError`` that says where it is.
"""

import csv
import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from chordflow.extras import load_extra

Task = Literal["regression", "classification"]
TASKS: tuple[Task, ...] = ("regression", "classification")


class Raw(NamedTuple):
    """What a source holds: all samples, the last ``held_out`` of them reserved for testing.

    Inputs (N, ...) have any real dtype, so that integers stay small until the split has been made; they are still to be
    divided by ``unit``. Targets are (N, Q), rows on the simplex if there are ``class_names``. ``standardise`` is the
    source's default.
    """

    inputs: np.ndarray
    targets: np.ndarray
    class_names: tuple[str, ...] = ()
    standardise: bool = False
    unit: float = 1.0
    held_out: int = 0


class Source(NamedTuple):
    """A reader, and those of the options ``path``, ``task``, ``target`` that it takes."""

    read: Callable[..., Raw]
    options: tuple[str, ...] = ()


def one_hot(where: str, labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return indicators (N, Q) and the names of the classes, ascending, of labels (N,): whole numbers or strings.

    Raises
    ------
    ValueError
        No labels, fewer than two classes, or a label that is no whole number; ``where`` opens the message.

    Examples
    --------
    >>> indicators, names = one_hot("example", np.array([10, 9, 10]))
    >>> indicators.tolist(), names
    ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], ('9', '10'))
    """
    if labels.dtype.kind not in "biufU":
        raise ValueError(f"{where}: labels have dtype {labels.dtype}, expected whole numbers or strings")
    if labels.dtype.kind == "f":
        bad = ~np.isfinite(labels) | (labels != np.floor(labels))
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"{where}: class labels are whole numbers or names, but label {at} (counted from 0) is {labels[at]}; "
                "use data.task=regression for such targets"
            )
    classes, index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{where}: classes found: {len(classes)}, expected at least 2")
    names = tuple(str(c) if classes.dtype.kind == "U" else str(int(c)) for c in classes)
    return np.eye(len(classes))[index], names


# Bundled with scikit-learn.


def _bundled_classes(loader: str, *, unit: float = 1.0, standardise: bool = False) -> Callable[[], Raw]:
    def read() -> Raw:
        bunch = getattr(load_extra("sklearn.datasets", "bundled data sets"), loader)()
        names = tuple(str(name) for name in bunch.target_names)
        return Raw(bunch.data, np.eye(len(names))[bunch.target], names, standardise=standardise, unit=unit)

    return read


def _read_diabetes() -> Raw:
    bunch = load_extra("sklearn.datasets", "bundled data sets").load_diabetes(scaled=False)
    return Raw(bunch.data, bunch.target[:, None], standardise=True)


# CSV.


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"data.path = {path!r}: expected the path of a file")
    return Path(path).expanduser()


def _file(path: Any) -> Path:
    file = _path(path)
    if not file.is_file():
        raise ValueError(
            f"data.path = {str(file)!r}: {'is a folder' if file.is_dir() else 'not found'}, expected a file"
        )
    return file


class _Table(NamedTuple):
    """The fields of a CSV file, with the line that each row ends on."""

    path: Path
    header: tuple[str, ...] | None
    lines: list[int]
    rows: list[list[str]]

    def label(self, column: int) -> str:
        return f"column {column}" + (f" ({self.header[column]!r})" if self.header else "")

    def strings(self, column: int) -> list[str]:
        return [row[column].strip() for row in self.rows]

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        values = np.empty((len(self.rows), len(columns)))
        for i, row in enumerate(self.rows):
            for j, column in enumerate(columns):
                number = _number(row[column])
                if number is None:
                    raise ValueError(
                        f"{self.path}, line {self.lines[i]}, {self.label(column)}: {row[column]!r} is not a number; "
                        "inputs and regression targets must be, and a header row has none"
                    )
                values[i, j] = number
        return values

    def find(self, key: Any) -> int:
        """Index of a column given by name or by index."""
        width = len(self.rows[0])
        if isinstance(key, int) and not isinstance(key, bool) and -width <= key < width:
            return key % width
        names = self.header or ()
        if isinstance(key, str) and names.count(key) == 1:
            return names.index(key)
        known = f"an index from {-width} to {width - 1}" + (f" or a name among: {', '.join(names)}" if names else "")
        raise ValueError(f"data.target = {key!r}: {names.count(key)} such columns in {self.path}, expected {known}")


def _number(field: str) -> float | None:
    if "_" in field:  # float() reads 1_000 as a number
        return None
    try:
        return float(field)
    except ValueError:
        return None


def _read_table(path: Any) -> _Table:
    file = _file(path)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in filter(None, reader):
                lines.append(reader.line_num)
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"data.path = {str(file)!r}: cannot be read as UTF-8 CSV: {error}") from None
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ValueError(f"{file}, line {line}: {len(row)} fields, expected {len(rows[0])} as in line {lines[0]}")
    header = None
    if rows and all(_number(field) is None for field in rows[0]):
        header = tuple(field.strip() for field in rows.pop(0))
        del lines[0]
    if not rows:
        raise ValueError(f"{file}: no data rows, expected at least one")
    return _Table(file, header, lines, rows)


def _read_csv(path: Any, task: Task = "regression", target: Any = -1) -> Raw:
    table = _read_table(path)
    columns = [table.find(key) for key in (target if isinstance(target, list | tuple) else [target])]
    rest = [column for column in range(len(table.rows[0])) if column not in columns]
    if not rest or not columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"data.target = {target!r}: {table.path} has {len(table.rows[0])} comma-separated columns; expected "
            "distinct target columns and at least one other, for the inputs"
        )
    inputs = table.numbers(rest)
    if task == "regression":
        return Raw(inputs, table.numbers(columns), standardise=True)
    if len(columns) != 1:
        raise ValueError(f"data.target = {target!r}: classification takes one column of labels, got {len(columns)}")
    strings = table.strings(columns[0])
    numbers = [_number(label) for label in strings]
    labels = np.array(strings) if None in numbers else np.array(numbers, np.float64)
    targets, names = one_hot(f"{table.path}, {table.label(columns[0])}", labels)
    return Raw(inputs, targets, names, standardise=True)


# NPZ.

_NPZ_KEYS = (("inputs", "targets", "test_inputs", "test_targets"), ("x", "y", "x_test", "y_test"))


def _read_npz(path: Any, task: Task = "regression") -> Raw:
    file = _file(path)
    arrays, held = _npz_arrays(file)
    keys = next((keys for keys in _NPZ_KEYS if keys[0] in arrays and keys[1] in arrays), None)
    if keys is None:
        raise ValueError(f"{file}: holds arrays {', '.join(held) or 'none'}; expected inputs and targets, or x and y")
    inputs, targets = _npz_pair(file, keys[:2], arrays)
    held_out = 0
    if keys[2] in arrays or keys[3] in arrays:
        test_inputs, test_targets = _npz_pair(file, keys[2:], arrays)
        if (test_inputs.shape[1:], test_targets.shape[1:]) != (inputs.shape[1:], targets.shape[1:]):
            raise ValueError(
                f"{file}: {keys[2]} {test_inputs.shape} and {keys[3]} {test_targets.shape} differ in more than the "
                f"number of samples from {keys[0]} {inputs.shape} and {keys[1]} {targets.shape}"
            )
        held_out = len(test_inputs)
        inputs, targets = np.concatenate([inputs, test_inputs]), np.concatenate([targets, test_targets])
    names: tuple[str, ...] = ()
    if task == "classification":
        targets, names = _npz_labels(f"{file}: {keys[1]}", targets)
    elif targets.dtype.kind not in "biuf":
        raise ValueError(f"{file}: {keys[1]} have dtype {targets.dtype}, expected real numbers")
    return Raw(inputs, targets, names, held_out=held_out)


def _npz_arrays(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays with known names, and all names. Pickled objects are refused, never loaded."""
    known = {key for keys in _NPZ_KEYS for key in keys}
    try:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return {}, ["a single unnamed one"]
        with archive:
            loaded = {key: archive[key] for key in known.intersection(archive.files)}
            # A member of the zip file that is no array comes as bytes.
            return {key: array for key, array in loaded.items() if isinstance(array, np.ndarray)}, archive.files
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"data.path = {str(file)!r}: no NPZ archive of plain arrays (pickled objects are refused); write it with "
            "np.savez(path, inputs=..., targets=...)"
        ) from error


def _npz_pair(file: Path, keys: Sequence[str], arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(f"{file}: {missing[0]} is missing, expected both {keys[0]} and {keys[1]}")
    inputs, targets = (arrays[key] for key in keys)
    if inputs.dtype.kind not in "biuf":
        raise ValueError(f"{file}: {keys[0]} have dtype {inputs.dtype}, expected real numbers")
    if inputs.ndim < 1 or targets.ndim not in (1, 2) or len(inputs) != len(targets):
        raise ValueError(
            f"{file}: {keys[0]} {inputs.shape} and {keys[1]} {targets.shape} do not match, expected (N, ...) and (N,) "
            "or (N, Q)"
        )
    return (
        inputs if inputs.ndim > 1 else inputs[:, None],
        targets if targets.ndim > 1 else targets[:, None],
    )


def _npz_labels(where: str, targets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    if targets.shape[1] == 1 or targets.dtype.kind not in "biuf":
        return one_hot(where, targets[:, 0])
    values = np.asarray(targets, np.float64)
    on = (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) <= 1e-6)  # 1e-6: labels stored as float32
    if not on.all():
        at = int(np.argmin(on))
        raise ValueError(
            f"{where}[{at}] sums to {values[at].sum():.9g}, its least entry is {values[at].min():.3g}: off the "
            "probability simplex; classification expects non-negative rows that sum to 1, or one column of labels"
        )
    return values, tuple(str(q) for q in range(values.shape[1]))


# IDX, the format of MNIST.


def _read_idx(path: Any) -> Raw:
    files = _idx_files(path)
    parts = []
    for images_file, labels_file in files:
        images, labels = _idx_array(images_file, 3), _idx_array(labels_file, 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{images_file} has {len(images)} images but {labels_file} has {len(labels)} labels, expected as many"
            )
        parts.append((images, labels))
    images, labels = zip(*parts, strict=True)
    if images[0].shape[1:] != images[-1].shape[1:]:
        raise ValueError(
            f"{files[-1][0]}: images of {images[-1].shape[1:]}, expected {images[0].shape[1:]} as in {files[0][0]}"
        )
    targets, names = one_hot(str(files[0][1]), np.concatenate(labels))
    return Raw(np.concatenate(images), targets, names, unit=255.0, held_out=sum(map(len, images[1:])))


def _idx_files(path: Any) -> list[tuple[Path, Path]]:
    """Return the (images, labels) files for training and, where present, for testing."""
    if isinstance(path, list | tuple) and len(path) == 2:
        return [(_file(path[0]), _file(path[1]))]
    if isinstance(path, list | tuple) or not (folder := _path(path)).is_dir():
        raise ValueError(
            f"data.path = {path!r}: no folder found, expected the folder of the IDX files or the pair [images, labels]"
        )
    found = [_idx_find(folder, part, what) for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    match found:
        case [Path() as images, Path() as labels, None, None]:
            return [(images, labels)]
        case [Path() as images, Path() as labels, Path() as test_images, Path() as test_labels]:
            return [(images, labels), (test_images, test_labels)]
    raise ValueError(
        f"data.path = {str(folder)!r}: expected files train-images-idx3-ubyte and train-labels-idx1-ubyte, and both "
        "or none of t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz"
    )


def _idx_find(folder: Path, part: str, what: str) -> Path | None:
    # Copies of MNIST are in use with the suffix spelt either way.
    stems = (f"{part}-{what}-ubyte", f"{part}-{what.replace('-idx', '.idx')}-ubyte")
    return next((folder / (s + end) for end in ("", ".gz") for s in stems if (folder / (s + end)).is_file()), None)


def _idx_array(file: Path, ndim: int) -> np.ndarray:
    """Unsigned bytes of ``ndim`` dimensions: magic 00 00 08 ndim, big-endian sizes, then the bytes."""
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":  # decided by content: downloads are often unpacked or renamed by a browser
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    magic, head = 0x0800 + ndim, 4 + 4 * ndim
    if len(content) >= 4 and int.from_bytes(content[:4], "big") != magic:
        raise ValueError(f"{file}: bad IDX magic number 0x{content[:4].hex()}, expected 0x{magic:08x}")
    if len(content) < head:
        raise ValueError(f"{file}: truncated IDX header, {len(content)} bytes, expected {head}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, 4))
    expected = head + math.prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "overlong"
        raise ValueError(f"{file}: {fault} IDX file, {len(content)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


SOURCES: dict[str, Source] = {
    "digits": Source(_bundled_classes("load_digits", unit=16.0)),
    "diabetes": Source(_read_diabetes),
    "wine": Source(_bundled_classes("load_wine", standardise=True)),
    "breast_cancer": Source(_bundled_classes("load_breast_cancer", standardise=True)),
    "csv": Source(_read_csv, ("path", "task", "target")),
    "npz": Source(_read_npz, ("path", "task")),
    "idx": Source(_read_idx, ("path",)),
}
"""Every data set that :func:`chordflow.data.load` knows, by name."""
