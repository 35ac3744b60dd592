"""Run folders: the bytes and labels of a run, and nothing that computes.

=================  ===================================================================================================
``config.toml``    what was asked for; ``chordflow run config.toml`` asks for it again
``summary.json``   what came out, as numbers and words; floats are exact
``NAME.nc``        labelled arrays (netCDF 4), one file per flow; ``xarray.open_dataset`` reads them
=================  ===================================================================================================

Durations live only in a variable ``seconds`` of a dataset: everything else is the same for the same run on the same
machine, byte for byte. A folder is a run folder once it has ``config.toml``, which is written when it is created, so a
running or a killed run opens like a finished one. Every file is replaced as a whole. Reading executes nothing.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.extras import load_extra
from chordflow.files import replacing

if TYPE_CHECKING:
    import xarray

FORMAT = 1
"""Version of the layout of a run folder, kept in ``summary.json``; a reader refuses a newer one."""

ATTRIBUTES = str | int | float | np.integer | np.floating | np.ndarray | list | tuple
DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RunError(ValueError):
    """A run folder that cannot be made, read or trusted; the message is one line that says what to do."""


@dataclass(frozen=True)
class Run:
    """A run folder: what :func:`create` returns to write into and :func:`open_run` to read.

    Nothing is kept in memory: each access reads the file, so the folder of a running job shows its present state.
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as nested dictionaries of str, bool, int, float and lists.

        Raises
        ------
        RunError
            If ``config.toml`` is missing or damaged.
        """
        return _read(self.path / "config.toml", tomllib.loads)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary as written by :meth:`write_summary`; empty until then.

        Raises
        ------
        RunError
            If ``summary.json`` is missing, damaged, or of a newer format than this version reads.
        """
        path = self.path / "summary.json"
        summary = _read(path, _from_json)
        version = summary.pop("format", None)
        if type(version) is not int or version < 1:
            raise RunError(f"{path} is damaged: it has no format number; run again")
        if version > FORMAT:
            raise RunError(f"{path} has format {version}, this version reads up to {FORMAT}: upgrade chordflow")
        return summary

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that are there, sorted."""
        return tuple(sorted(path.stem for path in self.path.glob("*.nc") if not path.name.startswith(".")))

    def dataset(self, name: str) -> "xarray.Dataset":
        """Read one dataset into memory; the file is closed again.

        Raises
        ------
        RunError
            If there is no dataset of that name, or its file is truncated or damaged.
        MissingExtraError
            If xarray, h5netcdf or h5py is not installed.
        """
        if name not in self.datasets:
            there = ", ".join(self.datasets) or "none yet"
            raise RunError(f"{self.path} has no dataset {name!r}; there are: {there}")
        path = self.path / f"{name}.nc"
        h5py, xarray = _libraries()
        try:
            # h5netcdf 1.8 prints a second error when it meets a damaged header; touching each one first avoids it.
            with h5py.File(path) as file:
                file.visititems(lambda *_: None)
            return xarray.load_dataset(path, engine="h5netcdf")
        # HDF5 reports damage under several types, according to the structure in which it first shows.
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{path} is truncated or damaged ({_first_line(error)}): run again") from error

    @property
    def flows(self) -> tuple[str, ...]:
        """Names of the flows that are finished, in their order, as the configuration spells them."""
        return tuple(self.summary.get("flows", {}))

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """What came out, per finished flow: result, samples, the numbers of the run, and the compared quantities.

        ``metrics["straight"]["num_steps"]`` is a number of the run; ``metrics["straight"]["cost at the end"]`` is
        ``{"predicted": ..., "measured": ...}``, None where nothing is predicted.
        """
        return {
            name: {
                **{key: value for key, value in flow.items() if key not in ("stats", "comparison")},
                **flow.get("stats", {}),
                **{
                    row["quantity"]: {"predicted": row["predicted"], "measured": row["measured"]}
                    for row in flow.get("comparison", ())
                },
            }
            for name, flow in self.summary.get("flows", {}).items()
        }

    def trajectory(self, flow: str | None = None) -> "xarray.Dataset":
        """Everything saved of a finished flow, over ``time``; ``flow`` may be left out where there is only one.

        Raises
        ------
        RunError
            As :meth:`dataset`, and where ``flow`` is left out and there are none or several.
        """
        if flow is None:
            if len(self.datasets) != 1:
                raise RunError(f"{self.path} has the flows {', '.join(self.flows) or 'none yet'}: name one of them")
            (flow,) = self.datasets
        return self.dataset(dataset_name(flow))

    def params(self, flow: str | None = None, *, like: Any = None, save: int = -1) -> Any:
        """Parameters at a save of a finished flow, NumPy arrays; the last ones unless ``save`` says otherwise.

        Parameters
        ----------
        flow
            As for :meth:`trajectory`.
        like
            A pytree of parameters, such as an Equinox module, whose arrays are replaced and whose other leaves are
            kept. None: dictionaries and tuples, which is what the built-in networks take.
        save
            Index into ``time``.

        Raises
        ------
        RunError
            As :meth:`trajectory`; no parameters there, or an array of ``like`` that has none of its shape.
        """
        dataset = self.trajectory(flow)
        leaves = {
            tuple(json.loads(variable.attrs.get("tree_path", "[]"))): np.asarray(variable.to_numpy()[save])
            for name, variable in dataset.items()
            if "params" in (name, variable.attrs.get("quantity"))
        }
        if not leaves:
            raise RunError(f"{self.path} has no parameters for this flow, only {', '.join(map(str, dataset))}")
        return _nested(leaves) if like is None else _filled(like, leaves)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json``: nested mappings and lists of str, bool, int, float and None.

        Scalars of NumPy and JAX become Python's. Floats keep every bit; those that are not finite, which JSON has no
        word for, are stored as ``{"float": "nan"}``, ``{"float": "inf"}`` or ``{"float": "-inf"}``, and read back as
        floats.

        Raises
        ------
        RunError
            For a value of another type, naming its key: arrays belong into a dataset.
        """
        plain = _plain({"format": FORMAT, **summary}, "")
        if "format" in summary:
            raise RunError("summary: the key 'format' is taken by the format number; choose another")
        text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
        with replacing(self.path / "summary.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def write_dataset(self, name: str, dataset: "xarray.Dataset") -> None:
        """Replace ``NAME.nc``. Equal datasets give equal bytes; dtypes and values are kept, numbers under a checksum.

        A variable's ``encoding["chunksizes"]`` says in which pieces it lies on disk; the library chooses without.

        Raises
        ------
        RunError
            If the name is not letters, digits, ``_``, ``-`` and ``.``, starting with a letter or digit; or for an
            attribute that netCDF cannot hold: it has no Booleans and no None there.
        MissingExtraError
            If h5netcdf or h5py is not installed.
        """
        if not DATASET_NAME.fullmatch(name):
            raise RunError(f"dataset name {name!r}: expected letters, digits, '_', '-' and '.', as in 'straight'")
        _ = _libraries()
        for owner, attributes in (("", dataset.attrs), *((f"{k}.", v.attrs) for k, v in dataset.variables.items())):
            for key, value in attributes.items():
                if isinstance(value, bool) or not isinstance(value, ATTRIBUTES):
                    kind = type(value).__name__
                    raise RunError(f"dataset {name}: attribute {owner}{key} is a {kind}; expected text or a number")
        # HDF5 has checksums for arrays of numbers, not for scalars and text.
        numbers = {
            key: {"fletcher32": True} | {k: v.encoding[k] for k in ("chunksizes",) if k in v.encoding}
            for key, v in dataset.variables.items()
            if v.ndim and v.dtype.kind in "biuf"
        }
        with replacing(self.path / f"{name}.nc") as temporary:
            dataset.to_netcdf(temporary, engine="h5netcdf", encoding=numbers)


def dataset_name(flow: str) -> str:
    """The name of a flow's dataset: what is no letter, digit, ``_``, ``-`` or ``.`` becomes ``-``.

    Examples
    --------
    >>> dataset_name("interpolated(0.5)"), dataset_name("along(my.paths:bent,10)")
    ('interpolated-0.5', 'along-my.paths-bent-10')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", flow).strip("-")


def tree_path(path: Sequence[Any]) -> list[int | str]:
    """The keys of a leaf as JSON can hold them: integers index sequences, strings are keys and attributes.

    Examples
    --------
    >>> import jax
    >>> [tree_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(({"w": 1.0}, 2.0))]
    [[0, 'w'], [1]]
    """
    return [
        part.idx if hasattr(part, "idx") else str(getattr(part, "key", getattr(part, "name", part))) for part in path
    ]


def _nested(leaves: Mapping[tuple[int | str, ...], np.ndarray]) -> Any:
    """Dictionaries and tuples from the paths of their leaves."""
    if set(leaves) == {()}:
        return leaves[()]
    heads = sorted({path[0] for path in leaves}, key=lambda head: (isinstance(head, str), head))
    parts = {head: _nested({path[1:]: leaf for path, leaf in leaves.items() if path[0] == head}) for head in heads}
    return tuple(parts.values()) if heads == list(range(len(heads))) else parts


def _filled(like: Any, leaves: Mapping[tuple[int | str, ...], np.ndarray]) -> Any:
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


def create(path: str | PathLike[str], config: Mapping[str, Any]) -> Run:
    """Make a run folder that holds ``config`` and an empty summary; missing parents are made too.

    Parameters
    ----------
    path
        A path that does not exist yet, or an empty folder; ``~`` is the user's home.
    config
        What :func:`to_toml` takes.

    Raises
    ------
    RunError
        If the path is taken or cannot be written, or for a configuration that TOML cannot hold (nothing is made then).

    Examples
    --------
    >>> import tempfile
    >>> run = create(tempfile.mkdtemp() + "/first", {"seed": 0, "data": {"name": "digits"}})
    >>> run.write_summary({"cost": 1e-12, "result": "successful"})
    >>> again = open_run(run.path)
    >>> again.config, again.summary["cost"], again.datasets
    ({'seed': 0, 'data': {'name': 'digits'}}, 1e-12, ())
    """
    run, text = Run(Path(path).expanduser()), to_toml(config)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if any(run.path.iterdir()):
            raise RunError(f"run folder {run.path} exists and is not empty: give another path, or remove it")
        run.write_summary({})
        with replacing(run.path / "config.toml") as temporary:
            temporary.write_text(text, encoding="utf-8")
    except FileExistsError:
        raise RunError(f"run folder {run.path} exists and is a file: give another path") from None
    except OSError as error:
        raise RunError(f"run folder {run.path} cannot be written ({error.strerror}): give another path") from error
    return run


def open_run(path: str | PathLike[str]) -> Run:
    """The finished, running or killed run in a folder. Reads the configuration and the summary, executes nothing.

    ``run.config`` is what was asked for, ``run.metrics`` what came out in numbers, ``run.trajectory(flow)`` the
    labelled arrays of one flow and ``run.params(flow)`` its parameters at the end. No module it names is imported.

    Raises
    ------
    RunError
        If there is no such folder, it is not a run folder, or its configuration or summary is damaged or too new.
    """
    run = Run(Path(path).expanduser())
    if not run.path.is_dir():
        what = "is not a folder" if run.path.exists() else "does not exist"
        raise RunError(f"run folder {run.path} {what}: expected a folder made by `chordflow run`")
    if not (run.path / "config.toml").is_file():
        raise RunError(f"{run.path} has no config.toml: it is not a run folder, as `chordflow run` makes them")
    _ = run.config, run.summary
    return run


def to_toml(config: Mapping[str, Any]) -> str:
    """TOML text of nested mappings of str, bool, int, float, lists and tuples; ``tomllib.loads`` gives them back.

    Floats keep every bit, infinities and NaN included. Scalars come before tables, otherwise the order is kept.

    Raises
    ------
    RunError
        For a value of another type, None among them, naming its key.

    Examples
    --------
    >>> print(to_toml({"rtol": 1e-08, "data": {"name": "digits", "samples": 200}}), end="")
    rtol = 1e-08
    <BLANKLINE>
    [data]
    name = "digits"
    samples = 200
    """
    return "\n".join(_tables(config, ())).lstrip("\n") + "\n"


def _tables(table: Mapping[Any, Any], keys: tuple[str, ...]) -> list[str]:
    """Lines of a table, then of the tables in it; ``keys`` lead to it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"\n[{'.'.join(_toml_key(key) for key in keys)}]"] if keys else []
    lines += [f"{_toml_key(k)} = {_toml_value(v, (*keys, k))}" for k, v in table.items() if k not in inner]
    for key, value in inner.items():
        lines += _tables(value, (*keys, key))
    return lines


