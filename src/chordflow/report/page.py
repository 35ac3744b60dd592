"""The page itself: sections, tables and words put together, with nothing that a network would have to give."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.figures import Look
from chordflow.files import replacing
from chordflow.projection import Plane
from chordflow.record import RunError
from chordflow.report import svg, tables
from chordflow.report.reading import RunPage, Series, read_runs
from chordflow.report.sections import Section, planes, sections, styles, way

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What the browser is told to refuse: any request at all."""


def write_report(runs: Sequence[str | PathLike[str]], out: str | PathLike[str] | None = None) -> Path:
    """Write one self-contained HTML page about run folders, and return its path.

    The page opens offline and asks nothing of a network. It shows what the folders hold: a running or stopped run gives
    what is finished, and what is missing is named with its reason. Equal folders give equal bytes.

    Parameters
    ----------
    runs
        Run folders, as ``chordflow run`` makes them. Several are drawn on the same axes.
    out
        The page; None for ``report.html`` in the first folder. An existing file is replaced as a whole.

    Raises
    ------
    RunError
        No folder, one that is no run folder or given twice, a damaged file, or a page that cannot be written.
    MissingExtraError
        If matplotlib, xarray, h5netcdf or h5py is not installed.

    Notes
    -----
    About ten seconds for a run of four flows: each figure is drawn twice, for a wide window and for a phone.

    Examples
    --------
    >>> import tempfile
    >>> from chordflow import record
    >>> run = record.create(tempfile.mkdtemp() + "/run", {"flows": ["straight"]})
    >>> page = write_report([run.path])
    >>> page.name, "not finished: straight" in page.read_text(encoding="utf-8")
    ('report.html', True)
    """
    if not runs:
        raise RunError("report: no run folder given; expected at least one, as in chordflow report runs/digits")
    pages = read_runs(runs)
    path = pages[0].run.path / PAGE if out is None else Path(out).expanduser()
    text = html(pages)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"report {path} cannot be written ({error.strerror}): give another path with --out") from error
    return path


def html(runs: Sequence[RunPage]) -> str:
    """The whole page as text."""
    series = [one for run in runs for one in run.series]
    *firsts, last = (run.label for run in runs)
    title = f"{', '.join(firsts)} and {last}" if firsts else last
    shown = sections(runs) if series else []
    motion = Motion(series)
    body = [_section(section, motion) for section in shown]
    body[1:1] = [tables.compared(series, styles(series))] if series else []
    body += [tables.statements(runs), *(tables.configuration(run, i) for i, run in enumerate(runs))]
    links = [(section.ident, section.short) for section in shown]
    links[1:1] = [("compared", "Table")] if series else []
    links += [("statements", "Statements"), ("config-0", "Configuration")]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} – Chordflow report</title>",
            f'<style>\n{_file("page.css")}</style>\n</head>\n<body>\n<div class="page">',
            f'<header><div><p class="eyebrow">Chordflow report</p><h1>{escape(title)}</h1>{_lead(runs)}</div>',
            '<button type="button" id="theme">Light or dark</button></header>',
            *(banner for run in runs for banner in (_damage(run), _unfinished(run))),
            '<nav aria-label="Sections"><ul>',
            *(f'<li><a href="#{ident}">{escape(text)}</a></li>' for ident, text in links),
            "</ul></nav>\n<main>",
            *body,
            "</main>",
            "<footer>Made by <code>chordflow report</code> from the run folder alone. Equations are numbered as in "
            "arXiv:2408.01517.</footer>\n</div>",
            f'<script type="application/json" id="motion">{motion.json()}</script>',
            f"<script>\n{_file('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _file(name: str) -> str:
    return files("chordflow.report").joinpath(name).read_text(encoding="utf-8")


def _lead(runs: Sequence[RunPage]) -> str:
    """A sentence a run: what was trained on what."""
    return "".join(f'<p class="lead">{escape(_sentence(run, several=len(runs) > 1))}</p>' for run in runs)


def _sentence(run: RunPage, *, several: bool) -> str:
    data, model = run.config.get("data", {}), run.config.get("model", {})
    parts = [str(data.get("name", "data"))]
    if samples := data.get("samples"):
        parts.append(f"{samples} samples")
    parts.append(str(model.get("name", "network")) + "".join(f" {w}" for w in [model.get("widths")] if w))
    parts.append(str(run.config.get("loss", "squared_error")).replace("_", " "))
    count = len(run.series)
    parts.append(f"{count} flow{'' if count == 1 else 's'}")
    return (f"{run.label}: " if several else "") + ", ".join(parts)


