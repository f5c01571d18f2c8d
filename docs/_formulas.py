"""Formulas as MathML, which browsers draw without a script from elsewhere."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree as ET

from docutils.utils.math.latex2mathml import tex2mathml

NAMESPACE = "http://www.w3.org/1998/Math/MathML"


def mathml(formula: str, *, as_block: bool) -> str:
    """Return MathML with the index of an accented letter beside the letter; docutils puts it below.

    A block stands in a box that scrolls, so that a long formula is neither cut nor wider than the page.

    Args:
        formula: TeX.
        as_block: whether the formula has lines of its own.
    """
    ET.register_namespace("", NAMESPACE)
    made = tex2mathml(formula, as_block=as_block)
    tree = ET.fromstring(re.sub(r"&(?!amp;|lt;|gt;)\w+;", lambda entity: html.unescape(entity[0]), made))
    for parent in list(tree.iter()):
        for place, child in enumerate(parent):
            if child.tag == f"{{{NAMESPACE}}}munderover" and _is_accent(child[2]):
                parent[place] = _index_beside(child)
    text = ET.tostring(tree, encoding="unicode")
    return f'<div class="formula">{text}</div>' if as_block else text


def _is_accent(element: ET.Element) -> bool:
    return element.tag == f"{{{NAMESPACE}}}mo" and element.get("stretchy") == "false"


def _index_beside(element: ET.Element) -> ET.Element:
    base, index, accent = element
    made, over = ET.Element(f"{{{NAMESPACE}}}msub"), ET.Element(f"{{{NAMESPACE}}}mover", {"accent": "true"})
    over.extend([base, accent])
    made.extend([over, index])
    made.tail = element.tail
    return made
