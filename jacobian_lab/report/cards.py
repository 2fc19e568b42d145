"""Model cards of saved edits: base, facts, method, metrics, known damage, and ways to load and undo them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr

from jacobian_lab.caching import write_text
from jacobian_lab.catalogue import UNEDITED, method_name
from jacobian_lab.facts.fact import Fact, on_one_line
from jacobian_lab.model.families import EMBEDDED, KNOWN
from jacobian_lab.model.hub import CARD
from jacobian_lab.report.captions import facts_line, meanings
from jacobian_lab.report.paper import METRICS
from jacobian_lab.report.results import Results
from jacobian_lab.report.tables.methods import MORE, further, summaries
from jacobian_lab.report.writing import number

SHOWN = 20
"""Facts that a card lists."""

DAMAGE = ("kl", "top1", "top5", "top10", "neighborhood_success")
"""Metrics of prompts that the edit should leave alone."""


Summaries = Mapping[tuple[str, str], Mapping[str, float]]
"""Mean with its interval by method and metric."""

NOTHING: Mapping[str, float] = dict.fromkeys(("mean", "low", "high"), float("nan"))
"""Summary of what was not measured."""


class Row(NamedTuple):
    """A measure of the base model and of the edited one, in words."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Card:
    """Contents of a model card.

    Attributes:
        form: An adapter (lora), or a whole model (folder).
        model: What the base model was loaded by.
        fingerprint: The base model's fingerprint.
        method: The method.
        facts: The facts.
        layers: Edited layers.
        ridge: λ; none where nothing is solved.
        answers: Measures of the edited facts; empty if nothing was measured.
        damage: Measures of everything else.
        note: How the measures were made.
        others: Further settings by name.
    """

    form: Literal["lora", "folder"]
    model: str
    fingerprint: str
    method: str
    facts: Sequence[Fact]
    layers: Sequence[int] = ()
    ridge: float | None = None
    answers: Sequence[Row] = ()
    damage: Sequence[Row] = ()
    note: str = ""
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """Name of the base model, as transformers takes it."""
        entry = KNOWN.get(self.model.lower())
        return entry.hub or self.model if entry else self.model

    @property
    def of_gguf(self) -> bool:
        """A base model in a GGUF file, which this package reads."""
        return self.model in EMBEDDED or self.model.endswith(".gguf")


def write_card(card: Card, folder: Path) -> Path:
    """Write a card into its folder."""
    write_text(folder / CARD, text_of(card))
    return folder / CARD


def card_of(run: Path | str, form: Literal["lora", "folder"], method: str, facts: Sequence[Fact]) -> Card:
    """Card of an edit that a run holds, with what the run has measured."""
    results, name = Results(run, "edit_table"), method_name(method)
    dataset, config = results.dataset, results.config
    settings, provenance = config["settings"], config["provenance"]
    labels = set(map(str, dataset["fact"].values.tolist()))
    summed = {
        (str(row["method"]), str(row["metric"])): {column: float(row[column]) for column in NOTHING}
        for row in summaries(dataset).to_dict("records")
    }
    names = [*METRICS, *(metric for metric in MORE if metric not in METRICS), *further(dataset)]
    rows = {metric: row for metric in names if (row := _row(summed, metric, name)) is not None}
    perplexity = Row(
        "perplexity of a held-out text", *(f"{_perplexity(dataset, edit):.2f}" for edit in (UNEDITED, name))
    )
    edited = dataset["layer"].values[np.isfinite(dataset["update_norm"].sel(edit=name).values)].tolist()
    return Card(
        form,
        str(provenance["model"]),
        str(settings["model"]),
        name,
        [fact for fact in facts if str(fact.id) in labels],
        edited,
        provenance.get("ridge") if edited else None,
        [row for metric, row in rows.items() if metric not in DAMAGE],
        [*(row for metric, row in rows.items() if metric in DAMAGE), perplexity],
        f"{meanings(dataset)} {facts_line(dataset, [dataset.sizes['fact']], methods=[name])}",
        {"batches": str(settings["edits_per_batch"] or "all facts at once"), "seed": str(settings["seed"])}
        | {f"version of {package}": settings["versions"][package] for package in ("jacobian_lab", "transformers")},
    )


def _row(summed: Summaries, metric: str, method: str) -> Row | None:
    """A metric with its intervals; none where it was not measured."""
    if not np.isfinite(summed.get((method, metric), NOTHING)["mean"]):
        return None
    kinds = {**METRICS, **MORE}
    label = kinds[metric].label if metric in kinds else metric
    cells = [_cell(summed.get((edit, metric), NOTHING)) for edit in (UNEDITED, method)]
    return Row(label, *cells)


