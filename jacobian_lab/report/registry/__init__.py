"""Registry of tables and figures: for each the kinds of run, the variables, the command and the function that make it.

The same rows serve the command line, the scripts in ``analyses/`` and ``figures/``, and `Results`. Figures are drawn by
`jacobian_lab.report.figures`, which is imported when the first one is.
"""

from collections.abc import Mapping

from jacobian_lab.report.entries import FigureEntry, TableEntry
from jacobian_lab.report.registry import figures, sequence, tables, transfer

TABLES: Mapping[str, TableEntry] = tables.TABLES | transfer.TABLES | sequence.TABLES
"""Tables by name: files, scripts in ``analyses/`` and, with a dash for the underscore, commands are called the same."""

FIGURES: Mapping[str, FigureEntry] = figures.FIGURES | transfer.FIGURES | sequence.FIGURES
"""Figures by name: their files and the scripts in ``figures/`` are called the same."""
