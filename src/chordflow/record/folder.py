"""The run folder itself: made, opened, read and written."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.files import replacing
from chordflow.record.datasets import DATASET_NAME, dataset_name, filled, nested, read_dataset, write_dataset
from chordflow.record.errors import RunError
from chordflow.record.text import from_json, plain, read, to_toml

if TYPE_CHECKING:
    import xarray

FORMAT = 1
"""Version of the layout of a run folder, kept in ``summary.json``; a reader refuses a newer one."""


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
        return read(self.path / "config.toml", tomllib.loads)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary as written by :meth:`write_summary`; empty until then.

        Raises
        ------
        RunError
            If ``summary.json`` is missing, damaged, or of a newer format than this version reads.
        """
        path = self.path / "summary.json"
        summary = read(path, from_json)
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
        return read_dataset(self.path / f"{name}.nc")

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
        return nested(leaves) if like is None else filled(like, leaves)

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
        values = plain({"format": FORMAT, **summary}, "")
        if "format" in summary:
            raise RunError("summary: the key 'format' is taken by the format number; choose another")
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
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
        write_dataset(self.path / f"{name}.nc", dataset)


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
