"""Formulas of the site as MathML, which browsers draw themselves: nothing is loaded and nothing runs."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def as_mathml(formula: str, block: bool) -> str:
    """Convert TeX to MathML; raises for what it cannot read, so that a strict build stops there."""
    return tex2mathml(formula, as_block=block).replace("\n", "")


def visit_inline(writer: Any, node: nodes.Node) -> None:
    """Write a formula in a line."""
    writer.body.append(as_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.Node) -> None:
    """Write a formula on its own."""
    writer.body.append(f'<div class="math">{as_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode
