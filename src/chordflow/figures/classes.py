"""Classification: probabilities on the simplex of three classes, and mean outputs per class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from chordflow.figures.axes import new_axes
from chordflow.figures.look import FAINT, GREY, INK, LOOKS
from chordflow.projection import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
CLASSES = tuple(LOOKS[name] for name in ("straight", "adapted", "interpolated"))
MAX_PATHS = 40
"""Samples of which a picture of the simplex has room."""


def simplex(
    paths: Mapping[str, Float[np.ndarray, "_T _N _Q"]],
    equilibrium: Float[np.ndarray, "_N _Q"] | Mapping[str, Float[np.ndarray, "_N _Q"]],
    *,
    narrow: bool = False,
) -> "Figure":
    """Draw the way of each sample on the simplex of three classes, and where it is predicted to end.

    Parameters
    ----------
    paths
        For each flow the probabilities of all samples over time, (T, N, 3), rows summing to 1. A panel each.
    equilibrium
        Predicted end of each sample, (N, 3), for the largest N, or one for each flow. Its largest component is the
        class: the colour.
    narrow
        Panels below each other, for the column of a phone.

    Returns
    -------
    Figure
        Of more than 40 samples the first 40: a dot where each is at the end, a ring where it is predicted to be.

    Raises
    ------
    ValueError
        If there is no path, shapes disagree, or a row is off the simplex by more than 1e-6.

    Examples
    --------
    >>> way = np.linspace([1 / 3] * 3, [0.9, 0.05, 0.05], 6)[:, None, :]
    >>> simplex({"straight": way}, way[-1]).axes[0].get_title(loc="left")
    'straight'
    """
    if not paths:
        raise ValueError("simplex: no path; expected a mapping of names to probabilities (T, N, 3)")
    ends = equilibrium if isinstance(equilibrium, Mapping) else dict.fromkeys(paths, equilibrium)
    title = "Probabilities of three classes, and the predicted equilibrium"
    columns = 1 if narrow else min(4, len(paths))
    rows = -(-len(paths) // columns)
    height = (2.9 if narrow else 8.2 / columns * 0.95) * rows + 0.4
    with new_axes(8.2, height, 0, title, narrow=narrow, grid=(rows, columns)) as (figure, axes):
        for ax in axes[len(paths) :]:
            ax.set_axis_off()
        for ax, (name, path) in zip(axes, paths.items(), strict=False):
            points, expected = _on_simplex(name, path), _on_simplex("equilibrium", ends[name])
            if points.ndim != 3 or points.shape[1] > len(expected):
                raise ValueError(f"{name}: expected shape (T, N, 3), N ≤ {len(expected)}, got {points.shape}")
            _triangle(ax)
            for n in range(min(MAX_PATHS, points.shape[1])):
                look = CLASSES[int(np.argmax(expected[n]))]
                x, y = (points[:, n] @ CORNERS).T
                ax.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=0.8, alpha=0.7, zorder=2)
                ax.plot(x[-1:], y[-1:], look.marker, color=look.colour, markersize=3.5, zorder=4)
                ax.plot(*(expected[n] @ CORNERS), "o", color=INK, markerfacecolor="none", markersize=8, zorder=3)
            ax.set_title(name)
    return figure


def _on_simplex(name: str, values: Any) -> np.ndarray:
    values = finite(name, values)
    if values.shape[-1:] != (3,) or not values.size:
        raise ValueError(f"{name}: expected three classes, shape (..., 3), got {values.shape}")
    if (values < -1e-6).any() or (abs(values.sum(axis=-1) - 1) > 1e-6).any():
        raise ValueError(f"{name}: expected probabilities that sum to 1")
    return values


def _triangle(ax: Any) -> None:
    closed = np.concatenate([CORNERS, CORNERS[:1]])
    ax.plot(*closed.T, color=FAINT, linewidth=1.2, zorder=1)
    for share in (0.25, 0.5, 0.75):
        for i in range(3):
            ends = [share * CORNERS[i] + (1 - share) * CORNERS[j] for j in range(3) if j != i]
            ax.plot(*np.transpose(ends), color=FAINT, linewidth=0.5, zorder=1)
    # Inwards from the corners below, where the next triangle has its own.
    places = (((-5, -6), "left", "top"), ((5, -6), "right", "top"), ((0, 6), "center", "bottom"))
    for i, (offset, across, up) in enumerate(places):
        kind: dict[str, Any] = {"ha": across, "va": up, "color": CLASSES[i].colour}
        ax.annotate(f"class {i}", CORNERS[i], offset, textcoords="offset points", **kind)
    ax.set_aspect("equal")
    ax.margins(0.08, 0.12)
    ax.set_axis_off()


def class_map(panels: Mapping[str, Float[np.ndarray, "_Q _Q"]], *, quantity: str, narrow: bool = False) -> "Figure":
    """Draw the mean output of each unit over the samples of each class, a map for each moment or flow.

    Parameters
    ----------
    panels
        For each name a matrix (Q, Q): row c, column q is the mean of output q over the samples of class c; NaN where a
        class has no sample.
    quantity
        What the outputs are, for the scale of colours.
    narrow
        Two panels a row, for the column of a phone.

    Raises
    ------
    ValueError
        If there is no panel, or matrices are not square or not of one size.

    Examples
    --------
    >>> figure = class_map({"start": np.zeros((3, 3)), "predicted": np.eye(3)}, quantity="output")
    >>> [ax.get_title(loc="left") for ax in figure.axes[:2]]
    ['start', 'predicted']
    """
    shapes = {np.shape(matrix) for matrix in panels.values()}
    if len(shapes) != 1 or len(set(*shapes)) != 1 or np.ndim(next(iter(panels.values()))) != 2:
        raise ValueError(f"class_map: expected square matrices of one size, got shapes {sorted(shapes)}")
    size = shapes.pop()[0]
    values = np.concatenate([np.ravel(matrix) for matrix in panels.values()])
    low, high = min(0.0, float(np.nanmin(values))), max(1.0, float(np.nanmax(values)))
    most = 2 if narrow else 4 if max(map(len, panels)) > 15 else 6
    columns = -(-len(panels) // -(-len(panels) // most))  # in rows of one length, or nearly
    rows = -(-len(panels) // columns)
    title, grid = "Mean outputs per class", (rows, columns)
    with new_axes(8.2, 1.1 + 1.45 * rows, 0, title, narrow=narrow, grid=grid) as (figure, axes):
        shown: Any = None
        for ax, (name, matrix) in zip(axes, panels.items(), strict=False):
            shown = ax.imshow(matrix, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            ax.set_title(name)
            ax.grid(visible=False)
            ax.set_xticks([0, size - 1])
            ax.set_yticks([0, size - 1])
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for row in range(rows):
            axes[row * columns].set_ylabel("true class")
        for ax in axes[max(0, len(panels) - columns) : len(panels)]:
            ax.set_xlabel("output")
        place: dict[str, Any] = {"location": "bottom", "aspect": 40} if narrow else {"aspect": 20, "pad": 0.02}
        bar = axes[0].figure.colorbar(shown, ax=list(axes), label=f"mean {quantity}", **place)
        bar.outline.set_edgecolor(GREY)
    return figure
