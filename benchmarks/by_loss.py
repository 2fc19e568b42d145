"""Facts answered, and paraphrases, by the loss that each fact's own anchor at the first layer has left.

Prints a table in Markdown, and writes it into the run's folder: is a scheme better, or its descent easier?
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from jacobian_lab.report.tables.methods import column
from jacobian_lab.store.run import open_run

BOUNDS = (0.1, 0.2, np.inf)
SHOWN = {"efficacy_accuracy": "efficacy accuracy", "generalization_accuracy": "generalisation accuracy"}


def main() -> None:
    """Group, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of edit-table")
    parser.add_argument("--methods", nargs="+", required=True)
    options = parser.parse_args()
    dataset = open_run(options.run)
    if missing := [name for name in options.methods if name not in dataset["edit"]]:
        sys.exit(f"expected methods of {options.run}, got {missing[0]}: give some of {list(dataset['edit'].values)}")
    losses = dataset["anchor_loss"].isel(anchor_layer=0).values
    layer = int(dataset["anchor_layer"].values[0])
    rows = {}
    for lower, upper in zip((0.0, *BOUNDS), BOUNDS, strict=False):
        among = (losses > lower) & (losses <= upper)
        label = f"above {lower:g}" if np.isinf(upper) else f"up to {upper:g}"
        rows[label] = {"facts": f"{among.sum()}"} | {
            f"{method}: {title}": f"{100 * column(dataset, name).sel(edit=method).values[among].mean():.0f}"
            for method in options.methods
            for name, title in SHOWN.items()
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(f"loss at layer {layer}")
    text = (
        "Shares × 100 of facts, and of their paraphrases, whose new answer is the argmax at every token, by the loss "
        f"of the fact's own anchor at layer {layer}. {dataset.sizes['fact']} facts.\n\n{frame.to_markdown()}\n"
    )
    (options.run / "by_loss.md").write_text(text, "utf-8")
    frame.to_csv(options.run / "by_loss.csv")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
