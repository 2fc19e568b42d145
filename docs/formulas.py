"""Formulas as MathML, made when the pages are built: they need no script and no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Hook of MkDocs: put MathML in the place of every formula that ``pymdownx.arithmatex`` has marked.

    Args:
        content: A page's content as HTML.

    Returns:
        The same with its formulas drawn by the browser.

    Raises:
        ValueError: If a formula has a command that MathML does not know.
    """
    return FORMULA.sub(_drawn, content)


def _drawn(match: re.Match[str]) -> str:
    tag, opening, formula = match.groups()
    markup = convert(html.unescape(formula), display="inline" if opening == r"\(" else "block")
    if unknown := re.search(r"\\\S+", markup):
        raise ValueError(f"expected LaTeX that MathML has, got {unknown[0]} in {formula.strip()}: write it otherwise")
    return f'<{tag} class="arithmatex">{markup}</{tag}>'