def _damage(run: RunPage) -> str:
    """Which files are not as they were written, so that nobody takes what they say for what the run did."""
    if not run.damage:
        return ""
    files = "".join(f"<li>{escape(line)}</li>" for line in run.damage)
    return (
        f'<div class="banner bad" role="note"><p><strong>{escape(run.label)}</strong> is damaged. Flows whose datasets '
        f"are among these files are left out, and what else is shown of the run may be wrong:</p><ul>{files}</ul>"
        f"<p><code>chordflow resume {escape(str(run.run.path))}</code> makes again what it can.</p></div>"
    )


def _unfinished(run: RunPage) -> str:
    """What is missing of a run, how far it came, and how to go on."""
    if not run.missing:
        return ""
    last = {line["flow"]: line for line in run.progress if "flow" in line}
    came = [
        f"{name} (at s = {last[name]['s']:.3g}, cost {last[name]['cost']:.2g})" if name in last else name
        for name in run.missing
    ]
    state = run.run.state
    how = {
        "running": "The run still goes on: write the report again later.",
        "stopped": f"The run was stopped: <code>chordflow resume {escape(str(run.run.path))}</code> goes on.",
    }.get(state, "The problem does not allow these flows: the run said why when it left them out.")
    return (
        f'<p class="banner" role="note"><strong>{escape(run.label)}</strong> is shown as far as it is there; '
        f"not finished: {escape(', '.join(came))}. {how}</p>"
    )


class Motion:
    """What the slider moves: over clock time, each flow's place in the pictures, its cost and its deviation."""

    def __init__(self, series: Sequence[Series]):
        self.series = [one for one in series if way(one) is not None]
        self.planes: list[Plane] = planes(series)
        self.looks: Mapping[str, Look] = styles(series)
        self.flows: list[dict[str, Any]] = [
            {"t": _rounded(one.t)}
            | {key: _rounded(values) for key, values in (("cost", one.excess()), ("deviation", one.array("deviation")))}
            for one in self.series
        ]

    def marks(self, kind: str, figure: "Figure") -> Iterable[str]:
        """A dot for each flow, in its colour, to be moved along its path."""
        points = {name: path for plane in self.planes for name, path in plane.points.items()}
        for i, one in enumerate(self.series):
            x, y = svg.places(figure, figure.axes[0], points[one.label]).T
            self.flows[i][kind] = [[round(float(v), 2) for v in values] for values in (x, y)]
            look = self.looks[one.label]
            fill, edge = svg.coloured(look.face), f"stroke: {svg.coloured(look.colour)}; " if look.hollow else ""
            size = max(3.5, 8.5 - 2.0 * i)  # marks in one place are rings around each other
            style = f"{edge}fill: {fill}"
            yield f'<circle class="mark" data-flow="{i}" data-path="{kind}" r="{size}" style="{style}"/>'

    def json(self) -> str:
        """For a script element: no text in it can end the element."""
        return json.dumps(self.flows, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _rounded(values: np.ndarray | None) -> list[float] | None:
    """Six digits of finite numbers; None where there are none, or some are not."""
    return None if values is None or not np.isfinite(values).all() else [float(f"{v:.6g}") for v in values]


def _section(section: Section, motion: Motion) -> str:
    """A figure at two widths with its words, or the words alone."""
    remarks = "".join(f'<p class="remark">{escape(text)}</p>' for text in section.remarks)
    opening = f'<section id="{section.ident}" aria-labelledby="{section.ident}-title">'
    heading = f'<h2 id="{section.ident}-title">{escape(section.title)}</h2>'
    if section.make is None:
        # What to look for is of no use where there is nothing to look at.
        words = remarks or '<p class="remark">Not shown: the run folder does not hold what it needs.</p>'
        return f"{opening}{heading}{words}</section>"
    is_headline = section.ident == "outputs"
    drawn = []
    for narrow, kind in ((False, "wide"), (True, "narrow")):
        extra = partial(motion.marks, kind) if is_headline else svg.cursors if motion.series else svg.nothing
        text = svg.inline(svg.draw(section.make, narrow=narrow), f"{section.ident}-{kind}", section.title, extra)
        drawn.append(text.replace("<svg ", f'<svg class="{kind}" ', 1))
    name = section.ident
    link = f'<a class="download" href="#{name}" data-svg="{name}-wide" download="{name}.svg">Download SVG</a>'
    controls = tables.controls(motion.series, motion.looks) if is_headline else ""
    return (
        f"{opening}{heading}<figure>{''.join(drawn)}{controls}<figcaption>{escape(section.caption)}</figcaption>"
        f"</figure>{remarks}{link}</section>"
    )
