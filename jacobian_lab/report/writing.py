"""Tables as text and as files, each of which is written whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.caching import write_text
from jacobian_lab.store.run import config_of

ESCAPES = str.maketrans({
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "%&#$_{}"},
})
LETTERS = str.maketrans({
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
    "¹": "$^1$",
    "²": "$^2$",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": "$-$",
    "–": "--",
    "’": "'",
    "|": "$|$",
    "<": "$<$",
    ">": "$>$",
})
"""Letters that pdfLaTeX lacks, or has otherwise in its oldest fonts."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet takes for a formula."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table that has been computed.

    Attributes:
        frame: The table as it is read.
        note: Part of its caption that is this run's: model, facts, source of the paper's rows.
        numbers: The same as numbers, for the CSV file; by default the frame.
        bold: Mask of the cells, which are texts then, in bold.
    """

    frame: pd.DataFrame
    note: str = ""
    numbers: pd.DataFrame | None = None
    bold: pd.DataFrame | None = None


def number(value: float, decimals: int | None = None, sign: str = "") -> str:
    """A number in a cell."""
    if np.isnan(value):
        return ""
    if decimals is None and 0 < abs(value) < 0.005:
        return f"{value:{sign}.1e}"
    return f"{value:{sign}.{2 if decimals is None else decimals}f}"


def with_interval(row: Mapping[Any, Any], decimals: int | None = None, sign: str = "", mean: str = "mean") -> str:
    """A mean in a cell with its interval, where it has one."""
    middle, low, high = (number(row[name], decimals, sign) for name in (mean, "low", "high"))
    return f"{middle} [{low}, {high}]" if low else middle


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV."""
    write_text(path, frame.rename(columns=_literal).map(_literal).to_csv(index=False))


def _literal(cell: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would compute, or that has one before such a text."""
    if not isinstance(cell, str) or not cell.lstrip("'").startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _one_line(cell: Any) -> Any:
    return " ".join(cell.split()) if isinstance(cell, str) else cell


def _relabelled(frame: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """Change cells, labels and names of a table."""
    return frame.map(change).rename(index=change, columns=change).rename_axis(index=change, columns=change)


def write_table(stem: Path, frame: pd.DataFrame, caption: str, bold: pd.DataFrame | None = None) -> str:
    """Write a table as Markdown, which is returned, and as LaTeX."""
    text = markdown(frame, caption, bold)
    write_text(stem.with_suffix(".md"), text + "\n")
    write_text(stem.with_suffix(".tex"), latex(frame, caption, bold))
    return text


def markdown(frame: pd.DataFrame, caption: str, bold: pd.DataFrame | None = None) -> str:
    """Caption and cells of a table in Markdown."""
    marked = frame if bold is None else frame.where(~bold, "**" + frame + "**")
    return f"{_one_line(caption)}\n\n{_relabelled(marked, _markdown).to_markdown()}".strip()


def _markdown(cell: Any) -> Any:
    """Escape a bar or the end of a line, either of which would end a cell of a Markdown table."""
    return _one_line(cell).replace("|", r"\|") if isinstance(cell, str) else cell


def latex(frame: pd.DataFrame, caption: str, bold: pd.DataFrame | None = None) -> str:
    """A table for pdfLaTeX, with booktabs."""
    frame, caption = _relabelled(frame, _one_line), _one_line(caption)
    styler = frame.style.format(escape="latex", precision=6, na_rep="NaN")
    styler = styler.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    if bold is not None:
        styler = styler.apply(lambda _: np.where(bold, "textbf:--rwrap", ""), axis=None)
    text = styler.to_latex(caption=caption.translate(ESCAPES), position="t", hrules=True)
    return text.translate(LETTERS)


DEGREES = 180 / np.pi


def below_last(dataset: xr.Dataset) -> xr.Dataset:
    """Select the layers l below the last decisive one, L, where J_{l→L} says something."""
    last = max(config_of(dataset)["settings"]["layers"])
    return dataset.sel(layer=[layer for layer in dataset["layer"].values if layer < last])


def schemes_with(dataset: xr.Dataset, variable: str) -> list[str]:
    """List the schemes that a variable has a value of."""
    return [str(name) for name in dataset["scheme"].values if np.isfinite(dataset[variable].sel(scheme=name)).any()]


def listed(phrases: Sequence[str]) -> str:
    """Join phrases with commas, and the last with "and"."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def seed_of(dataset: xr.Dataset) -> int:
    """The seed that a run was made with; its intervals are resampled with it too."""
    return int(config_of(dataset)["settings"]["seed"])
