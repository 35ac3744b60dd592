"""How many seconds does `cf.fit` take to a training cost, and how well does what it fits generalise, beside its peers?

    OPENBLAS_NUM_THREADS=1 python benchmarks/fit.py [SECTION ...] [--data FOLDER] [--smoke] [--out RECORD.json]

Sections: seconds (to cost 1e-6 on diabetes and California housing), test_error (ten splits of four data sets), mnist.
All by default; a section that is run again replaces its part of the record. All methods start from the same parameters,
in float64; seconds are after a first call that compiles. Methods take turns within each seed, so that a busy minute
slows all.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from environment import describe
from fit_data import california, diabetes
from fit_peers import methods

from chordflow.bench import network_problem

RATES = (1e-3, 3e-3, 1e-2)
"""Of optax's Adam; all on the first seed, the best of them on the others."""
TARGET = 1e-6


def standardised(values):
    """Columns of mean 0 and deviation 1."""
    return (values - values.mean(axis=0)) / values.std(axis=0)


def thinned(curve, most=60):
    """At most so many (seconds, cost) of a curve, evenly in the logarithm of the seconds, first and last kept."""
    if len(curve) <= most:
        return curve
    at = np.unique(np.round(np.geomspace(1, len(curve), most)).astype(int) - 1)
    return [curve[i] for i in at]


def seconds_to_target(args):
    """Each method on each data set and seed: seconds, or the cost it had at the limit."""
    num, widths = (40, [8, 8]) if args.smoke else (None, [64, 64])
    sets = {"diabetes": (diabetes(), 12.0, 5)}
    sets |= {"california": (california(args.data), 30.0, 3)} if args.data or not args.smoke else {}
    return [
        one_data_set(name, standardised(x[:num]), standardised(y[:num]), widths, args, limit, seeds)
        for name, ((x, y), limit, seeds) in sets.items()
    ]


def one_data_set(name, inputs, targets, widths, args, limit, seeds):
    """All methods on one data set."""
    limit, seeds, target = (1.0, 1, 1e-2) if args.smoke else (limit, seeds, TARGET)
    problem, first = network_problem(inputs, targets, widths, 0)
    runs = methods(problem, first, inputs, targets, widths, RATES)
    rows, curves = [], {}
    for seed in range(seeds):
        params = network_problem(inputs, targets, widths, seed)[1]
        for method, run in list(runs.items()):
            it = run(params, target=target, seconds=limit)
            row = {"method": method, "seed": seed} | {
                key: getattr(it, key) for key in ("seconds", "reached", "cost", "steps", "first_call")
            }
            rows.append(row | {"load": os.getloadavg()[0]})
            print(name, rows[-1], flush=True)
            if seed == 0:
                curves[method] = thinned(it.curve)
        if seed == 0:
            runs = {method: run for method, run in runs.items() if method not in worse_rates(rows)}
    summary = {method: quantiles([row for row in rows if row["method"] == method]) for method in runs}
    peers = {m: s["seconds"]["median"] for m, s in summary.items() if m != "cf.fit" and s["reached"]}
    best = min(peers, key=peers.__getitem__) if peers else None
    own = summary["cf.fit"]["seconds"]["median"]
    return {
        "data": name,
        "samples": len(inputs),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(first)),
        "widths": widths,
        "target": target,
        "limit_seconds": limit,
        "summary": summary,
        "best_peer": best,
        "times_faster_than_the_best_peer": peers[best] / own if best else None,
        "runs": rows,
        "curves_of_seed_0": curves,
    }


def worse_rates(rows):
    """The learning rates of Adam that are not the best: reached sooner, or a lower cost."""
    adam = [row for row in rows if row["method"].startswith("optax Adam")]
    adam.sort(key=lambda row: (not row["reached"], row["seconds"] if row["reached"] else row["cost"]))
    return [row["method"] for row in adam[1:]]


def quantiles(rows):
    """Lowest, median and highest of seconds and costs over seeds; how many reached the target."""
    out: dict[str, Any] = {"seeds": len(rows), "reached": sum(row["reached"] for row in rows)}
    for key in ("seconds", "cost", "steps"):
        values = sorted(row[key] for row in rows)
        out[key] = {"min": values[0], "median": statistics.median(values), "max": values[-1]}
    return out


def sections():
    """Section → function of the arguments."""
    import fit_generalise

    return {"seconds": seconds_to_target, "test_error": fit_generalise.test_errors, "mnist": fit_generalise.mnist}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="seconds, test_error, mnist (default: all)")
    parser.add_argument("--data", type=Path, default=os.environ.get("CHORDFLOW_DATA"), help="or CHORDFLOW_DATA")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, help="where the JSON record goes (default: standard output)")
    parser.add_argument("--sets", nargs="+", help="of test_error: diabetes, california, 'digits regression', ...")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds per method and seed on MNIST")
    args = parser.parse_args()
    known = sections()
    if unknown := [name for name in args.sections if name not in known]:
        parser.error(f"sections: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    jax.config.update("jax_enable_x64", True)
    record: dict[str, Any] = (
        json.loads(args.out.read_text()) if args.out and args.out.exists() else {"benchmark": "fit"}
    )
    for name in args.sections or known:
        start, load = time.time(), os.getloadavg()[0]
        try:
            results = known[name](args)
        except ValueError as error:
            parser.error(str(error))
        environment = describe() | {"load_at_start": load, "seconds": round(time.time() - start), "dtype": "float64"}
        record[name] = {"environment": environment, "results": results}
        if args.out:  # after each section: the next may be cut short
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
    if not args.out:
        print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