def _toml_key(key: object) -> str:
    """A bare key where TOML allows it."""
    if not isinstance(key, str):
        raise RunError(f"config: keys are strings, got {key!r}")
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_string(text: str) -> str:
    """JSON's escapes are a subset of TOML's; TOML alone forbids a raw DEL, and both half of a surrogate pair."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RunError(f"config: {text!r} is not valid Unicode; expected text that UTF-8 can hold")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: object, keys: tuple[str, ...]) -> str:
    """A value on one line; mappings inside lists become inline tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):  # int and float spelt out: subclasses, as NumPy's, print otherwise
        return float.__repr__(value)
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item, keys) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml_key(k)} = {_toml_value(v, (*keys, k))}' for k, v in value.items())}}}"
    kind = type(value).__name__
    raise RunError(f"config key {'.'.join(keys)}: expected a str, bool, int, float, list or table, got {kind}")


def _plain(value: object, where: str) -> Any:
    """The value as JSON has it; ``where`` is the key path for the error message."""
    if getattr(value, "ndim", None) == 0:  # scalars of NumPy and JAX
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": float.__repr__(value)}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if set(value) == {"float"}:
            raise RunError(f"summary key {where}: a mapping whose one key is 'float' is taken; rename the key")
        for key in value:
            if not isinstance(key, str):
                raise RunError(f"summary key {where}: keys are strings, got {key!r}")
        return {key: _plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    raise RunError(
        f"summary key {where}: expected a str, bool, int, float, None, list or mapping, got {type(value).__name__}; "
        "arrays go into a dataset"
    )


def _from_json(text: str) -> Any:
    """Undo :func:`_plain`; a bare NaN or Infinity, which is not JSON, is an error."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    def revive(mapping: dict[str, Any]) -> Any:
        return float(mapping["float"]) if set(mapping) == {"float"} else mapping

    return json.loads(text, parse_constant=refuse, object_hook=revive)


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The parsed file, with every way of failing told in one line."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"expected a table, got {type(value).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is missing or damaged ({_first_line(error)}): restore it or run again") from error
    return value


def _first_line(error: Exception) -> str:
    """The reason of an error of another library, as one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(reason.splitlines()), "") or type(error).__name__


def _libraries() -> tuple[Any, Any]:
    """The modules h5py and xarray; xarray looks for h5netcdf itself, with a longer message."""
    _ = load_extra("h5netcdf", "datasets")
    return load_extra("h5py", "datasets"), load_extra("xarray", "datasets")
