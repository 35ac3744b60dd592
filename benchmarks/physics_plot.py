"""Draw L² error against seconds on four equations: `python benchmarks/physics_plot.py RECORDS_FOLDER FIGURE.png`."""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, with a dash of their own for print and for people who see fewer.
STYLES = {
    "cf.fit": ("#0072B2", "-", 2.0),
    "cf.fit, drawn points": ("#0072B2", (0, (4, 1)), 1.4),
    "energy natural gradient": ("#000000", (0, (1, 2)), 1.4),
    "optimistix Levenberg–Marquardt": ("#CC79A7", (0, (1, 1)), 1.6),
    "scipy BFGS": ("#009E73", "-.", 1.4),
    "scipy L-BFGS": ("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), 1.4),
    "optax Adam": ("#E69F00", "--", 1.4),
}
EQUATIONS = {
    "poisson_2d": ("Poisson in 2 dimensions, 129 parameters", 1e-6),
    "heat": ("Heat, 257 parameters", 1e-6),
    "burgers": ("Burgers, 3441 parameters", None),
    "poisson_5d": ("Poisson in 5 dimensions, 10 065 parameters", 1e-4),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    plt.rcParams.update({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False})
    fig, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
    handles = {}
    for ax, (name, (title, goal)) in zip(axes.flat, EQUATIONS.items(), strict=True):
        path = args.records / f"physics_{name}.json"
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        for method, (color, dash, width) in STYLES.items():
            if method not in results:
                continue
            for curve in results[method]["curves"]:
                seconds, errors = zip(*[(s, e) for _, s, e in curve if s > 0 and e < 1e3], strict=True)
                (line,) = ax.loglog(seconds, errors, color=color, linestyle=dash, lw=width, alpha=0.85)
                handles.setdefault(method, line)
        if goal is not None:
            ax.axhline(goal, color="#999999", lw=0.8)
        ax.set_title(title, fontsize=10.5, loc="left")
        ax.grid(color="#E4E4E4", lw=0.6)
    for ax in axes[1]:
        ax.set_xlabel("seconds, compilation apart")
    for ax in axes[:, 0]:
        ax.set_ylabel("L² error")
    fig.legend(handles.values(), handles.keys(), frameon=False, loc="outside lower center", ncols=3)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
