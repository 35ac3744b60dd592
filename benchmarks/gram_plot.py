"""Draw time and memory of the Gram engine from its record: `python benchmarks/gram_plot.py RECORD.json FIGURE.png`."""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, told apart by people who see fewer, with a dash and a marker of their own for print.
STYLES = {
    "gram": {"label": "cf.gram", "color": "#0072B2", "linestyle": "-", "marker": "o"},
    "per_leaf": {"label": "vmap(jacrev), each leaf", "color": "#E69F00", "linestyle": "--", "marker": "s"},
    "dense": {"label": "vmap(jacrev), then J Jᵀ", "color": "#D55E00", "linestyle": ":", "marker": "^"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    rows = json.loads(args.record.read_text(encoding="utf-8"))["curves"]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    fig, axes = plt.subplots(2, 2, figsize=(9, 6.2), sharex="col", sharey="row", layout="constrained")
    for column, axis in enumerate(("width", "samples")):
        chosen = [row for row in rows if row["axis"] == axis]
        x = [row["width" if axis == "width" else "num_samples"] for row in chosen]
        for name, style in STYLES.items():
            times = [row["seconds"][name]["median"] for row in chosen]
            peaks = [row["peak_bytes"][name] / 2**20 for row in chosen]
            for row, values in enumerate((times, peaks)):
                axes[row, column].loglog(x, values, lw=2, ms=6, **style)
        for row, key in enumerate(("seconds", "peak_bytes")):
            mark(axes[row, column], x[-1], chosen[-1][key])
            axes[row, column].grid(color="#DDDDDD", lw=0.6)
        axes[1, column].set_xticks(x, [str(value) for value in x])
        axes[1, column].minorticks_off()
        axes[1, column].set_xlim(x[0] / 1.15, x[-1] * 1.7)
        other = f"N = {chosen[0]['num_samples']} samples" if axis == "width" else f"width w = {chosen[0]['width']}"
        axes[0, column].set_title(f"10-w-w-w-1 tanh network, {other}", fontsize=11)
        axes[1, column].set_xlabel("width w" if axis == "width" else "samples N")
    axes[0, 0].set_ylabel("time / s")
    axes[1, 0].set_ylabel("peak memory / MiB")
    axes[0, 0].legend(frameon=False, loc="upper left")
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.figure, dpi=120)


def mark(ax, x, values):
    """How many times less the engine takes than the better of the others, at the last point."""
    own, other = (v["median"] if isinstance(v, dict) else v / 2**20 for v in (values["gram"], best(values)))
    ax.annotate("", (x * 1.16, own), (x * 1.16, other), arrowprops={"arrowstyle": "<->", "color": "#555555", "lw": 1})
    ax.text(x * 1.22, (own * other) ** 0.5, f"{other / own:.0f}×", color="#333333", va="center")


def best(values):
    """The better of the two rivals."""
    return min((values["dense"], values["per_leaf"]), key=lambda v: v["median"] if isinstance(v, dict) else v)


if __name__ == "__main__":
    main()
