"""Labelled arrays as netCDF 4, and pytrees as the arrays they are made of."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.extras import load_extra
from chordflow.files import replacing
from chordflow.parameters import tree_path
from chordflow.record.errors import RunError, first_line

if TYPE_CHECKING:
    import xarray

ATTRIBUTES = str | int | float | np.integer | np.floating | np.ndarray | list | tuple
DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def read_dataset(path: Path) -> "xarray.Dataset":
    """Read a dataset into memory; the file is closed again."""
    h5py, xarray = _libraries()
    try:
        # h5netcdf 1.8 prints a second error when it meets a damaged header; touching each one first avoids it.
        with h5py.File(path) as file:
            file.visititems(lambda *_: None)
        return xarray.load_dataset(path, engine="h5netcdf")
    # HDF5 reports damage under several types, according to the structure in which it first shows.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} is truncated or damaged ({first_line(error)}): run again") from error


def write_dataset(path: Path, dataset: "xarray.Dataset") -> None:
    """Replace a file by a dataset, numbers under a checksum."""
    _ = _libraries()
    for owner, attributes in (("", dataset.attrs), *((f"{k}.", v.attrs) for k, v in dataset.variables.items())):
        for key, value in attributes.items():
            if isinstance(value, bool) or not isinstance(value, ATTRIBUTES):
                kind = type(value).__name__
                raise RunError(f"dataset {path.stem}: attribute {owner}{key} is a {kind}; expected text or a number")
    # HDF5 has checksums for arrays of numbers, not for scalars and text.
    numbers = {
        key: {"fletcher32": True} | {k: v.encoding[k] for k in ("chunksizes",) if k in v.encoding}
        for key, v in dataset.variables.items()
        if v.ndim and v.dtype.kind in "biuf"
    }
    # In memory first: where a disk is full or a file too large, HDF5 (2.0) ends the process as it closes the file.
    content = dataset.to_netcdf(engine="h5netcdf", encoding=numbers)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def dataset_name(flow: str) -> str:
    """The name of a flow's dataset: what is no letter, digit, ``_``, ``-`` or ``.`` becomes ``-``.

    Examples
    --------
    >>> dataset_name("interpolated(0.5)"), dataset_name("along(my.paths:bent,10)")
    ('interpolated-0.5', 'along-my.paths-bent-10')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", flow).strip("-")


def nested(leaves: Mapping[tuple[int | str, ...], np.ndarray]) -> Any:
    """Dictionaries and tuples from the paths of their leaves."""
    if set(leaves) == {()}:
        return leaves[()]
    heads = sorted({path[0] for path in leaves}, key=lambda head: (isinstance(head, str), head))
    parts = {head: nested({path[1:]: leaf for path, leaf in leaves.items() if path[0] == head}) for head in heads}
    return tuple(parts.values()) if heads == list(range(len(heads))) else parts


def filled(like: Any, leaves: Mapping[tuple[int | str, ...], np.ndarray]) -> Any:
    """``like`` with its arrays replaced by the leaves at the same paths."""
    import jax

    def fill(path: Sequence[Any], leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        found = leaves.get(tuple(tree_path(path)))
        if found is None or found.shape != leaf.shape:
            got = "none" if found is None else f"one of shape {found.shape}"
            where = jax.tree_util.keystr(tuple(path))
            raise RunError(f"params: like{where} is an array of shape {leaf.shape}, the run has {got} there")
        return found

    return jax.tree_util.tree_map_with_path(fill, like)


def _libraries() -> tuple[Any, Any]:
    """The modules h5py and xarray; xarray looks for h5netcdf itself, with a longer message."""
    _ = load_extra("h5netcdf", "datasets")
    return load_extra("h5py", "datasets"), load_extra("xarray", "datasets")
