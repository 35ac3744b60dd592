"""The plan of a Gram program in words and numbers."""

from dataclasses import dataclass

import jax
from jaxtyping import PyTree

from chordflow.kernel.engine import Setup
from chordflow.kernel.plan import Group


@dataclass(frozen=True)
class LeafPlan:
    """One parameter leaf: its path, shape, the rule it gets, and why."""

    name: str
    shape: tuple[int, ...]
    rule: str
    why: str


@dataclass(frozen=True)
class GramPlan:
    """What a Gram matrix costs; printable.

    ``flops`` counts a multiply-add as 2; ``peak_bytes`` are arguments, result and all that is alive beside them;
    ``step`` is the number of samples in a tile; ``blocked`` says that factors are computed again for each tile.
    """

    kind: str
    leaves: tuple[LeafPlan, ...]
    flops: float
    peak_bytes: int
    result_bytes: int
    step: int
    blocked: bool

    @property
    def rules(self) -> dict[str, str]:
        """Leaf path to rule."""
        return {leaf.name: leaf.rule for leaf in self.leaves}

    def explain(self) -> str:
        """One line for each leaf: shape, rule, reason."""
        rows = [(leaf.name or "(parameters)", str(leaf.shape), leaf.rule, leaf.why) for leaf in self.leaves]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
        )

    def __str__(self) -> str:
        how = "computed again for each tile" if self.blocked else "kept for all samples"
        return (
            f"{self.explain()}\n{self.kind}: {self.flops:.3g} floating-point operations, "
            f"{self.peak_bytes / 2**20:.1f} MiB at the peak ({self.result_bytes / 2**20:.1f} MiB result), "
            f"tiles of {self.step} samples, factors {how}"
        )


def describe(setup: Setup, theta: PyTree, kind: str, flops: float) -> GramPlan:
    """The plan as the user sees it."""
    paths = [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(theta)]
    rules: dict[int, tuple[str, str]] = {}
    for group in setup.groups:
        rules[group.leaf] = _rule(setup, group)
        for bias in group.biases:
            rules[bias] = ("bias with pairs", f"has the cotangent of {paths[group.leaf][0]}")
    leaves = tuple(LeafPlan(*path, *rules[i]) for i, path in enumerate(paths))
    budget = setup.budget
    return GramPlan(kind, leaves, flops, budget.peak, budget.result, budget.step, budget.blocked)


def _rule(setup: Setup, group: Group) -> tuple[str, str]:
    if group.direct == "gain":
        return "gain", "multiplies elementwise: its part of D is as small as anything"
    if group.direct:
        return "fallback", f"{group.direct}: its part of D, by a tap on the leaf"
    uses = [use for trace in setup.traces for use in trace.uses if use.view.leaf == group.leaf]
    if not uses:
        return "unused", "the outputs do not depend on it"
    kinds = " and ".join(sorted({use.kind for use in uses}))
    positions = sum(use.sizes[0] for use in uses)
    where = f"{len(uses)} use{'s' * (len(uses) > 1)}, {positions} position{'s' * (positions > 1)}"
    pairs, columns = group.work
    if group.rule == "pairs":
        return f"{kinds} pairs", f"{where}: {pairs:.3g} multiply-adds per pair of samples, {columns:.3g} by columns"
    if {use.kind for use in uses} == {"bias"}:
        return "bias columns", f"{where}: its part of D are the cotangents, summed over positions"
    less = (
        f"{columns:.3g} multiply-adds per pair of samples, {pairs:.3g} by pairs" if pairs else "uses of several forms"
    )
    return f"{kinds} columns", f"{where}: {less}" + (", formed for each tile" if group.later else "")
