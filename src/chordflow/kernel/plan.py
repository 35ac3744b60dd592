"""Which contraction each leaf gets: decided from shapes alone, for all blocks of outputs together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chordflow.kernel.trace import Traced
from chordflow.kernel.uses import Layout, Use

Rule = Literal["pairs", "columns"]

# One pass over a tile (a multiplication and an addition per entry that wait for memory) against a multiply-add of a
# matrix product that does not.
PASS = 4.0

# Rows and columns of a tile of the matrix: factors and tile stay in the second-level cache.
TILE = 256

# A matrix of up to so many tiles' width is one tile: symmetry saves less than a loop costs.
SINGLE = 1.5


@dataclass(frozen=True)
class Group:
    """Leaves contracted together: a leaf, and the biases that share its taps; ``rule`` says how.

    *pairs*: G[nq, mr] = Σ (xₙₐ·xₘₐ')(hₙqₐ·hₘᵣₐ') over pairs of uses. *columns*: the leaf's part of D, formed from x and
    h where every use has a rule (``direct`` is None), by a tap on the leaf itself otherwise, times its transpose.
    """

    leaf: int
    biases: tuple[int, ...]
    rule: Rule
    layout: Layout | None
    direct: str | None
    later: bool = False  # columns formed for one tile at a time, because x and h take less memory
    work: tuple[float, float] = (0.0, 0.0)  # multiply-adds for each pair of samples: by pairs, by columns


def choose(traces: Sequence[Traced], sizes: Sequence[int], partners: float) -> tuple[Group, ...]:
    """Groups of leaves with the least work, biases merged where their cotangent is that of a product.

    ``partners``: with how many samples each is paired; 2NM/(N+M), which is N for the matrix of N samples.
    """
    groups, merged = [], {}
    for leaf in range(len(sizes)):
        found = [[use for use in trace.uses if use.view.leaf == leaf] for trace in traces]
        reasons = [trace.forward_only or trace.direct.get(leaf) for trace in traces]
        direct = next((why for why in reasons if why), None)
        layout = None if direct else _common_layout([use for uses in found for use in uses])
        if layout is None or direct:
            later = not direct and _form_later(found, traces, partners)
            groups.append(Group(leaf, (), "columns", None, direct, later))
            continue
        biases = _biases(leaf, traces, [i for i in range(len(sizes)) if i not in merged])
        work = _work(found, traces, sizes[leaf] + sum(sizes[i] for i in biases), len(biases), partners)
        if work[0] <= work[1]:
            merged.update(dict.fromkeys(biases, leaf))
            groups.append(Group(leaf, biases, "pairs", layout, None, work=work))
        else:
            groups.append(Group(leaf, (), "columns", layout, None, _form_later(found, traces, partners), work))
    return tuple(group for group in groups if group.leaf not in merged)


def _common_layout(uses: Sequence[Use]) -> Layout | None:
    """The layout of all uses up to exchanging operand and cotangent, or None.

    Products come with the entries of d before those of c; row numbers are added up into rows of c, so that a lookup
    counts as the exchanged one.
    """
    if not uses or uses[0].kind == "bias":
        return None
    first = uses[0]
    for use in uses:
        same = use.layout == first.layout and use.sizes[1:] == first.sizes[1:]
        b, c, d = use.sizes[1:]
        swapped = use.layout.swapped == first.layout and (b, d, c) == first.sizes[1:]
        if not (same or swapped):
            return None
    lookups = [use.layout for use in uses if use.kind == "lookup"]
    return lookups[0].swapped if lookups else first.layout


def _biases(leaf: int, traces: Sequence[Traced], candidates: Sequence[int]) -> tuple[int, ...]:
    """Leaves that are added to outputs of ``leaf``'s products and used nowhere else: the same cotangents serve both."""
    hosts = [{use.tap: use for use in trace.uses if use.view.leaf == leaf} for trace in traces]
    uses = [use for trace in traces for use in trace.uses if use.view.leaf == leaf]
    if any(use.kind == "lookup" or use.layout != uses[0].layout for use in uses):
        return ()

    def fits(other: int) -> bool:
        own = [[use for use in trace.uses if use.view.leaf == other] for trace in traces]
        if not any(own) or any(other in trace.direct for trace in traces):
            return False
        for taps, bias_uses in zip(hosts, own, strict=True):
            if len({use.tap for use in bias_uses}) < len(bias_uses):
                return False
            if not all(use.kind == "bias" and use.tap in taps and _covers(taps[use.tap], use) for use in bias_uses):
                return False
        return True

    return tuple(i for i in candidates if i != leaf and fits(i))


def _covers(host: Use, bias: Use) -> bool:
    """Whether each entry of the bias belongs to one column (b, d) of the product."""
    (host_a, host_b, host_d), (a, b, d) = host.h_axes, bias.h_axes
    return set(host_a) == set(a) and {*host_b, *host_d} == {*b, *d}


def _form_later(found: Sequence[Sequence[Use]], traces: Sequence[Traced], partners: float) -> bool:
    """Whether to keep x and h rather than J. Forming costs 2A/TILE of what a tile's product costs, each time.

    A single tile needs all of J at once, so that nothing is saved there.
    """
    if partners * max(trace.out.shape[0] for trace in traces) <= SINGLE * TILE:
        return False
    kept = formed = positions = 0
    for uses, trace in zip(found, traces, strict=True):
        if not uses:
            return False
        q = trace.out.shape[0]
        for use in uses:
            a, b, c, d = use.sizes
            kept += a * b * ((1 if use.kind == "lookup" else c) + q * d)
        formed += q * math.prod(uses[0].sizes[1:])
        positions = max(positions, sum(use.sizes[0] for use in uses))
    return kept < formed and 8 * positions <= TILE


def _work(
    found: Sequence[Sequence[Use]], traces: Sequence[Traced], num_entries: int, num_biases: int, partners: float
) -> tuple[float, float]:
    """A²b(c + Q²d) against Q²bcd and the work of forming it, for a pair of samples, summed over blocks."""
    pairs = columns = 0.0
    for uses, trace in zip(found, traces, strict=True):
        q = trace.out.shape[0]
        forming = sum(a * b * c * d for a, b, c, d in (use.sizes for use in uses)) * q
        columns += q * q * num_entries + 2 * forming / partners
        for one in uses:
            for two in uses:
                pairs += _pair_work(one, two, q, num_biases)
    return pairs, columns


def _pair_work(one: Use, two: Use, q: int, num_biases: int) -> float:
    a, b, c, d = one.sizes
    positions = a * two.sizes[0] * b
    if one.layout != two.layout:
        return positions * (q * c + q * d + PASS * q * q)
    inner = 0 if "lookup" in (one.kind, two.kind) else c + num_biases
    return positions * (inner + q * q * d + PASS * q * q)
