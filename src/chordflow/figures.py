"""Figures from plain arrays: outputs in a plane with their chord, cost on both clocks, spectra, deviations.

Every function returns a ``matplotlib.figure.Figure`` and leaves matplotlib's state alone: nothing pops up or needs
closing. Colours are those of Okabe and Ito, which readers with any colour vision tell apart; line style and marker say
the same again in print. A flow has the same look in every figure: the named flows by their names, others in the order
given.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from chordflow.extras import load_extra
from chordflow.files import replacing
from chordflow.projection import Path, Points, finite, principal_plane

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Float[np.ndarray, " _T"], Float[np.ndarray, " _T"]]
"""Abscissae and values of one line."""

INK, GREY, FAINT = "#222222", "#6E6E6E", "#D0D0D0"

RC = {
    "font.size": 9.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": GREY,
    "axes.labelsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "figure.facecolor": "white",
    "svg.hashsalt": "chordflow",  # equal figures are equal bytes
}
DAMPING: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1.5)), "linewidth": 1.3, "zorder": 4}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Look:
    """How one flow is drawn."""

    colour: str
    dashes: Any
    marker: str


LOOKS = {
    "straight": Look("#0072B2", "-", "o"),
    "adapted": Look("#D55E00", (0, (6, 2)), "s"),
    "standard": Look("#CC79A7", (0, (1, 1.2)), "D"),
    "interpolated": Look("#009E73", (0, (6, 1.5, 1, 1.5)), "^"),
    "along": Look("#56B4E9", (0, (9, 2)), "v"),
}
OTHER_LOOKS = (
    Look("#E69F00", (0, (3, 1.5)), "P"),
    Look("#000000", (0, (3, 1, 1, 1, 1, 1)), "X"),
    *LOOKS.values(),
    # The same colours once more under other markers: families of more than seven flows.
    *(Look(look.colour, (0, (2, 1)), marker) for look, marker in zip(LOOKS.values(), "<>ph*", strict=True)),
)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """One look per name: a named flow ("interpolated(0.5)" too) has its own, others take what is free in order.

    Examples
    --------
    >>> looks(["mine", "straight"])["straight"] == LOOKS["straight"]
    True
    """
    chosen: dict[str, Look] = {}
    others = []
    for name in names:
        look = LOOKS.get(name.split("(")[0].split(" ")[0])
        if look is None or look in chosen.values():
            others.append(name)
        else:
            chosen[name] = look
    free = [look for look in OTHER_LOOKS if look not in chosen.values()]
    repeated = {name: free[i % len(free)] for i, name in enumerate(others)}
    return {**chosen, **repeated}


def output_plane(trajectories: Mapping[str, Path], chord: tuple[Points, Points]) -> "Figure":
    """Draw the outputs of all flows in one principal plane with the chord from x(0) to the labels y.

    Parameters and errors are those of :func:`chordflow.projection.principal_plane`. The legend says how far each flow
    leaves the chord in all n dimensions. Both axes have the chord's length as their unit; they have the same scale
    unless the picture would then be flatter than 1 : 5, and the vertical one says so where it is stretched.

    Examples
    --------
    >>> figure = output_plane({"straight": np.linspace(0, 1, 5)[:, None] * np.ones(3)}, (np.zeros(3), np.ones(3)))
    >>> figure.axes[0].get_legend().get_texts()[0].get_text()
    'straight: on the chord to rounding'
    """
    plane = principal_plane(trajectories, chord)
    heights = np.concatenate([[0.0], *(points[:, 1] for points in plane.points.values())])
    stretched = np.ptp(heights) < 0.2
    with _axes(6.4, 4.6, 1, "Outputs of all flows in the plane of the chord") as (figure, (ax,)):
        ax.plot([0, 1 if plane.length else 0], [0, 0], color=FAINT, linewidth=6, solid_capstyle="round", zorder=1)
        for i, (name, look) in enumerate(looks(plane.points).items()):
            off = plane.off[name]
            label = f"{name}: {f'up to {_number(off)} off the chord' if off else 'on the chord to rounding'}"
            _line(ax, plane.points[name].T, look, i, linestyle=look.dashes, label=label)
        ends = [("x(0)", 0.0, "o", 7), ("y", 1.0, "*", 13)] if plane.length else [("x(0) = y", 0.0, "*", 13)]
        for text, x, marker, size in ends:
            ax.plot(x, 0, marker, color=INK, markersize=size, markerfacecolor="white", zorder=5)
            ax.annotate(text, (x, 0), (0, -9), textcoords="offset points", ha="center", va="top", style="italic")
        along = "along the chord, in units of |y − x(0)|" if plane.length else "first principal direction of x − x(0)"
        across = "across the chord" if plane.length else "second principal direction"
        ax.set_xlabel(along)
        ax.set_ylabel(f"{across}, same unit{', stretched' if stretched else ''}")
        ax.margins(0.06, 0.16)
        if not heights.any():
            ax.set_ylim(-0.05, 0.05)
        ax.set_aspect("auto" if stretched else "equal", adjustable="datalim")
        shown = f"Across: the principal direction of all deviations, {plane.share:.0%} of their squares"
        ax.set_title(shown if heights.any() else "No flow leaves the chord")
        ax.legend(loc="best")
    return figure


def cost_curves(curves: Mapping[str, Curve], n: float, *, predictions: Mapping[str, Curve] | None = None) -> "Figure":
    """Draw the cost above its minimum, C − C_min, on both clocks: s of gradient flow, and t = 1 − e^(−s/N).

    Parameters
    ----------
    curves
        For each flow its times s, (T,), and C − C_min, (T,). The end t = 1 of a straight flow is s = ∞, which the panel
        of t has a place for.
    n
        N of the clock s = −N ln(1 − t) (2.51): the total sample weight.
    predictions
        The same for predicted curves, dashed in the colour of the flow of that name.

    Raises
    ------
    ValueError
        If there is no curve, n is not positive, times are NaN or negative, shapes disagree, or a cost is not finite.

    Notes
    -----
    A logarithmic axis has no place for values at or below 0, which rounding makes of a cost at its minimum. The
    subtitle says how many there are.

    Examples
    --------
    >>> s = np.linspace(0.0, 30.0, 16)
    >>> figure = cost_curves({"adapted": (s, np.exp(-2 * s / 10))}, 10.0)
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['gradient-flow time s / N', 'clock time t = 1 − exp(−s/N)']
    """
    if not n > 0:
        raise ValueError(f"cost_curves: n must be positive, the total sample weight N of s = −N ln(1 − t), got {n}")
    if not curves:
        raise ValueError("cost_curves: no curve; expected a mapping of names to pairs (s, C − C_min)")
    measured = {name: _timed(name, curve) for name, curve in curves.items()}
    predicted = {name: _timed(name, curve) for name, curve in (predictions or {}).items()}
    styles = looks([*measured, *(name for name in predicted if name not in measured)])
    with _axes(8.2, 3.9, 2, "Cost above its minimum on both clocks", sharey=True) as (figure, axes):
        drawn, note = _ordinate(axes[0], [c for _, c in measured.values()], [c for _, c in predicted.values()])
        for ax, clock in ((axes[0], lambda s: s / n), (axes[1], lambda s: -np.expm1(-s / n))):
            for name, (s, cost) in predicted.items():
                _prediction(ax, clock(s), drawn(cost), styles[name].colour)
            for i, (name, (s, cost)) in enumerate(measured.items()):
                _line(ax, (clock(s), drawn(cost)), styles[name], i, label=name)
        if predicted:
            _prediction(axes[0], [], [], GREY, label="predicted")
        axes[0].set(xlabel="gradient-flow time s / N", ylabel=r"$C - C_{\min}$", title=note)
        axes[1].set(xlabel="clock time t = 1 − exp(−s/N)", xlim=(-0.03, 1.03))
        axes[0].legend(loc="best")
    return figure


def spectrum_map(
    times: Float[np.ndarray, " T"],
    sigmas: Float[np.ndarray, "T k"],
    lam_line: float | Float[np.ndarray, " T"] | None = None,
    *,
    time_label: str = "t",
) -> "Figure":
    """Draw singular values of the Jacobian: at ranks spread from 1 to k over time, and all of them at each save.

    Parameters
    ----------
    times
        Times of the saves, (T,).
    sigmas
        Singular values σ₁ ≥ … ≥ σ_k of each save, (T, k).
    lam_line
        Damping λ, a number or (T,). The line at √λ: directions far below it are left where they are.
    time_label
        What the times are.

    Raises
    ------
    ValueError
        If shapes disagree, or a number is negative or not finite.

    Examples
    --------
    >>> figure = spectrum_map(np.arange(3.0), np.geomspace(1, 1e-6, 40) * np.ones((3, 1)), 1e-8)
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['t', 'rank i']
    """
    times, sigmas = finite("times", times), finite("singular values", sigmas)
    if sigmas.ndim != 2 or times.shape != sigmas.shape[:1] or not sigmas.size:
        raise ValueError(f"spectrum_map: expected times (T,) and sigmas (T, k), got {times.shape} and {sigmas.shape}")
    if (sigmas < 0).any():
        raise ValueError(f"spectrum_map: singular values are not negative, got {sigmas.min():.3g}")
    ranks = np.arange(1, sigmas.shape[1] + 1)
    some = np.unique(np.round(np.geomspace(1, ranks[-1], 20)).astype(int)) - 1
    with _axes(8.2, 3.9, 2, "Singular values of the Jacobian", sharey=True) as (figure, axes):
        drawn, note = _ordinate(axes[0], [sigmas])
        for colour, i in zip(_shades("viridis_r", len(some)), some, strict=True):
            axes[0].plot(times, drawn(sigmas[:, i]), color=colour, marker=".", linewidth=1.2)
        for i in {some[0], some[len(some) // 2], some[-1]}:
            if sigmas[-1, i] > 0:
                place = (times[-1], sigmas[-1, i])
                axes[0].annotate(rf"$\sigma_{{{i + 1}}}$", place, (7, 0), textcoords="offset points", va="center")
        named = {0, len(times) // 2, len(times) - 1}
        for j, colour in enumerate(_shades("cividis_r", len(times))):
            marker = "." if len(ranks) < 30 else ""
            label = f"{time_label} = {times[j]:.3g}" if j in named else None
            axes[1].plot(ranks, drawn(sigmas[j]), color=colour, marker=marker, linewidth=1.4, label=label)
        if lam_line is not None:
            level = np.sqrt(finite("lam_line", np.broadcast_to(lam_line, times.shape)))
            axes[0].plot(times, level, **DAMPING)
            axes[1].axhline(level[-1], **DAMPING, label="√λ, the damping")
        axes[0].set(xlabel=time_label, ylabel=r"singular value $\sigma_i$", title=note)
        axes[1].set(xlabel="rank i")
        axes[1].legend(loc="best")
    return figure


def deviation_curve(
    ts: Float[np.ndarray, " T"],
    deviation: Float[np.ndarray, " T"],
    predicted: Float[np.ndarray, " T"] | None = None,
    *,
    bound: float | None = None,
    time_label: str = "t",
) -> "Figure":
    """Draw how far the outputs are from their chord over time, with the prediction (2.58) and the bound required.

    Parameters
    ----------
    ts, deviation, predicted
        Times (T,), measured and predicted max |x(t) − chord(t)|, (T,) each. At the start it is 0, which a logarithmic
        axis leaves out; the subtitle counts zeros elsewhere.
    bound
        A horizontal line, what is allowed.
    time_label
        What the times are.

    Raises
    ------
    ValueError
        If shapes disagree or a number is not finite.

    Examples
    --------
    >>> figure = deviation_curve(np.linspace(0, 1, 5), np.zeros(5))
    >>> figure.axes[0].get_title(loc="left")
    'All values are exactly 0'
    """
    ts, measured = _timed("deviation", (ts, deviation))
    other = None if predicted is None else _timed("predicted", (ts, predicted))[1]
    look = LOOKS["straight"]
    with _axes(6.4, 3.9, 1, "Deviation from the chord") as (figure, (ax,)):
        drawn, note = _ordinate(ax, [measured[1:]], [] if other is None else [other])
        if other is not None:
            _prediction(ax, ts, drawn(other), look.colour, label="predicted")
        _line(ax, (ts, drawn(measured)), look, 0, label="measured")
        if bound is not None:
            ax.axhline(bound, **DAMPING, label="allowed")
        ax.set(xlabel=time_label, ylabel="max |x − chord|", title=note)
        ax.legend(loc="best")
    return figure


def save(figure: "Figure", path: str | PathLike[str]) -> tuple[FilePath, FilePath]:
    """Write PATH.png (200 dots per inch) and PATH.svg, each as a whole; equal figures give equal bytes.

    Raises
    ------
    ValueError
        If the path ends in .png or .svg: both are written.

    Examples
    --------
    >>> import tempfile
    >>> figure = deviation_curve(np.linspace(0, 1, 5), np.zeros(5))
    >>> [path.name for path in save(figure, tempfile.mkdtemp() + "/deviation")]
    ['deviation.png', 'deviation.svg']
    """
    base = FilePath(path)
    if base.suffix in (".png", ".svg"):
        raise ValueError(f"save: expected a path without .png or .svg, since both are written, got {base}")
    png, svg = base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.svg")
    with load_extra("matplotlib", "figures").rc_context(RC):
        with replacing(png) as temporary:
            figure.savefig(temporary, format="png", dpi=200)
        with replacing(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return png, svg


@contextmanager
def _axes(width: float, height: float, columns: int, title: str, **shared: Any) -> Iterator[tuple[Any, Any]]:
    """A figure with one row of axes; the settings hold until the block ends, then those of the user hold again."""
    matplotlib = load_extra("matplotlib", "figures")
    new_figure = load_extra("matplotlib.figure", "figures").Figure
    with matplotlib.rc_context(RC):
        figure = new_figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, x=0.015, ha="left", fontsize=11.5, fontweight="bold", color=INK)
        yield figure, figure.subplots(1, columns, squeeze=False, **shared)[0]


def _line(ax: Any, points: Any, look: Look, i: int, *, linestyle: Any = "-", label: str) -> None:
    """One measured flow; markers are offset from line to line so that lines on top of each other all show."""
    x, y = points
    seen = np.isfinite(x) & np.isfinite(y)
    # Matplotlib spreads no markers over a path without length.
    moves = seen.sum() > 1 and (np.ptp(x[seen]) > 0 or np.ptp(y[seen]) > 0)
    every = (0.03 * i, 0.13) if moves else None
    ax.plot(x, y, color=look.colour, linestyle=linestyle, marker=look.marker, markevery=every, label=label, zorder=3)
    ax.plot(x[seen][-1:], y[seen][-1:], color=look.colour, marker=look.marker, zorder=3)  # where the run ends


def _prediction(ax: Any, x: Any, y: Any, colour: str, label: str | None = None) -> None:
    """A wide pale dashed line under the measured one, which covers it where the two agree."""
    ax.plot(x, y, color=colour, linewidth=5, alpha=0.4, dashes=(1.6, 0.7), label=label, zorder=2)


def _number(value: float) -> str:
    """Two digits, with a power of ten as one writes it."""
    digits, _, power = f"{value:.2g}".partition("e")
    return f"{digits}×10{str(int(power)).translate(SUPERSCRIPTS)}" if power else digits


def _timed(name: str, curve: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times, infinity allowed, and finite values, as float64 of one shape."""
    times, values = np.asarray(curve[0], float), finite(name, curve[1])
    if times.shape != values.shape or times.ndim != 1 or not times.size:
        raise ValueError(f"{name}: expected times and values of one shape (T,), got {times.shape} and {values.shape}")
    if np.isnan(times).any() or (times < 0).any():
        raise ValueError(f"{name}: expected times from 0 to infinity, got {times.min():.3g}")
    return times, values


def _positive(values: Any) -> np.ndarray:
    """NaN, a gap in the line, where a logarithmic axis has no place."""
    values = np.asarray(values, float)
    return np.where(values > 0, values, np.nan)


def _ordinate(
    ax: Any, measured: list[np.ndarray], others: list[np.ndarray] | None = None
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Make the ordinate logarithmic where a value allows it; how to draw values, and a note on what is left out."""
    values = np.concatenate([np.ravel(part) for part in measured])
    everything = np.concatenate([values, *map(np.ravel, others or [])])
    if (everything > 0).any():
        ax.set_yscale("log")
        hidden = (values <= 0).sum()
        return _positive, f"Not drawn: {hidden} of {values.size} values, at or below 0" if hidden else ""
    if not everything.any():
        ax.set_ylim(-1, 1)
        return np.asarray, "All values are exactly 0"
    return np.asarray, "No value is above 0"


def _shades(colormap: str, count: int) -> np.ndarray:
    """Colours of an ordered family of lines; the palest end of the map is left out."""
    return load_extra("matplotlib", "figures").colormaps[colormap](np.linspace(0.1, 1, count))
