"""The page's tables: predicted against measured, statements verified, configuration and environment; the slider."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from chordflow.figures import Look
from chordflow.figures.axes import number
from chordflow.record import to_toml
from chordflow.report.reading import RunPage, Series
from chordflow.report.svg import coloured
from chordflow.verification import Check, Outcome
from chordflow.verification.kept import Kept

OUTCOMES = {
    Outcome.HOLDS: ("holds", "✓ holds"),
    Outcome.FAILS: ("fails", "✗ does not hold"),
    Outcome.NOT_APPLICABLE: ("other", "– not applicable"),
}

NO_BREAK = "\N{NO-BREAK SPACE}"
PLURALS = {Outcome.HOLDS: "hold", Outcome.FAILS: "do not hold", Outcome.NOT_APPLICABLE: "not applicable"}


def controls(series: Sequence[Series], looks: Mapping[str, Look]) -> str:
    """The slider over clock time, and what each flow has come to at its moment."""
    rows = "".join(
        f'<tr><th scope="row">{_swatch(looks[one.label])}{escape(one.label)}</th>'
        f'<td class="number" data-flow="{i}" data-live="cost"></td>'
        f'<td class="number" data-flow="{i}" data-live="deviation"></td></tr>'
        for i, one in enumerate(series)
    )
    return (
        '<div class="controls"><label for="clock">Clock time</label>'
        '<input type="range" id="clock" min="0" max="1000" step="1" value="400">'
        '<button type="button" id="play">Play</button><output id="now" for="clock"></output></div>'
        '<div class="table live"><table><thead><tr><th scope="col">flow at this time</th>'
        '<th scope="col" class="number">C − C<sub>min</sub></th><th scope="col" class="number">off the chord</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _swatch(look: Look) -> str:
    colour = coloured(look.colour)
    fill = "transparent" if look.hollow else colour
    return f'<span class="swatch" style="border-color: {colour}; background: {fill}"></span>'


def compared(series: Sequence[Series], looks: Mapping[str, Look]) -> str:
    """Predicted against measured, a group of rows for each flow with how it ended."""
    groups = "".join(_group(one, looks[one.label]) for one in series)
    return (
        '<section id="compared" aria-labelledby="compared-title">'
        '<h2 id="compared-title">Predicted and measured</h2><div class="table"><table><thead><tr>'
        '<th scope="col">quantity</th><th scope="col" class="number">predicted</th>'
        f'<th scope="col" class="number">measured</th></tr></thead>{groups}</table></div>'
        '<p class="note">Deviations are in units of the longest way that an output has to go. A prediction of 0 is met '
        "to the accuracy of the integration, and where directions are unreachable not at all: the figures below say "
        "when and why.</p></section>"
    )


def _group(one: Series, look: Look) -> str:
    stats = one.summary.get("stats", {})
    said = [str(one.summary.get("result", "")).replace("_", " "), f"{one.num_samples:g} samples"]
    said += [f"{int(stats['num_steps'])} steps"] if "num_steps" in stats else []
    seconds = one.array("seconds")
    said += [] if seconds is None else [f"{float(seconds.max()):.1f} s"]
    head = (
        f'<tr class="group"><th colspan="3" scope="rowgroup">{_swatch(look)}{escape(one.label)} '
        f'<span class="other">{escape(", ".join(part.replace(" ", NO_BREAK) for part in said))}</span></th></tr>'
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(str(row["quantity"]))}</th><td class="number">{_value(row["predicted"])}</td>'
        f'<td class="number">{_value(row["measured"])}</td></tr>'
        for row in one.summary.get("comparison", ())
    )
    return f"<tbody>{head}{rows}</tbody>"


def _value(value: Any) -> str:
    return "–" if value is None else escape(number(float(value), digits=4))


def statements(runs: Sequence[RunPage]) -> str:
    """Outcomes of ``chordflow verify``, where a folder has them, and how to get them where not."""
    parts = []
    for run in runs:
        heading = f"<h3>{escape(run.label)}</h3>" if len(runs) > 1 else ""
        parts.append(heading + (_asked(run) if run.verified is None else _checked(run.verified)))
    return (
        '<section id="statements" aria-labelledby="statements-title"><h2 id="statements-title">Statements of the '
        f"theory</h2>{''.join(parts)}</section>"
    )


def _asked(run: RunPage) -> str:
    command = escape(f"chordflow verify {run.run.path}")
    return (
        f'<p class="note">The statements were not checked for this run: its folder has no outcome of a verification. '
        f"<code>{command}</code> checks them on the run's problem and leaves the outcome there for the next report.</p>"
    )


def _checked(kept: Kept) -> str:
    count = Counter(check.outcome for check in kept.checks)
    rows = []
    for check in kept.checks:
        kind, words = OUTCOMES[check.outcome]
        rows.append(
            f'<tr><td class="{kind}">{words}</td><td>{escape(check.statement)} '
            f'<span class="other">({escape(check.equation)})<br>{escape(_evidence(check))}</span></td></tr>'
        )
    is_open = " open" if count[Outcome.FAILS] else ""
    said = ", ".join(f"{count[outcome]} {plural}" for outcome, plural in PLURALS.items() if count[outcome])
    return (
        f"<p>Predicted by one code and measured by another, at the start of the run on {kept.samples} of its samples: "
        f"{said}.</p><details{is_open}><summary>All {len(kept.checks)} statements</summary>"
        '<div class="table"><table><thead><tr><th scope="col">outcome</th>'
        f'<th scope="col">statement</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
    )


def _evidence(check: Check) -> str:
    """How far apart the two codes are and may be, or why there is nothing to compare."""
    if check.error is None or check.tolerance is None:
        return check.reason
    sign = "≤" if check.outcome is Outcome.HOLDS else ">"
    return f"error {number(check.error, digits=1)} {sign} {number(check.tolerance, digits=1)} ({check.reason})"


def configuration(run: RunPage, index: int) -> str:
    """What was asked for, as the TOML that asks for it again, and in what surroundings it ran."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in _leaves(run.environment)
    )
    environment = f'<h3>Environment</h3><div class="table"><table><tbody>{rows}</tbody></table></div>' if rows else ""
    return (
        f'<section id="config-{index}" aria-labelledby="config-{index}-title"><h2 id="config-{index}-title">'
        f"Configuration of {escape(run.label)}</h2><pre>{escape(to_toml(run.config).strip())}</pre>"
        f"{environment}</section>"
    )


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "–" if value is None else str(value)
