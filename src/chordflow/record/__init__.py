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

from chordflow.record.datasets import dataset_name, tree_path
from chordflow.record.errors import RunError
from chordflow.record.folder import FORMAT, Run, create, open_run
from chordflow.record.text import to_toml

__all__ = ["FORMAT", "Run", "RunError", "create", "dataset_name", "open_run", "to_toml", "tree_path"]
