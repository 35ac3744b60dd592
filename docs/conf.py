"""Settings of the documentation site: built offline and strictly by ``make docs``.

Formulas become MathML when the site is built, so that no page needs a script or a font from elsewhere.
"""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


from mathml import visit_block, visit_inline
from sphinx.application import Sphinx

import chordflow

project = "Chordflow"
author = "The Chordflow authors"
project_copyright = author
version = release = chordflow.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
root_doc = "index"
nitpicky = True
# Other packages' names: their inventories are on the network, and the build is not.
nitpick_ignore_regex = [("py:(class|obj|data|exc)", r"(?!chordflow|cf\.).*")]
# What only the package itself handles shows in a few signatures; a renamed one that is not here stops the build.
nitpick_ignore = [
    ("py:class", f"chordflow.{name}")
    for name in (
        "kernel.samples.PerSample",
        "measures.Moment",
        "record.checkpoints.Progress",
        "solve.dense.Gram",
        "solve.dense.Triplets",
        "solve.iterative.Sketch",
        "solve.weighted.FormedJacobian",
    )
]

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "smartquotes"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
# The notebooks carry their outputs: they take a minute each to make, and `make examples` makes them.
nb_execution_mode = "off"
nb_merge_streams = True

napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "Chordflow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0062A0"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#7CC4EE"},
}
pygments_style = "friendly"
pygments_dark_style = "native"
html_math_renderer = "mathml"

# What is meant as markup: literals, roles, *emphasis*.
MARKUP = re.compile(r"(``[^`]*``|(?::[a-z:]+:)?`[^`]*`|(?<!\w)\*\w[^*]*\w\*(?!\w))")
ARRAY = re.compile(r"\b(?:jaxlib\._jax|jax|numpy)\.(Array|ndarray)\b")


def plain_formulas(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape the bars and stars of docstrings, which are written for people: |x| is a norm and x*(t) a path."""
    del app, what, name, obj, options
    example = False
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if example or line.lstrip().startswith(".. "):
            continue
        parts = MARKUP.split(line)
        parts[::2] = [re.sub(r"(?<!\\)([|])", r"\\\1", part) for part in parts[::2]]
        parts[::2] = [re.sub(r"(?<![\\*])\*(?=[(\s,;|')]|$)", r"\\*", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def short_types(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Call arrays what users call them."""
    del app, what, name, obj, options
    return signature and ARRAY.sub(r"\1", signature), returns and ARRAY.sub(r"\1", returns)


def own_names(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what a class has from elsewhere: fields without a text of their own."""
    del app, what, options
    if name.startswith("_") or (inspect.isfunction(obj) and not obj.__module__.startswith("chordflow")):
        return True
    return skip or None


def setup(app: Sphinx) -> None:
    """Connect the hooks and the renderer of formulas."""
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    # Before napoleon, whose own stars are markup.
    app.connect("autodoc-process-docstring", plain_formulas, priority=400)
    app.connect("autodoc-process-signature", short_types)
    app.connect("autodoc-skip-member", own_names)
