"""Draw cost against seconds of `cf.fit` and its peers: `python benchmarks/fit_plot.py RECORD.json FIGURE.png`."""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, with a dash of their own for print and for people who see fewer.
STYLES = {
    "cf.fit": ("#0072B2", "-", 2.8),
    "optax Adam": ("#E69F00", "--", 1.8),
    "optax L-BFGS": ("#009E73", "-.", 1.8),
    "scipy L-BFGS-B": ("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), 1.8),
    "optimistix LM (LSMR)": ("#CC79A7", (0, (1, 1)), 2.2),
    "optimistix LM (QR)": ("#000000", (0, (1, 3)), 1.8),
    "scikit-learn adam": ("#D55E00", (0, (8, 3)), 1.8),
    "scikit-learn lbfgs": ("#7F7F7F", (0, (3, 1, 1, 1)), 1.8),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    sets = json.loads(args.record.read_text(encoding="utf-8"))["seconds"]["results"]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    fig, axes = plt.subplots(1, len(sets), figsize=(5.2 * len(sets), 4.6), sharey=True, layout="constrained")
    for ax, data in zip([axes] if len(sets) == 1 else axes, sets, strict=True):
        for name, (color, dash, width) in STYLES.items():
            method = next((m for m in data["summary"] if m.startswith(name)), None)
            if method is None:
                continue
            seconds, lowest = lower_envelope(data["curves_of_seed_0"][method])
            ax.loglog(seconds, lowest, color=color, linestyle=dash, lw=width, label=method)
            ax.plot(seconds[-1], lowest[-1], "o" if lowest[-1] <= data["target"] else "x", color=color, ms=6)
        ax.axhline(data["target"], color="#999999", lw=0.8)
        ax.set_title(f"{data['data']}, {data['samples']} samples, {data['parameters']} parameters", fontsize=11)
        ax.set_xlabel("seconds, compilation apart")
        ax.grid(color="#DDDDDD", lw=0.6)
        ax.set_ylim(0.2 * data["target"], 1)
    fig.axes[0].set_ylabel("training cost")
    fig.legend(*fig.axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.figure, dpi=120)


def lower_envelope(curve):
    """Seconds and the lowest cost until then; Adam's cost jumps up and down."""
    seconds, lowest, least = [], [], float("inf")
    for at, cost in curve:
        least = min(least, cost)
        seconds.append(at)
        lowest.append(least)
    return seconds, lowest


if __name__ == "__main__":
    main()
