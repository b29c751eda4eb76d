"""Values and formulas of a record as the page writes them."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from xml.etree import ElementTree

import jinja2
from markupsafe import Markup

NOTHING = "–"

# What \href, \style, \class and \cssId would set; MathML inside HTML needs no xmlns.
_UNWANTED_IN_MATH = frozenset({"href", "style", "class", "id", "xmlns"})

_TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, **values: object) -> str:
    """A page from its template; every value is escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def written(value: object) -> str:
    """A value as text, numbers at four digits."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def seconds(value: object) -> str:
    """A duration to a hundredth of a second."""
    return f"{value:.2f}" if isinstance(value, float) else written(value)


def cell(text: str) -> str:
    """A number of the data file at reading precision; the embedded file keeps all digits."""
    try:
        return written(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text


def slug(text: str) -> str:
    """A name as the target of a link."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def data_uri(kind: str, data: bytes) -> str:
    """Bytes embedded in a page, which then loads nothing."""
    return f"data:{kind};base64," + base64.b64encode(data).decode("ascii")


def mathml(formula: str) -> Markup:
    r"""MathML of a LaTeX formula; the escaped source where it cannot be read.

    The tree is serialised here. latex2mathml would let the content of ``\text`` through as markup.
    """
    source = formula.strip().strip("$").strip()
    if not source:
        return Markup("")
    try:
        from latex2mathml.converter import convert_to_element

        tree = convert_to_element(source, display="block")
    except Exception:  # its errors share no base class, and a formula must not cost the page
        return Markup('<code class="latex">{}</code>').format(source)
    for node in tree.iter():
        node.text = html.unescape(node.text) if node.text else node.text
        node.attrib = {
            key: value for key, value in node.attrib.items() if key not in _UNWANTED_IN_MATH
        }
    return Markup(ElementTree.tostring(tree, encoding="unicode"))
