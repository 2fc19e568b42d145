"""One method in several runs of the same facts, whose settings differ: each run's means, and paired differences.

Prints a table in Markdown, and writes it to a folder.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from jacobian_lab.report.intervals import intervals
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.methods import by_fact, cell_text, column, labels
from jacobian_lab.store.run import config_of, open_run

SHOWN = ("efficacy_accuracy", "generalization_accuracy", "kl", "top10")


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="the runs; differences are taken to the first")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    options = parser.parse_args()
    datasets = {folder.name: open_run(folder) for folder in options.runs}
    first, *others = datasets.values()
    for other in others:
        if config_of(other)["settings"]["facts"] != config_of(first)["settings"]["facts"]:
            sys.exit("expected runs of the same facts, got others: give runs of one file and slice")
    rows = {}
    for method in options.methods:
        for name, dataset in datasets.items():
            if bool(dataset["measured"].sel(edit=method)):
                rows[f"{method}, {name}"] = cells(dataset, None, method)
                if dataset is not first and bool(first["measured"].sel(edit=method)):
                    rows[f"{method}, {name} − {options.runs[0].name}"] = cells(dataset, first, method)
    kinds = {name: METRICS[name] for name in SHOWN}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=labels(kinds)).rename_axis("method, run")
    text = (
        f"The same {first.sizes['fact']} facts in runs whose settings differ; below a run, the paired difference: "
        f"shares × 100, D_KL in nats; mean [95 % bootstrap interval over facts].\n\n{frame.to_markdown()}\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "across_runs.md").write_text(text, "utf-8")
    sys.stdout.write(text)


def cells(dataset: xr.Dataset, against: xr.Dataset | None, method: str) -> list[str]:
    """One row: a method's means, or how far they are from another run's."""
    texts = []
    for name in SHOWN:
        values = column(dataset, name).sel(edit=method)
        if against is not None:
            values = values - column(against, name).sel(edit=method)
        sums, weights = by_fact(values, METRICS[name])
        (row,) = intervals(np.stack([sums]), np.stack([weights]), 0).to_dict("records")
        texts.append(cell_text(row, METRICS[name], "" if against is None else "+"))
    return texts


if __name__ == "__main__":
    main()
