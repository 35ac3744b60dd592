"""The headline picture: outputs of all flows in one plane, with their chord."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from chordflow.figures.axes import Styles, legend, line, new_axes, note, number, styled
from chordflow.figures.look import FAINT, INK
from chordflow.projection import Path, Plane, Points, principal_plane

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def output_plane(
    trajectories: Mapping[str, Path], chord: tuple[Points, Points], *, styles: Styles = None, narrow: bool = False
) -> "Figure":
    """Draw the outputs of all flows in one principal plane with the chord from x(0) to the labels y.

    Parameters and errors are those of :func:`chordflow.projection.principal_plane`. The legend says how far each flow
    leaves the chord in all n dimensions, which a plane cannot show. Axes have the same scale unless the picture would
    be flat; then the ordinate is stretched and says so. ``styles`` gives names a look of their own, and ``narrow`` is
    for the column of a phone.

    Examples
    --------
    >>> figure = output_plane({"straight": np.linspace(0, 1, 5)[:, None] * np.ones(3)}, (np.zeros(3), np.ones(3)))
    >>> figure.subfigs[0].legends[0].get_texts()[0].get_text()
    'straight: on the chord to rounding'
    """
    return draw_planes([principal_plane(trajectories, chord)], styles=styles, narrow=narrow)


def draw_planes(planes: Sequence[Plane], *, styles: Styles = None, narrow: bool = False) -> "Figure":
    """Draw one plane, or several on top of each other: every chord then runs from 0 to 1, across is each one's own.

    Parameters
    ----------
    planes
        Of :func:`chordflow.projection.principal_plane`; no two with a trajectory of the same name.
    styles, narrow
        As for :func:`output_plane`.

    Raises
    ------
    ValueError
        If there is no plane, or a name is there twice.

    Examples
    --------
    >>> line, ends = np.linspace(0, 1, 5)[:, None] * np.ones(3), (np.zeros(3), np.ones(3))
    >>> planes = [principal_plane({name: line}, ends) for name in ("first", "second")]
    >>> len(draw_planes(planes).subfigs[0].legends[0].get_texts())
    2
    """
    names = [name for plane in planes for name in plane.points]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"draw_planes: expected at least one plane and each name once, got {names}")
    points = {name: plane.points[name] for plane in planes for name in plane.points}
    off = {name: plane.off[name] for plane in planes for name in plane.points}
    heights = np.concatenate([[0.0], *(path[:, 1] for path in points.values())])
    stretched = np.ptp(heights) < 0.2
    has_length = any(plane.length for plane in planes)
    look_of = styled(points, styles)
    height, title = (3.2 if narrow else 4.1), "Outputs of all flows in the plane of the chord"
    with new_axes(6.4, height, 1, title, narrow=narrow, grid=(1, 1)) as (figure, (ax,)):
        ax.plot([0, 1 if has_length else 0], [0, 0], color=FAINT, linewidth=6, solid_capstyle="round", zorder=1)
        for i, name in enumerate(points):
            far = f"up to {number(off[name])} off the chord" if off[name] else "on the chord to rounding"
            line(ax, points[name].T, look_of[name], i, label=f"{name}: {far}")
        ends = [("x(0)", 0.0, "o", 7), ("y", 1.0, "*", 13)] if has_length else [("x(0) = y", 0.0, "*", 13)]
        for text, x, marker, size in ends:
            ax.plot(x, 0, marker, color=INK, markersize=size, markerfacecolor="white", zorder=5)
            ax.annotate(text, (x, 0), (0, -9), textcoords="offset points", ha="center", va="top", style="italic")
        ax.set_xlabel("along the chord, in units of |y − x(0)|" if has_length else "first principal direction")
        across = "across the chord" if has_length else "second principal direction"
        ax.set_ylabel(f"{across}{', stretched' if stretched else ', same unit'}")
        ax.margins(0.06, 0.16)
        if heights.any():  # room for the names of the ends, above the labels of the axis
            ax.update_datalim([(0.0, heights.min() - 0.15 * np.ptp(heights))])
        else:
            ax.set_ylim(-0.05, 0.05)
        ax.set_aspect("auto" if stretched else "equal", adjustable="datalim")
        note(ax, _shown(planes) if heights.any() else "No flow leaves the chord", narrow=narrow)
        legend(ax, narrow=narrow)
    return figure


def _shown(planes: Sequence[Plane]) -> str:
    """What the ordinate is, and how much of all deviations it shows."""
    share = f"{min(plane.share for plane in planes):.0%}"
    if len(planes) == 1:
        return f"Across: the principal direction of all deviations, {share} of their squares"
    return f"Across: the principal direction of each run's own deviations, at least {share} of their squares"
