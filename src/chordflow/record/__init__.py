"""Run folders: the bytes and labels of a run, and nothing that computes.

=====================  ================================================================================================
``config.toml``        what was asked for; ``chordflow run config.toml`` asks for it again
``environment.json``   what it was asked with: versions, device, dtype, seed, state of git; what differed on a resume
``summary.json``       what came out, as numbers and words, and the version of this format; floats are exact
``metrics.jsonl``      how it goes, a JSON object a line for each stride of each flow, while the run goes on
``NAME.nc``            labelled arrays (netCDF 4), one file per flow; ``xarray.open_dataset`` reads them
``NAME.{png,svg}``     figures
``verification.json``  outcomes of ``chordflow verify`` on the problem of the run, if that was called
``report.html``        the page of ``chordflow report``, if that was called; made again from the rest, so without a sum
``*.damaged``          what ``chordflow resume`` found truncated or altered, and set aside
``SHA256SUMS``         sums of all files that stay as they are, and of the list itself: ``sha256sum -c SHA256SUMS``
``segments/NAME/``     while a flow goes on: ``000000.nc``, ..., what was saved since the last segment, never changed
``checkpoints/NAME/``  while a flow goes on: its last two places, by orbax, from each of which it can go on
=====================  ================================================================================================

Durations live only in a variable ``seconds`` of a dataset, and in the stream of metrics: everything else is the same
for the same run on the same machine, byte for byte.

A folder is a run folder once it has ``config.toml``, which is written first, so a running or a killed run opens like
a finished one. Every file is replaced as a whole and is on disk before the next is written, the stream alone is
appended to. What is not in ``SHA256SUMS`` does not count yet: segment, checkpoint and sums are written in this order,
then a dataset, the summary and sums, so that a process killed between any two leaves what it had before. The run is
finished once the summary itself is in the list, and with it what changed until then: metrics and verification.
``config.toml`` is locked (flock) by the process that writes. Reading executes nothing.

In format 2 the list ended without its own sum, the comment in its last line, and metrics and verification were not in
it; it is read, and resumed as format 3. Format 1 had no more than configuration, summary, datasets and figures; it is
read, but not resumed.
"""

from chordflow.record.datasets import dataset_name
from chordflow.record.errors import RunError, RunningError, StorageError
from chordflow.record.folder import FORMAT, Run, clear, create, creating, open_run, remove_run
from chordflow.record.stream import as_line
from chordflow.record.text import to_toml

__all__ = [
    "FORMAT",
    "Run",
    "RunError",
    "RunningError",
    "StorageError",
    "as_line",
    "clear",
    "create",
    "creating",
    "dataset_name",
    "open_run",
    "remove_run",
    "to_toml",
]
