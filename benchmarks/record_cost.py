"""What does it cost to keep a run? The share of its time that goes into metrics, segments, checkpoints, sums, datasets.

Run as ``python benchmarks/record_cost.py [--smoke] [--out FILE] [key=value ...]``: the default run of ``chordflow run``
unless words say otherwise; the record is JSON with the environment beside it. Two answers:

* ``share``: time inside whatever keeps the run, over the time of the run. Both are of the same seconds, so that a busy
  machine does not change it much.
* ``in_strides_over_one_piece``, with ``--flow NAME``: a flow in strides with everything kept, over the same flow as one
  compiled call that keeps nothing; both compiled before, and in turns. It contains what strides cost inside the
  compiled program.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import jax
from environment import write_record

import chordflow as cf
from chordflow import experiment, record, recording
from chordflow.config import Config, load_config
from chordflow.interruption import Request
from chordflow.setting import Setting

SMOKE = ["data.samples=6", "data.stiff_samples=4", "model.widths=8", "saves=5", "flows=straight,standard"]
TURNS = 2

Seconds = dict[str, float]


def timed(owner: Any, name: str, spent: Seconds, key: str) -> None:
    """Add what calls of a function or method take to ``spent[key]``."""
    inner: Callable[..., Any] = getattr(owner, name)

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[key] += time.perf_counter() - start

    setattr(owner, name, outer)


def watch_the_run() -> Seconds:
    """Seconds by what they are spent in, filled while a run goes on in this process."""
    spent: Seconds = defaultdict(float)
    timed(record.Run, "write_dataset", spent, "datasets")
    timed(record.Run, "write_summary", spent, "summary")
    timed(record.Run, "seal", spent, "sums")
    timed(record, "create", spent, "folder")
    recorder: Any = recording.Recorder
    timed(recorder, "begin", spent, "beginning")
    timed(recorder, "_keep", spent, "checkpoints")
    timed(recorder, "_advance", spent, "metrics")
    timed(recorder, "_ask_dimension", spent, "effective dimension")
    timed(recorder, "integrate", spent, "integrate")
    timed(recording.Course, "stride", spent, "strides")
    return spent


KEPT = (
    *("datasets", "summary", "sums", "folder", "beginning"),
    *("checkpoints", "metrics", "effective dimension"),
)


def share(config: Config) -> dict[str, Any]:
    """One run, and where its time went."""
    spent = watch_the_run()
    start = time.perf_counter()
    path = experiment.run(config, say=lambda line: print(line, flush=True))
    total = time.perf_counter() - start
    run = cf.open_run(path)
    kept = {key: spent[key] for key in KEPT}
    size = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return {
        "flows": list(run.flows),
        "seconds": total,
        "seconds_in_strides": spent["strides"],
        "seconds_keeping": kept,
        "share": sum(kept.values()) / total,
        "lines_of_metrics": len(run.progress),
        "bytes": size,
    }


def in_strides_over_one_piece(config: Config, flow: str) -> dict[str, Any]:
    """Seconds of one flow both ways, in turns; the least of each counts."""
    setting = Setting.build(config)
    plan, saves = setting.plan(flow), recording.saves_of(setting)
    options: dict[str, Any] = {"clock": plan.clock, "rtol": config.rtol, "max_steps": config.max_steps, "save": saves}

    def one_piece() -> None:
        ts = recording.save_times(plan, config.saves)
        jax.block_until_ready(cf.evolve(plan.problem, setting.params, plan.flow, ts=ts, throw=False, **options))

    def in_strides() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = record.create(Path(folder) / "run", config.to_dict())
            recorder = recording.Recorder(setting, plan, saves, run, (), Request())
            recorder.begin()
            recorder.integrate()

    seconds: dict[str, list[float]] = {"one_piece": [], "in_strides": []}
    for turn in range(TURNS + 1):
        for name, way in (("one_piece", one_piece), ("in_strides", in_strides)):
            start = time.perf_counter()
            way()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    ratio = min(seconds["in_strides"]) / min(seconds["one_piece"])
    return {"flow": flow, "seconds": seconds, "ratio": ratio}


def main() -> None:
    """Measure and write the record."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for chordflow run")
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    parser.add_argument("--flow", help="a flow to run both ways, several times")
    parser.add_argument("--out", default="benchmarks/records/record_cost.json")
    arguments = parser.parse_args()
    words = [*(SMOKE if arguments.smoke else ()), *arguments.words]
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [*words, f"out={folder}/run"])
        compared = None if arguments.flow is None else in_strides_over_one_piece(config, arguments.flow)
        results = share(config)
    results |= {"words": words, "in_strides_over_one_piece": compared}
    print(f"keeping took {100 * results['share']:.2f} % of the run")
    if compared is not None:
        print(f"{compared['flow']}: in strides {compared['ratio']:.3f} times one piece")
    write_record(arguments.out, "record_cost", results)


if __name__ == "__main__":
    main()
