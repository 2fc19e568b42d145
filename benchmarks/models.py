"""Several models side by side, from finished runs, a table at a time.

    python benchmarks/models.py theory runs/smollm2-schemes runs/qwen-schemes --out runs/models
    python benchmarks/models.py methods runs/smollm2-dividing runs/smollm2-fe --methods memit memit+fe --out runs/models
    python benchmarks/models.py choices runs/locate-smollm2 runs/tune-smollm2 --out runs/models
    python benchmarks/models.py costs runs/locate-smollm2 runs/tune-smollm2 --out runs/models

``theory`` has the theorems and what schemes leave, ``methods`` the metrics of methods at the settings of their runs,
``choices`` what tracing and tuning chose, ``costs`` time and memory. Prints the table in Markdown, and writes it and
the same numbers as CSV to a folder.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from jacobian_lab.model.protocols import Protocol
from jacobian_lab.report.captions import model_name
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.tables.locating import decisive_window
from jacobian_lab.report.tables.methods import cell_text, labels, summaries
from jacobian_lab.store.run import config_of, open_run

SCHEMES = ("backward-dividing", "forward-replay", "coordinated-replay")
ROWS = {
    "theorem2.csv": (
        "S ≻ 0, share of facts",
        "undecided, share of facts",
        "λ_min of S",
        "positive eigenvalues of S, share",
        *(f"{scheme}: share of facts with cos(Jδ, δ) > 0" for scheme in SCHEMES),
    ),
    "theorem1.csv": (
        *(f"{scheme}: eigen-residual sin∠(Jδ, δ)" for scheme in SCHEMES),
        "random directions: eigen-residual",
        *(f"{scheme}: angle to the nearest eigenvector, °" for scheme in SCHEMES),
        "random directions: angle to the nearest eigenvector, °",
    ),
    "table1.csv": ("backward-dividing",),
    "table2.csv": ("backward-dividing", "backward-full"),
    "table5.csv": (*SCHEMES[1:], *(f"{scheme}, against the optimised target" for scheme in SCHEMES[1:])),
    "effort.csv": (
        *(f"{scheme}: share of the effort" for scheme in SCHEMES),
        *(f"{scheme}: share of the residual out of reach" for scheme in SCHEMES),
    ),
}
"""Rows of a run of schemes, by table; what no run has is left out."""
PREFIXES = {"table1.csv": "cosine with R_L, ", "table2.csv": "left of the residual, ", "table5.csv": "left, "}
WIDTH = 5
"""Layers of the window that tracing is asked for."""
SHOWN = ("efficacy_accuracy", "generalization_accuracy", "kl", "top10")


class Side(NamedTuple):
    """A table of several models.

    Attributes:
        caption: The line above it.
        frame: Its cells, as they are read.
        numbers: The same as numbers.
    """

    caption: str
    frame: pd.DataFrame
    numbers: pd.DataFrame


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--methods", nargs="+", help="methods of the table methods; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    options = parser.parse_args()
    if options.methods and options.table != "methods":
        parser.error(f"expected --methods with the table methods, got it with {options.table}: leave it out")
    side = methods(options.runs, options.methods) if options.methods else TABLES[options.table](options.runs)
    text = f"{side.caption}\n\n{side.frame.to_markdown(index=False, disable_numparse=True)}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.table}.md").write_text(text, "utf-8")
    side.numbers.to_csv(options.out / f"{options.table}.csv", index=False)
    sys.stdout.write(text)


def theory(folders: list[Path]) -> Side:
    """Theorems 1 and 2 and what schemes leave, layer by layer, a column a model."""
    numbers = pd.concat([_theory(folder) for folder in folders], ignore_index=True)
    cells = numbers.groupby(["row", "model"], sort=False)["mean"].agg(
        lambda means: " · ".join(map("{:.2f}".format, means))
    )
    frame = cells.unstack("model").reindex(index=numbers["row"].unique(), columns=numbers["model"].unique()).fillna("")
    spans = numbers.groupby("model")["layer"].agg(["min", "max"])
    heads = {model: f"{model}, layers {first}–{last}" for model, first, last in spans.itertuples()}
    counts = " or ".join(str(count) for count in sorted(set(numbers["count"].astype(int))))
    caption = (
        f"Means over {counts} facts at the decisive layers, from the first on; what concerns J ends before the last. "
        "R_L is the residual at the last layer. Intervals stand in the CSV file."
    )
    return Side(caption, frame.rename(columns=heads).reset_index(), numbers)


def _theory(folder: Path) -> pd.DataFrame:
    parts = []
    for file, names in ROWS.items():
        if (folder / file).is_file():
            table = pd.read_csv(folder / file)
            parts.append(table[table["row"].isin(names)].assign(row=PREFIXES.get(file, "") + table["row"]))
    columns = ["row", "layer", "mean", "low", "high", "median", "count"]
    return pd.concat(parts)[columns].assign(model=model_name(open_run(folder)))


def methods(folders: list[Path], only: Sequence[str] = ()) -> Side:
    """Metrics of methods, each at the settings of its run."""
    numbers = pd.concat([_methods(folder) for folder in folders], ignore_index=True)
    numbers = numbers[numbers["method"].isin(only)] if only else numbers
    heads, rows = ["model", "method", "layers", "λ", "run"], []
    for key, part in numbers.groupby(heads, sort=False):
        cells = {row["metric"]: cell_text(row, METRICS[row["metric"]]) for row in part.to_dict("records")}
        rows.append([*key, *map(cells.get, SHOWN)])
    columns = [*heads, *labels({name: METRICS[name] for name in SHOWN})]
    caption = (
        f"{numbers['count'].max():.0f} facts, edited in one batch; shares × 100, D_KL in nats; mean [95 % bootstrap "
        "interval over facts]. AlphaEdit and EMMET have constants in λ's place."
    )
    return Side(caption, pd.DataFrame(rows, columns=columns), numbers)


def _methods(folder: Path) -> pd.DataFrame:
    run = open_run(folder)
    frame = summaries(run)
    frame = frame[frame["metric"].isin(SHOWN) & (frame["method"] != "unedited") & frame["mean"].notna()]
    ridge = f"{config_of(run)['provenance']['ridge']:.3g}"
    span = _span(config_of(run)["settings"]["layers"])
    return frame.assign(model=model_name(run), layers=span, λ=ridge, run=folder.name)


def choices(folders: list[Path]) -> Side:
    """Layers that tracing points to, and settings that tuning chose."""
    rows = [row for folder in folders for row in _choices(folder)]
    numbers = pd.DataFrame(rows, columns=["model", "by", "layers", "λ", "lr", "passes", "because"])
    caption = "Layers and settings, by tracing and by tuning. The reasons stand in the CSV file."
    return Side(caption, numbers.drop(columns="because"), numbers)


def _choices(folder: Path) -> Iterator[list[str]]:
    run = open_run(folder)
    if (folder / "locate.csv").is_file():
        reason = f"the {WIDTH} layers whose MLPs bring most back at the subject's last token"
        yield [model_name(run), "locate", _span(decisive_window(run, WIDTH)), "", "", "", reason]
    for path in sorted(folder.glob("protocol-*.json")):
        protocol = Protocol.read(path)
        settings = (f"{protocol.ridge:.3g}", f"{protocol.anchor_lr:g}", str(protocol.anchor_steps))
        yield [protocol.model, f"tune, {protocol.method}", _span(protocol.layers), *settings, protocol.because]


def costs(folders: list[Path]) -> Side:
    """Time and memory of whole runs."""
    rows = []
    for folder in folders:
        took = json.loads((folder / "costs.json").read_text("utf-8"))
        facts = open_run(folder).sizes["fact"]
        seconds, peak = took["took_seconds"], took["peak_bytes"] / 2**30
        rows.append([model_name(open_run(folder)), folder.name, facts, seconds, seconds / facts, peak])
    numbers = pd.DataFrame(rows, columns=["model", "run", "facts", "seconds", "seconds a fact", "peak, GiB"])
    rounded = {"seconds": "{:.0f}".format, "seconds a fact": "{:.1f}".format, "peak, GiB": "{:.2f}".format}
    frame = numbers.assign(**{name: numbers[name].map(text) for name, text in rounded.items()})
    return Side("Seconds of the last call that computed something, and peak memory.", frame, numbers)


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]}–{layers[-1]}"


TABLES: Mapping[str, Callable[[list[Path]], Side]] = {
    "theory": theory,
    "methods": methods,
    "choices": choices,
    "costs": costs,
}

if __name__ == "__main__":
    main()
