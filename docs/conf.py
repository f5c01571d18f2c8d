"""Sphinx configuration. What the code can say is generated from it at build time, see `_generate.py`."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent))
from _formulas import mathml
from _generate import write_pages

project = "nnssl-semi"
author = "The nnssl-semi developers"
project_copyright = author
release = version = installed_version("nnssl-semi")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "generated"]
default_role = "code"
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"nnssl-semi {release}"
html_show_sphinx = False
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["code.css"]


def docstring_markup(_app, _what, _name, _object, _options, lines):
    """Keep (B, C, *S), |x| and trailing underscores from being read as markup, and let lists be lists."""
    written = []
    for line in lines:
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        is_item = line.lstrip().startswith("- ")
        if is_item and written and _indent(written[-1]) < _indent(line):
            written.append("")
        written.append("".join(parts))
    lines[:] = written


def _indent(line):
    return len(line) - len(line.lstrip())


def write_inline_formula(self, node):
    self.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def write_block_formula(self, node):
    self.body.append(mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app):
    """Write the generated pages, and let formulas be MathML, which browsers draw without a script from elsewhere."""
    write_pages(Path(__file__).parent)
    app.add_html_math_renderer("mathml", (write_inline_formula, None), (write_block_formula, None))
    app.connect("autodoc-process-docstring", docstring_markup, priority=100)
