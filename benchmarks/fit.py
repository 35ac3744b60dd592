"""How many seconds does `cf.fit` take to a training cost, and how well does what it fits generalise, beside its peers?

    OPENBLAS_NUM_THREADS=1 python benchmarks/fit.py [SECTION ...] [--data FOLDER] [--seeds 0-4] [--out PART.json]
    python benchmarks/merge.py PART.json ...

Sections: seconds (to cost 1e-6 on diabetes and California housing), test_error (ten splits of four data sets), mnist,
checks (how long scikit-learn's own checks and `chordflow bench` take).
All methods start from the same parameters; seconds are after a first call that compiles. Methods take turns within each
seed, so that a busy minute slows all. All of it takes an hour and a half on two cores; pieces of some sections, data
sets, seeds (splits of test_error) and methods are merged to the same record.
"""

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fit_checks
import fit_generalise
import jax
import numpy as np
import parts
from fit_data import california, diabetes
from fit_peers import methods

from chordflow.bench import network_problem

RATES = (1e-3, 3e-3, 1e-2)
"""Of optax's Adam; the one that is best over all seeds is compared."""
LIMITS = {"diabetes": 12.0, "california": 30.0}
"""Seconds of a run."""
NAMES = (
    "cf.fit",
    *(f"optax Adam {rate:g}" for rate in RATES),
    *("optax L-BFGS", "scipy L-BFGS-B", "optimistix LM (QR)", "optimistix LM (LSMR)"),
    *("scikit-learn adam", "scikit-learn lbfgs"),
)
SEEDS = {"diabetes": 5, "california": 3}


def standardised(values):
    """Columns of mean 0 and deviation 1."""
    return (values - values.mean(axis=0)) / values.std(axis=0)


def thinned(curve, most=60):
    """At most so many (seconds, cost) of a curve, evenly in the logarithm of the seconds, first and last kept."""
    if len(curve) <= most:
        return curve
    at = np.unique(np.round(np.geomspace(1, len(curve), most)).astype(int) - 1)
    return [curve[i] for i in at]


def seconds_to_target(options: argparse.Namespace) -> Iterator[parts.Row]:
    """Each method on each data set and seed: seconds, or the cost it had at the limit."""
    num, widths, target = (40, [8, 8], 1e-2) if options.smoke else (None, [64, 64], 1e-6)
    for name in wanted(options, SEEDS):
        x, y = diabetes() if name == "diabetes" else california(options.data)
        inputs, targets = standardised(x[:num]), standardised(y[:num])
        limit = options.limit or (1.0 if options.smoke else LIMITS[name])
        problem, first = network_problem(inputs, targets, widths, 0)
        runs = methods(problem, first, inputs, targets, widths, RATES)
        about = {"samples": len(inputs), "parameters": sum(leaf.size for leaf in jax.tree.leaves(first))}
        about |= {"data": name, "widths": widths, "target": target, "limit_seconds": limit}
        for seed in [seed for seed in options.seeds if seed < SEEDS[name]]:
            params = network_problem(inputs, targets, widths, seed)[1]
            for method in options.methods:
                it = runs[method](params, target=target, seconds=limit)
                keys = ("seconds", "reached", "cost", "steps", "first_call")
                row = about | {"method": method, "seed": seed} | {key: getattr(it, key) for key in keys}
                yield row | ({"curve": thinned(it.curve)} if seed == 0 else {})


def wanted(options, known):
    """The data sets of a section that are asked for."""
    return [name for name in known if not options.sets or name in options.sets]


def needs(options):
    """California housing, where it is asked for."""
    if "california" in wanted(options, SEEDS):
        california(options.data, num=1)


def seconds_by_data(rows: list[parts.Row]) -> list[dict[str, Any]]:
    """One table per data set."""
    names = [name for name in SEEDS if any(row["data"] == name for row in rows)]
    return [one_data_set([row for row in rows if row["data"] == name]) for name in names]


def one_data_set(rows: list[parts.Row]) -> dict[str, Any]:
    """Quantiles of all methods on one data set, and how many times faster ours is than the best of the others."""
    worse = worse_rates(rows)
    names = [name for name in NAMES if name not in worse and any(row["method"] == name for row in rows)]
    summary = {name: quantiles([row for row in rows if row["method"] == name]) for name in names}
    peers = {m: s["seconds"]["median"] for m, s in summary.items() if m != "cf.fit" and s["reached"]}
    best = min(peers, key=peers.__getitem__) if peers else None
    shared = ("data", "samples", "parameters", "widths", "target", "limit_seconds")
    return {
        **{key: rows[0][key] for key in shared},
        "summary": summary,
        "best_peer": best,
        "times_faster_than_the_best_peer": (
            peers[best] / summary["cf.fit"]["seconds"]["median"] if best and "cf.fit" in summary else None
        ),
        "runs": [{key: value for key, value in row.items() if key not in (*shared, "curve")} for row in rows],
        "curves_of_seed_0": {
            row["method"]: row["curve"] for row in rows if row["seed"] == 0 and row["method"] in names
        },
    }


def worse_rates(rows: list[parts.Row]) -> list[str]:
    """The learning rates of Adam but the best: more seeds at the target, then fewer seconds, then a lower cost."""
    adam = [name for name in NAMES if name.startswith("optax Adam") and any(row["method"] == name for row in rows)]
    found = {name: quantiles([row for row in rows if row["method"] == name]) for name in adam}
    adam.sort(key=lambda name: (-found[name]["reached"], *(found[name][key]["median"] for key in ("seconds", "cost"))))
    return adam[1:]


def quantiles(rows):
    """Lowest, median and highest of seconds and costs over seeds; how many reached the target."""
    out: dict[str, Any] = {"seeds": len(rows), "reached": sum(row["reached"] for row in rows)}
    for key in ("seconds", "cost", "steps"):
        values = sorted(row[key] for row in rows)
        out[key] = {"min": values[0], "median": statistics.median(values), "max": values[-1]}
    return out


SECTIONS = {
    "seconds": parts.Section(seconds_to_target, seconds_by_data, range(5), NAMES, check=needs),
    "test_error": parts.Section(
        fit_generalise.test_errors,
        fit_generalise.errors_by_data,
        range(10),
        fit_generalise.ESTIMATORS,
        check=fit_generalise.needs_california,
    ),
    "mnist": parts.Section(
        fit_generalise.mnist,
        fit_generalise.mnist_results,
        range(2),
        fit_generalise.MNIST_METHODS,
        dtype="float32",
        check=fit_generalise.needs_mnist,
    ),
    "checks": parts.Section(fit_checks.checks, fit_checks.seconds, range(1), tuple(fit_checks.COMMANDS)),
}


def main(words: list[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = parts.parser(__doc__, SECTIONS)
    parser.add_argument("--data", type=Path, default=os.environ.get("CHORDFLOW_DATA"), help="or CHORDFLOW_DATA")
    parser.add_argument("--sets", nargs="+", help="data sets: diabetes, california, 'digits regression', ...")
    parser.add_argument("--limit", type=float, help="seconds of a run (default: 12 and 30; on MNIST 480 and 120)")
    jax.config.update("jax_enable_x64", True)
    parts.run("fit", SECTIONS, parser, words)


if __name__ == "__main__":
    main()
