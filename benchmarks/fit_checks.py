"""How long do scikit-learn's own checks of the estimators take, and how long `chordflow bench`?

Each in a process of its own, compilation and imports included; one that fails ends the benchmark.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import parts

CHECK = """import warnings; from sklearn.utils.estimator_checks import check_estimator
from chordflow.sklearn import {0}
warnings.simplefilter("ignore")
check_estimator({0}())"""
COMMANDS = {
    "check_estimator(ChordRegressor())": ["-c", CHECK.format("ChordRegressor")],
    "check_estimator(ChordClassifier())": ["-c", CHECK.format("ChordClassifier")],
    "chordflow bench": ["-m", "chordflow", "bench"],
}
SMALL = ["seeds=1", "samples=12", "width=4", "target=0.1", "points=0"]


def checks(options: argparse.Namespace) -> Iterator[parts.Row]:
    """Seconds of each; with ``--smoke`` only a tiny `chordflow bench`."""
    for name in options.methods:
        words = COMMANDS[name]
        if options.smoke:
            if name != "chordflow bench":
                continue
            words = [*words, *SMALL]
        start = time.perf_counter()
        # Two of scikit-learn's checks are skipped where SciPy does not take other arrays.
        environment = os.environ | {"SCIPY_ARRAY_API": "1"}
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
        yield {"method": name, "seed": 0, "seconds": time.perf_counter() - start}


def seconds(rows: list[parts.Row]) -> dict[str, Any]:
    """What was run → seconds and the load of the machine."""
    return {row["method"]: {"seconds": row["seconds"], "load": row["load"]} for row in rows}
