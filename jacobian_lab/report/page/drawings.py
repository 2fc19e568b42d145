"""Figures of a run as SVG that stands inside a page."""

import re
from html import escape
from io import StringIO
from typing import Any

from jacobian_lab.report.results import Results

DENSE = 4000
"""Points of one panel from which on they are one picture inside the drawing: axes and words stay vectors."""
WIDE = 300
"""Width in points from which on a drawing is scrolled on a narrow screen instead of shrunk."""
RESOLUTION = 200
"""Dots per inch of such a picture."""

_UNUSED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|[ \t]*\n[ \t]*", re.DOTALL)
_REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')


def drawings(run: Results, side: str = "") -> dict[str, dict[str, Any]]:
    """Every figure that a run can give, with its caption, by name."""
    import matplotlib as mpl  # takes a second

    mpl.use("agg")
    return {name: _drawing(run, name, f"{side}{name}") for name in run.figures}


def _drawing(run: Results, name: str, prefix: str) -> dict[str, Any]:
    import matplotlib as mpl

    from jacobian_lab.report.figures.style import style

    figure, caption, text = run.figure(name), run.figure_caption(name), StringIO()
    _thinned(figure)
    with mpl.rc_context({"svg.hashsalt": prefix}), style():
        figure.savefig(text, format="svg", dpi=RESOLUTION, metadata={"Date": None})
    return {"caption": caption, "svg": inlined(text.getvalue(), prefix, caption), "wide": _width(figure) > WIDE}


def _width(figure: Any) -> float:
    return float(72 * figure.get_size_inches()[0])


def _thinned(figure: Any) -> None:
    """Let the marks of a panel that has very many of them be one picture."""
    for axes in figure.axes:
        offsets = sum(len(group.get_offsets()) for group in axes.collections)
        if offsets + sum(len(line.get_xdata()) for line in axes.lines) > DENSE:
            for mark in (*axes.lines, *axes.collections):
                mark.set_rasterized(True)


def inlined(svg: str, prefix: str, title: str) -> str:
    """An SVG file as an element of a page: with a title, with names of its own, and without what files need.

    Args:
        svg: The file, as matplotlib writes it.
        prefix: Beginning of the names in it, since a page may have several drawings.
        title: Its text for those who do not see it.
    """
    body = _REFERENCE.sub(rf"\g<1>{prefix}-", _UNUSED.sub(" ", svg[svg.index("<svg") :]))
    opening, _, inner = body.partition(">")
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} '
    return (
        f'{head}role="img" aria-labelledby="{prefix}-title"><title id="{prefix}-title">{escape(title)}</title>{inner}'
    )
