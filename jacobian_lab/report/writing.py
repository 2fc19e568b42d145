"""Tables as files, each there whole or not at all: Markdown, LaTeX and CSV."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from jacobian_lab.caching import write_text

LATEX = str.maketrans({
    "δ": r"$\delta$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "μ": r"$\mu$",
    "β": r"$\beta$",
    "‖": r"$\|$",
    "∠": r"$\angle$",
    "≻": r"$\succ$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "ᵀ": r"$^\top$",
    "⁻": "$^-$",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": "$-$",
    "–": "--",
    "⟪": r"\textbf{",
    "⟫": "}",
    "’": "'",
})
"""What pdfLaTeX has no letters for."""


def facts_in_cells(total: int, counts: Iterable[Any]) -> str:
    """What a caption says of how many facts a table is made of.

    Args:
        total: The facts of the run.
        counts: For each cell, how many of them have a value.

    Returns:
        Such as "32 facts", "29 of 32 facts in each cell" or "29 to 31 of 32 facts in a cell".
    """
    held = {int(count) for count in counts}
    fewest, most = min(held), max(held)
    if fewest == total:
        return f"{total} facts"
    return (
        f"{fewest} of {total} facts in each cell"
        if fewest == most
        else f"{fewest} to {most} of {total} facts in a cell"
    )


def write_csv(path: Path, frame: pd.DataFrame, *, index: bool = False) -> None:
    """Write a table as CSV.

    Args:
        path: The file.
        frame: The table.
        index: Whether its row labels are a column.
    """
    write_text(path, frame.to_csv(index=index))


def write_table(stem: Path, frame: pd.DataFrame, caption: str, bold: pd.DataFrame | None = None) -> str:
    """Write a table as Markdown and LaTeX.

    Args:
        stem: Path without ending.
        frame: The table.
        caption: What is in it.
        bold: Which of its cells, texts, stand in bold.

    Returns:
        The Markdown.
    """
    marked = frame if bold is None else frame.where(~bold, "**" + frame + "**")
    text = f"{caption}\n\n{marked.to_markdown()}\n"
    write_text(stem.with_suffix(".md"), text)
    escaped = re.sub(r"[%&#$_{}]", lambda found: "\\" + found[0], caption)
    marked = frame if bold is None else frame.where(~bold, "⟪" + frame + "⟫")
    latex = marked.to_latex(escape=True, caption=escaped, position="t").translate(LATEX)
    write_text(stem.with_suffix(".tex"), latex)
    return text.rstrip()
