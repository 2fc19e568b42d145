"""Edits of a model whose MLPs have a norm behind them, beside the same edits as if there were none.

The naive edit optimizes shifts of the stream and takes them for changes of u, the output of the MLP's projection.
Prints the table's rows, and writes them as CSV and, with what they were made with, as JSON.

    python benchmarks/behind_a_norm.py --model gemma-3-270m-q4_k_m.gguf --layers 3-7
        --facts counterfact_2000.json --corpus wikitext2_600.txt --out benchmarks/results/behind-a-norm
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import jacobian_lab as jl
from jacobian_lab.caching import file_digest
from jacobian_lab.catalogue import METHODS
from jacobian_lab.editing.layers import Setting
from jacobian_lab.editing.measures import ObservedEdit, measure
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.editing.second_moments import second_moments
from jacobian_lab.editing.solving import suited_ridge
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.model.corpus import load_corpus
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.parallel.executor import SERIAL
from jacobian_lab.session.descents import InMemory
from jacobian_lab.session.session import Session

EDITS = {"onelayer": "one layer", "memit": "dividing", "memit+fe": "forward replay", "memit+cr": "coordinated replay"}
WAYS = ("behind the norm", "norm ignored")
MET = 0.1
"""A descent whose loss is below this, in nats, has given the answer."""
METRICS = {
    "efficacy": "efficacy_accuracy",
    "generalisation": "generalization_accuracy",
    "kl": "kl",
    "top1": "top1",
    "top10": "top10",
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", default="builtin")
    parser.add_argument("--slice", default="0:12")
    parser.add_argument("--layers", required=True, help="the first and the last, as in 3-7")
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--corpus", default="python-docs")
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--lr", type=float, help="in units of rms(u); the model's default by default")
    parser.add_argument("--naive-lr", type=float, default=0.5, help="in units of the stream")
    parser.add_argument("--clamp", type=float, default=0.75)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--methods", nargs="+", default=list(EDITS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, help="name of the two files, without an ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, notes = [], dict[str, Any]()
    for row in measured(options, notes):
        rows.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        if options.out is not None:
            write(options, notes, rows)


def measured(options: argparse.Namespace, notes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Edit with every method, behind the norm and as if there were none.

    Args:
        options: The options.
        notes: Filled with what the edits are made with.

    Yields:
        A row of the table.
    """
    model, facts = jl.load_model(options.model, device="cpu"), jl.load_facts(options.facts, options.slice)
    first, last = map(int, options.layers.split("-"))
    layers = tuple(range(first, last + 1))
    bare, contexts = jl.sample_templates(model, seed=0)
    rows = jl.fact_rows(model, facts, (bare, contexts[: options.contexts - 1]))
    moments = second_moments(model, load_corpus(options.corpus), layers, tokens=options.tokens)
    eases = Setting(rows, moments.matrices, 0.0).eases(layers)
    ridge, evaluator = suited_ridge(eases), Evaluator.of(model, facts)
    evaluator.remember(SERIAL)  # the unedited model's answers
    usual = jl.AnchorSettings.of(model)
    notes |= {
        "model": Path(model.name).name,
        "fingerprint": model.fingerprint,
        "sha256": file_digest(Path(options.model)) if Path(options.model).is_file() else "",
        "layers": layers,
        "facts": len(facts),
        "tokens": moments.tokens,
        "eases": eases.median(0).values.tolist(),
        "ridge": ridge,
        "torch": torch.__version__,
    }
    ways = {
        WAYS[0]: (model, options.lr or usual.lr),
        WAYS[1]: (without_norm(model), options.naive_lr),
    }
    for way in options.ways:
        edited, lr = ways[way]
        settings = replace(usual, lr=lr, steps=options.steps, clamp=options.clamp)
        notes[way] = asdict(settings)
        own = replace(rows, model=edited)
        session = Session(own, layers, settings, lambda: moments.matrices, fixed_ridge=ridge, progress=False)
        recorder = Losses()
        for name in options.methods:
            begin = time.perf_counter()
            targets = session.targets(recorder, (METHODS[name].scheme,))
            between = time.perf_counter()
            yield {
                "edit": EDITS.get(name, name),
                "way": way,
                **edited_row(session, name, targets, evaluator),
                "met": recorder.met(METHODS[name].scheme, layers),
                "descent_seconds": round(between - begin, 1),
                "edit_seconds": round(time.perf_counter() - between, 1),
            }


def edited_row(session: Session, name: str, targets: Targets, evaluator: Evaluator) -> dict[str, Any]:
    """Edit with one method and ask.

    Args:
        session: What the edit is made with.
        name: The method.
        targets: The targets.
        evaluator: The questions.

    Returns:
        Shares × 100, D_KL in nats, and each layer's means over facts.
    """
    edits = list[ObservedEdit]()
    scheme = jl.SCHEMES[METHODS[name].scheme]
    with session.edited(name, targets, look_on=edits.append):
        answers = [fact for _, part in evaluator.answers() for fact in part]
    values = measure(edits, targets, scheme)
    row: dict[str, Any] = {}
    for column, metric in METRICS.items():
        means = torch.tensor([
            torch.tensor(fact[metric], dtype=torch.float64).mean() for fact in answers if metric in fact
        ])
        row[column] = round(float(means.nanmean()) * (1 if metric == "kl" else 100), 4)
    for quantity in ("out_of_reach", "unrealised", "price"):
        row[quantity] = [round(value, 6) for value in values[quantity].nanmean(0).tolist()]
    row["update_norm"] = [round(edit.update_norm, 4) for edit in edits]
    return row


def without_norm(model: LanguageModel) -> LanguageModel:
    """The model as somebody has it who does not know of its norm.

    Args:
        model: The model.

    Returns:
        The same weights under another family.
    """
    return replace(model, family=replace(model.family, output_norm=""))


class Losses(InMemory):
    """A recorder that keeps the losses too."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[tuple[str, Any], list[float]] = {}

    def put(self, name: str, where: Any, facts: Sequence[int], optimized: Any) -> None:
        """Hold a batch and its losses."""
        super().put(name, where, facts, optimized)
        self.losses.setdefault((name, where.get("anchor_layer")), []).extend(optimized[1].tolist())

    def met(self, scheme: str, layers: Layers) -> int:
        """Number of facts whose descent has given the answer, of those that a scheme's targets come from."""
        kind = jl.SCHEMES[scheme].kind
        places = {"optimised": ("anchor", layers[-1]), "replayed": ("anchor", layers[0])}
        return sum(loss < MET for loss in self.losses[places.get(kind, ("coordinated_shift", None))])


def write(options: argparse.Namespace, notes: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the rows so far.

    Args:
        options: The options.
        notes: What the edits are made with.
        rows: The rows.
    """
    said = {name: value for name, value in vars(options).items() if name not in {"out", "model", "corpus", "facts"}}
    said |= {name: Path(getattr(options, name)).name for name in ("model", "corpus", "facts")}
    text = json.dumps({"options": said, "made_with": notes, "rows": rows}, indent=1, ensure_ascii=False)
    options.out.with_suffix(".json").write_text(text + "\n", "utf-8")
    with options.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow({name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()})


if __name__ == "__main__":
    main()