def _cell(row: Mapping[str, float]) -> str:
    mean, low, high = (row[name] for name in NOTHING)
    return number(mean) if np.isnan(low) else f"{number(mean)} ({number(low)} to {number(high)})"


def _perplexity(dataset: xr.Dataset, edit: str) -> float:
    return float(dataset["perplexity"].sel(edit=edit)) if edit in dataset["edit"].values else float("nan")


def text_of(card: Card) -> str:
    """A card as Markdown, with the head that the hub reads."""
    parts = [_head(card), _title(card), _facts(card), _making(card), _measures(card), _loading(card), _undoing(card)]
    licence = (
        "State it yourself, in the head of this file (`license:`): it depends on the base model's licence and on yours."
    )
    return "\n\n".join([*parts, f"## Licence\n\n{licence}"]) + "\n"


def _head(card: Card) -> str:
    on_hub = not card.of_gguf and not Path(card.base).exists()
    lines = [
        *([f"base_model: {card.base}"] if on_hub else []),
        f"library_name: {'peft' if card.form == 'lora' else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in ("knowledge-editing", "jacobian-lab", *(["lora"] if card.form == "lora" else []))),
        "# license: yours to state",
    ]
    return "\n".join(["---", *lines, "---"])


def _title(card: Card) -> str:
    count = f"{len(card.facts)} edited fact{'s' if len(card.facts) != 1 else ''}"
    what = (
        "This folder is an adapter: a small change that is added to the base model when it is loaded."
        if card.form == "lora"
        else "This folder is a whole model: the base model with the change in its weights."
    )
    where = f"the MLP output projections of layers {', '.join(map(str, card.layers))}" if card.layers else "MLP weights"
    aim = "It makes the model give new answers to the prompts below; everything else is meant to stay as it was."
    return f"# {Path(card.base).name}, {count}\n\n{what} {aim}\nIt changes {where}."


def _facts(card: Card) -> str:
    rows = [[fact.text, fact.target_true, fact.target_new] for fact in card.facts[:SHOWN]]
    more = len(card.facts) - SHOWN
    return (
        "## Facts\n\n"
        + _table(["prompt", "answer before", "answer now"], rows)
        + (f"\n\nand {more} more." if more > 0 else "")
    )


def _making(card: Card) -> str:
    rows = {
        "base model": card.base,
        "its fingerprint (SHA-256)": card.fingerprint,
        "method": card.method,
        "layers": ", ".join(map(str, card.layers)),
        "λ": "" if card.ridge is None else f"{card.ridge:g}",
        **card.others,
    }
    text = _table(["", ""], [[name, value] for name, value in rows.items() if value])
    return f"## How it was made\n\nWith jacobian_lab.\n\n{text}"


def _measures(card: Card) -> str:
    if not (card.answers or card.damage):
        return "## Quality and damage\n\nNot measured. Evaluate the edit before you rely on it."
    head = ["", "base model", "edited model"]
    return "\n\n".join([
        "## Quality",
        "Shares in %, with 95 % intervals over the facts where there is more than one.",
        _table(head, card.answers),
        "## Known damage",
        "What the edit changed beside its facts. A D_KL of 0 and a Top-10 of 100 mean that nothing changed.",
        _table(head, card.damage),
        "Not measured: other languages, long answers, reasoning, safety.",
        card.note,
    ])


def _loading(card: Card) -> str:
    base = (
        [f'base = jl.load_model("{card.model}").hf']
        if card.of_gguf
        else [f'base = AutoModelForCausalLM.from_pretrained("{card.base}", dtype="auto")']
    )
    imports = "import jacobian_lab as jl" if card.of_gguf else "from transformers import AutoModelForCausalLM"
    if card.form == "lora":
        lines = [f"{imports}; from peft import PeftModel", *base]
        lines += ['model = PeftModel.from_pretrained(base, "this folder, or its name on the hub")']
    else:
        lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", 'name = "this folder, or its name"']
        lines += ["model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)"]
    return "## How to load it\n\n```python\n" + "\n".join(lines) + "\n```"


def _undoing(card: Card) -> str:
    way = (
        "`model.disable_adapter()` is a `with` block without the edit; `model.unload()` gives the base model back."
        if card.form == "lora"
        else f"Load the base model, {card.base}, in place of this folder: the change cannot be taken out of it."
    )
    return f"## How to undo it\n\n{way}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines([head, ["---"] * len(head), *rows]))


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield "| " + " | ".join(on_one_line(cell).replace("|", "\\|") for cell in row) + " |"
