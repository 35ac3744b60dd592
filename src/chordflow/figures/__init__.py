"""Figures from plain arrays: outputs in a plane with their chord, cost on both clocks, spectra, deviations, classes.

Every function returns a ``matplotlib.figure.Figure`` and leaves matplotlib's state alone: nothing pops up or needs
closing. Colours are those of Okabe and Ito, and cividis and viridis, which readers with any colour vision tell apart;
line style and marker say the same again in print. A flow has the same look in every figure: the named flows by their
names, others in the order given.
"""

from os import PathLike
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from chordflow.extras import load_extra
from chordflow.figures.axes import Curve, Styles
from chordflow.figures.classes import class_map, simplex
from chordflow.figures.curves import (
    cost_curves,
    cost_seconds,
    deviation_curve,
    deviation_curves,
    dimension_curves,
    drift_curves,
    over_clock,
)
from chordflow.figures.look import LOOKS, RC, Look, looks
from chordflow.figures.plane import draw_planes, output_plane
from chordflow.figures.spectra import spectrum_heat, spectrum_map
from chordflow.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LOOKS",
    "RC",
    "Curve",
    "Look",
    "Styles",
    "class_map",
    "cost_curves",
    "cost_seconds",
    "deviation_curve",
    "deviation_curves",
    "dimension_curves",
    "draw_planes",
    "drift_curves",
    "looks",
    "output_plane",
    "over_clock",
    "save",
    "simplex",
    "spectrum_heat",
    "spectrum_map",
]


def save(figure: "Figure", path: str | PathLike[str]) -> tuple[FilePath, FilePath]:
    """Write PATH.png (200 dots per inch) and PATH.svg, each as a whole; equal figures give equal bytes.

    Raises
    ------
    ValueError
        If the path ends in .png or .svg: both are written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
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
