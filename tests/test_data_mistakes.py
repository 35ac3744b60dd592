"""Every mistake a user can make with data is one line that says what was got, what was expected and where."""

import gzip
import struct

import numpy as np
import pytest
from test_data import write_idx

from chordflow import data


def bytes_file(name, content):
    def write(root):
        (root / name).write_bytes(content)
        return root / name

    return write


def csv_file(text):
    return bytes_file("t.csv", text.encode())


def npz_file(**arrays):
    def write(root):
        np.savez(root / "a.npz", **arrays)
        return root / "a.npz"

    return write


def npy_file(root):
    np.save(root / "a.npy", np.arange(3))
    return root / "a.npy"


def idx_folder(images=None, labels=None, **extra):
    files = {
        "train-images-idx3-ubyte": np.zeros((3, 2, 2)) if images is None else images,
        "train-labels-idx1-ubyte": np.arange(3) if labels is None else labels,
        **extra,
    }

    def write(root):
        for name, content in files.items():
            if isinstance(content, bytes):
                (root / name).write_bytes(content)
            else:
                write_idx(root / name, content)
        return root

    return write


MISTAKES = {
    "unknown name": ("digit", {}, None, "data.name = 'digit': unknown data set, did you mean digits. Known: digits, "),
    "name of another type": (7, {}, None, "data.name = 7: unknown data set, expected one of digits, "),
    "too many samples": (
        "wine",
        {"samples": 179},
        None,
        "data.samples = 179: wine has 178 samples, expected",
    ),
    "no samples": ("wine", {"samples": 0}, None, "data.samples = 0: .* from 1 to 178"),
    "negative samples": ("wine", {"samples": -3}, None, "data.samples = -3: .* from 1 to 178"),
    "fractional samples": ("wine", {"samples": 1.5}, None, "data.samples = 1.5: .* integer"),
    "boolean samples": ("wine", {"samples": True}, None, "data.samples = True: .* integer"),
    "samples in words": ("wine", {"samples": "ten"}, None, "data.samples = 'ten': .* integer"),
    "negative seed": ("wine", {"seed": -1}, None, "data.seed = -1: expected an integer of at least 0"),
    "no seed": ("wine", {"seed": None}, None, "data.seed = None: expected an integer"),
    "negative cap": ("wine", {"max_test": -1}, None, "data.max_test = -1: expected an integer of at least 0"),
    "smoothing above 1": ("wine", {"smoothing": 1.1}, None, r"data.smoothing = 1.1: expected a number in \[0, 1\]"),
    "smoothing NaN": ("wine", {"smoothing": float("nan")}, None, "data.smoothing = nan: expected a number"),
    "smoothing in words": ("wine", {"smoothing": "much"}, None, "data.smoothing = 'much': expected a number"),
    "standardise in words": ("wine", {"standardise": "no"}, None, "data.standardise = 'no': expected true or false"),
    "path of a bundled set": (
        "wine",
        {"path": "x.csv"},
        None,
        "data.path = 'x.csv': wine takes no path, .* csv, npz",
    ),
    "task of a bundled set": ("wine", {"task": "regression"}, None, "data.task = .*: wine takes no task, .* csv, npz"),
    "target of a bundled set": ("wine", {"target": 0}, None, "data.target = 0: wine takes no target, .* csv"),
    "path not given": ("csv", {}, None, "data.path is not set: csv reads from disk"),
    "path of another type": ("csv", {"path": 5}, None, "data.path = 5: expected the path of a file"),
    "missing file": ("csv", {"path": "absent.csv"}, None, "data.path = 'absent.csv': not found, expected a file"),
    "folder for a file": ("npz", {}, lambda root: root, "data.path = .*: is a folder, expected a file"),
    "unknown task": (
        "csv",
        {"task": "ranking"},
        csv_file("1,2\n"),
        "data.task = 'ranking': expected regression or",
    ),
    "empty CSV": ("csv", {}, csv_file(""), "t.csv: no data rows"),
    "CSV with a header alone": ("csv", {}, csv_file("a,b\n"), "t.csv: no data rows"),
    "one column": (
        "csv",
        {},
        csv_file("1\n2\n"),
        "data.target = -1: .* has 1 comma-separated columns; expected",
    ),
    "ragged CSV": ("csv", {}, csv_file("a,b\n1,2\n\n3\n"), "t.csv, line 4: 1 fields, expected 2 as in line 1"),
    "word in CSV": ("csv", {}, csv_file("a,b\n1,2\nx,3\n"), r"t.csv, line 3, column 0 \('a'\): 'x' is not a number"),
    "missing value": ("csv", {}, csv_file("1,2\n,3\n"), "t.csv, line 2, column 0: '' is not a number"),
    "digit groups": ("csv", {}, csv_file("1_000,2\n"), "t.csv, line 1, column 0: '1_000' is not a number"),
    "NaN in CSV": (
        "csv",
        {},
        csv_file("1,2\n3,nan\ninf,NaN\n"),
        r"inputs have 1 NaN .* is inf at inputs\[2, 0\]",
    ),
    "NaN target": (
        "csv",
        {},
        csv_file("1,2\n3,nan\n4,inf\n"),
        r"targets have 2 NaN .* is nan at targets\[1, 0\]",
    ),
    "bytes in CSV": ("csv", {}, bytes_file("t.csv", b"1,\xff\n"), "t.csv': cannot be read as UTF-8 CSV"),
    "open quote": ("csv", {}, csv_file('1,"2\n3,4\n'), "t.csv': cannot be read as UTF-8 CSV: unexpected end of data"),
    "unknown column": (
        "csv",
        {"target": "c"},
        csv_file("a,b\n1,2\n"),
        "data.target = 'c': 0 such .* name among: a, b",
    ),
    "column twice": ("csv", {"target": "a"}, csv_file("a,a\n1,2\n"), "data.target = 'a': 2 such columns"),
    "name without header": ("csv", {"target": "a"}, csv_file("1,2\n"), "data.target = 'a': 0 such .* from -2 to 1$"),
    "column out of range": ("csv", {"target": 2}, csv_file("1,2\n"), "data.target = 2: .* an index from -2 to 1"),
    "target column twice": ("csv", {"target": [0, 0]}, csv_file("1,2\n"), r"data.target = \[0, 0\]: .* distinct"),
    "no target column": ("csv", {"target": []}, csv_file("1,2\n"), r"data.target = \[\]: .* distinct"),
    "two columns of labels": (
        "csv",
        {"target": [0, 1], "task": "classification"},
        csv_file("1,2,3\n"),
        "classification takes one column of labels, got 2",
    ),
    "fractional labels": (
        "csv",
        {"task": "classification"},
        csv_file("1,1\n2,2.5\n"),
        "t.csv, column 1: class labels .* label 1 .* is 2.5; use data.task=regression",
    ),
    "one class": ("csv", {"task": "classification"}, csv_file("1,a\n2,a\n"), "classes found: 1, expected at least 2"),
    "deviation beyond float64": (
        "csv",
        {},
        csv_file("1e200,1\n-1e200,2\n"),
        "inputs up to 1e.200 .*standardise=false",
    ),
    "wrong keys": (
        "npz",
        {},
        npz_file(a=[1], targets=[1]),
        "a.npz: holds arrays a, targets; expected inputs",
    ),
    "no arrays": ("npz", {}, npz_file(), "a.npz: holds arrays none; expected inputs"),
    "NPY file": ("npz", {}, npy_file, "a.npy: holds arrays a single unnamed one; expected inputs"),
    "no archive": ("npz", {}, bytes_file("a.npz", b"PK nonsense"), "no NPZ archive of plain arrays"),
    "text for NPZ": ("npz", {}, bytes_file("a.npz", b"1,2\n"), "no NPZ archive of plain arrays"),
    "empty file for NPZ": ("npz", {}, bytes_file("a.npz", b""), "no NPZ archive of plain arrays"),
    "pickled objects": (
        "npz",
        {},
        npz_file(x=np.array([{}], dtype=object), y=[1]),
        "no NPZ archive of plain arrays .pickled objects are refused.; write it with np.savez",
    ),
    "complex inputs": ("npz", {}, npz_file(x=[1j], y=[1]), "x have dtype complex128, expected real numbers"),
    "string targets": ("npz", {}, npz_file(x=[1], y=["a"]), "y have dtype <U1, expected real numbers"),
    "unequal counts": ("npz", {}, npz_file(x=[1, 2], y=[1]), r"x \(2,\) and y \(1,\) do not match"),
    "scalar inputs": ("npz", {}, npz_file(x=1.0, y=[1]), r"x \(\) and y \(1,\) do not match"),
    "targets of rank 3": ("npz", {}, npz_file(x=[1], y=[[[1]]]), r"y \(1, 1, 1\) do not match"),
    "empty arrays": (
        "npz",
        {},
        npz_file(x=np.zeros((0, 3)), y=np.zeros(0)),
        r"npz: empty, inputs \(0, 3\)",
    ),
    "no features": ("npz", {}, npz_file(x=np.zeros((2, 0)), y=np.zeros(2)), r"npz: empty, inputs \(2, 0\)"),
    "held-out only": ("npz", {}, npz_file(x=[], y=[], x_test=[1.0], y_test=[1.0]), "npz: empty, .* 1 held out"),
    "half a held-out part": ("npz", {}, npz_file(x=[1], y=[1], x_test=[1]), "y_test is missing, expected both"),
    "held-out of another shape": (
        "npz",
        {},
        npz_file(x=[1], y=[1], x_test=[[1, 2]], y_test=[1]),
        r"x_test \(1, 2\) and y_test \(1, 1\) differ",
    ),
    "NaN in NPZ": (
        "npz",
        {},
        npz_file(x=np.array([[[1, 2], [np.nan, np.inf]]]), y=[1]),
        r"inputs have 2 NaN or infinite values, the first is nan at inputs\[0, 1, 0\]",
    ),
    "labels off the simplex": (
        "npz",
        {"task": "classification"},
        npz_file(x=[1, 2], y=[[0, 1], [0.5, 0.6]]),
        r"y\[1\] sums to 1.1, its least entry is 0.5: off the probability simplex",
    ),
    "negative label": (
        "npz",
        {"task": "classification"},
        npz_file(x=[1], y=[[-0.5, 1.5]]),
        r"y\[0\] sums to 1, its least entry is -0.5",
    ),
    "complex labels": (
        "npz",
        {"task": "classification"},
        npz_file(x=[1], y=[1j]),
        "labels have dtype complex128, expected whole numbers or strings",
    ),
    "missing folder": ("idx", {"path": "absent"}, None, "data.path = 'absent': no folder found"),
    "three IDX files": ("idx", {"path": ["a", "b", "c"]}, None, "no folder found, expected the folder .* pair"),
    "empty folder": (
        "idx",
        {},
        lambda root: root,
        "expected files train-images-idx3-ubyte and train-labels",
    ),
    "t10k images alone": (
        "idx",
        {},
        idx_folder(**{"t10k-images-idx3-ubyte": np.zeros((1, 2, 2))}),
        "both or none of t10k-images",
    ),
    "bad magic": (
        "idx",
        {},
        idx_folder(images=b"\x00\x00\x0d\x03 etc."),
        "IDX magic number 0x00000d03, expected 0x00000803",
    ),
    "labels for images": ("idx", {}, idx_folder(images=np.arange(3)), "magic number 0x00000801, expected 0x00000803"),
    "three bytes": ("idx", {}, idx_folder(images=b"\x00\x00\x08"), "truncated IDX header, 3 bytes, expected 16"),
    "truncated header": ("idx", {}, idx_folder(images=b"\x00\x00\x08\x03\x00"), "truncated IDX header, 5 bytes"),
    "truncated IDX": (
        "idx",
        {},
        idx_folder(labels=struct.pack(">4BI", 0, 0, 8, 1, 3) + b"ab"),
        r"truncated IDX file, 10 bytes, expected 11 for shape \(3,\)",
    ),
    "overlong IDX": (
        "idx",
        {},
        idx_folder(labels=struct.pack(">4BI", 0, 0, 8, 1, 3) + b"abcd"),
        r"overlong IDX file, 12 bytes, expected 11",
    ),
    "sizes beyond memory": (
        "idx",
        {},
        idx_folder(images=struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3)),
        "truncated IDX file, 16 bytes, expected 79228162458924105385300197391",
    ),
    "truncated gzip": (
        "idx",
        {},
        idx_folder(images=gzip.compress(b"abc")[:-9]),
        "images-idx3-ubyte: cannot be read",
    ),
    "fewer labels": ("idx", {}, idx_folder(labels=np.arange(2)), "has 3 images but .* has 2 labels"),
    "t10k of another size": (
        "idx",
        {},
        idx_folder(**{"t10k-images-idx3-ubyte": np.zeros((1, 3, 3)), "t10k-labels-idx1-ubyte": np.zeros(1)}),
        r"images of \(3, 3\), expected \(2, 2\)",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_one_line(case, tmp_path):
    name, options, write, text = MISTAKES[case]
    if write is not None:
        options = {"path": write(tmp_path), **options}
    with pytest.raises(ValueError, match=text) as caught:
        call_unchecked(name, options)
    assert "\n" not in str(caught.value)


def call_unchecked(name, options):
    """``load`` as a user without runtime type checks calls it: its own check of the name is under test."""
    return getattr(data.load, "__wrapped__", data.load)(name, **options)
