"""What the figures share: axes in a row or a column, lines, predictions, legends, labels of powers of ten."""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from chordflow.extras import load_extra
from chordflow.figures.look import GREY, INK, RC, Look, looks
from chordflow.projection import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Float[np.ndarray, " _T"], Float[np.ndarray, " _T"]]
"""Abscissae and values of one line."""

Styles = Mapping[str, Look] | None
"""A look for each name; None for those of :func:`chordflow.figures.looks`."""

NARROW = 3.55
"""Inches: what a phone shows at the size of type that a desktop shows a wide figure in."""
LEGEND_ROW = 0.187
"""Inches of a row of a legend."""
SUPERSCRIPTS = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
POWER = re.compile(r"(?:(.*)\\times)?10\^\{(.+?)\}")


@contextmanager
def new_axes(
    width: float,
    height: float,
    count: int,
    title: str,
    *,
    narrow: bool = False,
    grid: tuple[int, int] | None = None,
    **shared: Any,
) -> Iterator[tuple["Figure", Any]]:
    """A figure with a row of axes, one column where it is narrow, or a grid (rows, columns) of them, in inches.

    The settings hold until the block ends, then those of the user hold again.
    """
    matplotlib = load_extra("matplotlib", "figures")
    new_figure = load_extra("matplotlib.figure", "figures").Figure
    with matplotlib.rc_context(RC):
        shape = grid or ((count, 1) if narrow else (1, count))
        size = (NARROW, height if grid else 0.8 + count * 2.4) if narrow else (width, height)
        figure = new_figure(figsize=size, layout="constrained")
        figure.suptitle(title, x=0.015, ha="left", fontsize=11.5, fontweight="bold", color=INK)
        # A legend outside the axes of the inner figure keeps out of the way of the title of the outer one.
        yield figure, figure.subfigures().subplots(*shape, squeeze=False, **shared).ravel()


def styled(names: Any, styles: Styles) -> Mapping[str, Look]:
    """The looks given, with those of the names that have none."""
    names = list(names)
    return {**looks(names), **{name: look for name, look in (styles or {}).items() if name in names}}


def line(ax: Any, points: Any, look: Look, i: int, *, label: str) -> None:
    """One measured flow; markers are offset from line to line so that lines on top of each other all show."""
    x, y = points
    seen = np.isfinite(x) & np.isfinite(y)
    # Matplotlib spreads no markers over a path without length.
    moves = seen.sum() > 1 and (np.ptp(x[seen]) > 0 or np.ptp(y[seen]) > 0)
    every = (0.03 * i, 0.13) if moves else None
    kind: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markerfacecolor": look.face, "zorder": 3}
    ax.plot(x, y, linestyle=look.dashes, linewidth=look.width, markevery=every, label=label, **kind)
    ax.plot(x[seen][-1:], y[seen][-1:], **kind)  # where the run ends


def end(ax: Any, x: Any, y: Any, look: Look, *, label: str) -> None:
    """A flow of which nothing is known between start and end: its last point alone."""
    shape: dict[str, Any] = {"color": look.colour, "markerfacecolor": look.face, "markersize": 8}
    ax.plot(x[-1:], y[-1:], look.marker, label=label, zorder=3, **shape)


def prediction(ax: Any, x: Any, y: Any, colour: str, label: str | None = None) -> None:
    """A wide pale line under the measured one, which covers it where the two agree."""
    ax.plot(x, y, color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt", label=label, zorder=2)


def curves(
    ax: Any, measured: Mapping[str, Curve], predicted: Mapping[str, Curve], look_of: Mapping[str, Look], drawn: Any
) -> None:
    """All lines of one axes, predictions beneath."""
    for name, (x, y) in predicted.items():
        prediction(ax, x, drawn(y), look_of[name].colour)
    for i, (name, (x, y)) in enumerate(measured.items()):
        line(ax, (x, drawn(y)), look_of[name], i, label=name)
    if predicted:
        prediction(ax, [], [], GREY, label="predicted")


def legend(ax: Any, *, narrow: bool = False) -> None:
    """The names of the lines above the axes, where they hide nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    # In points: a handle with its space, and what a character takes on average.
    widths = [50 + 4.6 * len(label) for label in labels]
    room = 72 * (NARROW if narrow else ax.figure.figure.get_figwidth())
    columns = len(labels) if sum(widths) < room else max(1, int(room // max(widths)))
    figure = ax.figure.figure
    # Names take no room from what they name: without, twelve flows left a phone half a centimetre of each axes.
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * (-(-len(labels) // columns) - 1))
    ax.figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.4)


def note(ax: Any, text: str, *, narrow: bool = False) -> None:
    """A remark above the axes."""
    ax.set_title("\n".join(textwrap.wrap(text, 46)) if narrow else text)


def number(value: float, *, digits: int = 2) -> str:
    """So many digits, with a power of ten as one writes it."""
    mantissa, _, power = f"{value:.{digits}g}".partition("e")
    text = f"{mantissa}×10{str(int(power)).translate(SUPERSCRIPTS)}" if power else mantissa
    return text.replace("-", "−")


def timed(name: str, curve: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times, infinity allowed, and finite values, as float64 of one shape."""
    times, values = np.asarray(curve[0], float), finite(name, curve[1])
    if times.shape != values.shape or times.ndim != 1 or not times.size:
        raise ValueError(f"{name}: expected times and values of one shape (T,), got {times.shape} and {values.shape}")
    if np.isnan(times).any() or (times < 0).any():
        raise ValueError(f"{name}: expected times from 0 to infinity, got {times.min():.3g}")
    return times, values


def ordinate(
    ax: Any, measured: list[np.ndarray], others: list[np.ndarray] | None = None
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Make the ordinate logarithmic where a value allows it; how to draw values, and a note on what is left out."""
    values = np.concatenate([np.ravel(part) for part in measured])
    everything = np.concatenate([values, *map(np.ravel, others or [])])
    if (everything > 0).any():
        ax.set_yscale("log")
        powers(ax.yaxis)
        hidden = (values <= 0).sum()
        return _positive, f"Not drawn: {hidden} of {values.size} values, at or below 0" if hidden else ""
    if not everything.any():
        ax.set_ylim(-1, 1)
        return np.asarray, "All values are exactly 0"
    return np.asarray, "No value is above 0"


def powers(axis: Any) -> None:
    """Label a logarithmic axis with plain characters, which keep their place in any font."""
    ticker = load_extra("matplotlib.ticker", "figures")

    class Plain(ticker.LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return _plain(super().__call__(x, pos))

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def _plain(text: str) -> str:
    """A label without the markup of powers that matplotlib gives it."""
    found = POWER.search(text)
    if found is None:
        return re.sub(r"[${}]|\\mathdefault", "", text)
    factor = re.sub(r"[${}]|\\mathdefault", "", found[1] or "")
    return f"{factor}{'×' if factor else ''}10{found[2].translate(SUPERSCRIPTS)}"


def _positive(values: Any) -> np.ndarray:
    """NaN, a gap in the line, where a logarithmic axis has no place."""
    values = np.asarray(values, float)
    return np.where(values > 0, values, np.nan)


def shades(colormap: str, count: int) -> np.ndarray:
    """Colours of an ordered family of lines; the palest end of the map is left out."""
    return load_extra("matplotlib", "figures").colormaps[colormap](np.linspace(0.1, 1, count))
