"""Check all statements on a problem, and set them out one to a line."""

from collections.abc import Iterator, Sequence

from jaxtyping import PyTree

from chordflow.problem import Problem
from chordflow.verification.evidence import Evidence
from chordflow.verification.registry import STATEMENTS, Check, Outcome, Quantity


def verify(
    problem: Problem,
    params: PyTree,
    *,
    rtol: float = 1e-8,
    eps: float | None = None,
    passes: int = 2,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> list[Check]:
    """Check the statements of the theory on a problem, from a point.

    Each compares two codes: linear algebra on the dense D, or a closed form in output space, against the library's
    products, solves, flows and geometry. A statement whose hypothesis does not hold on the problem is not applicable
    and counts neither way.

    Parameters
    ----------
    problem, params
        What is examined, and where; float64.
    rtol
        Relative tolerance of the integrations.
    eps, passes
        Damping of the integrated flows, as in :func:`chordflow.adapted`; None for what :class:`Evidence` chooses.
    seed
        Of random directions.
    names
        Names in :data:`STATEMENTS`; None for all.

    Returns
    -------
    list of Check
        In the order of the paper.

    Raises
    ------
    ValueError
        Parameters that are not float64, a stateful model, a tolerance out of range, an unknown name.
    MemoryError
        D (n·K numbers) or the n × n matrices (some eight) do not fit; before they are allocated.

    Notes
    -----
    Cost: about 20 singular value decompositions of D (n²K each), three runs of 10 to 30 steps, and for n > rank D some
    hundreds of decompositions for the deviation integral. Meant for n up to some hundreds.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, chordflow as cf
    >>> from chordflow.verification import verify
    >>> jax.config.update("jax_enable_x64", True)
    >>> problem = cf.Problem(lambda w, z: jnp.tanh(w * z), jnp.array([[1.0]]), jnp.array([[0.5]]))
    >>> check = verify(problem, jnp.array([0.1]), names=["chain_rule"])[0]
    >>> check.equation, str(check.outcome)
    ('2.14–2.15', 'holds')
    """
    return list(examine(Evidence(problem, params, rtol=rtol, eps=eps, passes=passes, seed=seed), names))


def examine(evidence: Evidence, names: Sequence[str] | None = None) -> Iterator[Check]:
    """Check statements one after another, each when asked for; all of them if ``names`` is None."""
    names = list(STATEMENTS) if names is None else list(names)
    if unknown := [name for name in names if name not in STATEMENTS]:
        raise ValueError(f"verify: unknown statement {unknown[0]!r}, expected some of {', '.join(STATEMENTS)}")
    for name in names:
        yield STATEMENTS[name].check(evidence)


def lines(checks: Sequence[Check]) -> list[str]:
    """One line for each check, and a last one that counts.

    Examples
    --------
    >>> from chordflow.verification import Check, Outcome, lines
    >>> check = Check("name", "1 + 1 = 2", "0.1", Outcome.HOLDS, 2.0, 2.0, 0.0, 1e-15, "rounding")
    >>> print(lines([check])[0])
    holds           1 + 1 = 2  (0.1)  predicted 2, measured 2, error 0 ≤ 1e-15 (rounding)
    """
    text, equation = (max((len(s) for s in column), default=0) for column in _columns(checks))
    count = {outcome: sum(check.outcome == outcome for check in checks) for outcome in Outcome}
    summary = ", ".join(f"{number} {_plural(outcome, number)}" for outcome, number in count.items())
    return [*(_line(check, text, equation) for check in checks), summary]


def _columns(checks: Sequence[Check]) -> tuple[list[str], list[str]]:
    return [check.statement for check in checks], [check.equation for check in checks]


def _line(check: Check, text: int, equation: int) -> str:
    start = f"{check.outcome:<16}{check.statement:<{text}}  {'(' + check.equation + ')':<{equation + 2}}  "
    if check.error is None or check.tolerance is None:
        return start + check.reason
    sign = "≤" if check.outcome == Outcome.HOLDS else ">"
    return start + (
        f"predicted {_shown(check.predicted)}, measured {_shown(check.measured)}, "
        f"error {check.error:.1g} {sign} {check.tolerance:.1g} ({check.reason})"
    )


def _shown(value: Quantity | None) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _plural(outcome: Outcome, number: int) -> str:
    plural = {Outcome.HOLDS: "hold", Outcome.FAILS: "do not hold"}
    return str(outcome) if number == 1 else plural.get(outcome, str(outcome))
