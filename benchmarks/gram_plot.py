"""Draw time and memory of the Gram engine from its record: `python benchmarks/gram_plot.py RECORD.json FIGURE.png`."""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

LABELS = {"gram": "cf.gram", "dense": "vmap(jacrev), then J Jᵀ"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    rows = json.loads(args.record.read_text(encoding="utf-8"))["curves"]
    fig, axes = plt.subplots(2, 2, figsize=(8, 5.5), sharex="col", layout="constrained")
    for column, axis in enumerate(("width", "samples")):
        chosen = [row for row in rows if row["axis"] == axis]
        x = [row["width" if axis == "width" else "num_samples"] for row in chosen]
        for name, label in LABELS.items():
            axes[0, column].loglog(x, [row["seconds"][name]["median"] for row in chosen], "o-", label=label)
            axes[1, column].loglog(x, [row["peak_bytes"][name] / 2**20 for row in chosen], "o-", label=label)
        axes[1, column].set_xticks(x, [str(value) for value in x])
        axes[1, column].minorticks_off()
        other = f"N = {chosen[0]['num_samples']}" if axis == "width" else f"width {chosen[0]['width']}"
        axes[0, column].set_title(f"10-w-w-w-1 tanh network, {other}", fontsize=10)
        axes[1, column].set_xlabel("width w" if axis == "width" else "samples N")
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory / MiB")
    axes[0, 0].legend(frameon=False)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
