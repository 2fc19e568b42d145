"""What captions say of a run: its model and facts, how it was made, what its columns are."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xarray as xr


def facts_in_cells(total: int, counts: Iterable[Any]) -> str:
    """What a caption says of how many facts a table is made of."""
    held = {int(count) for count in counts}
    fewest, most = min(held), max(held)
    if fewest == total:
        return f"{total} facts"
    return (
        f"{fewest} of {total} facts in each cell"
        if fewest == most
        else f"{fewest} to {most} of {total} facts in a cell"
    )


def model_name(dataset: xr.Dataset) -> str:
    """What a caption calls the model."""
    return str(dataset.attrs["config"]["provenance"]["model"])


def facts_line(dataset: xr.Dataset, counts: Iterable[Any], middle: str = "median") -> str:
    """What a caption says of model, facts, cells with medians, and how the run was made."""
    facts = facts_in_cells(dataset.sizes["fact"], counts)
    return f"{model_name(dataset)}, {facts}, mean [95 % bootstrap interval] ({middle}). {made_with(dataset)}"


def facts_of(dataset: xr.Dataset, counts: Iterable[Any], methods: Iterable[str] | None = None) -> str:
    """What a caption says of model, facts, cells, and how the run was made."""
    source = Path(dataset.attrs["config"]["provenance"]["facts"]["source"]).name
    facts = facts_in_cells(dataset.sizes["fact"], counts)
    shown = dataset["edit"].values if methods is None else methods
    return f"{model_name(dataset)}, {facts}, of {source}. {made_with(dataset, map(str, shown))}"


def made_with(dataset: xr.Dataset, methods: Iterable[str] = ()) -> str:
    """What a caption says of how a run was made, as far as its configuration says it: only what applies."""
    return f"Made with {', '.join(_circumstances(dataset.attrs['config'], set(methods)))}."


def _circumstances(config: dict[str, Any], methods: set[str]) -> Iterator[str]:
    settings, known = config["settings"], config["provenance"]
    descents = settings.get("anchor", {}).get("dtype", settings["dtype"])
    yield settings["dtype"] + (f" (anchors in {descents})" if descents != settings["dtype"] else "")
    if "chat" in settings:
        yield "prompts in the model's chat template"
    if "ridge" in known:
        if "ridges" not in settings:
            yield f"λ = {known['ridge']:g}"
        if "corpus" in known:
            yield _moments(settings["corpus"], Path(known["corpus"]).name)
    if "templates" in settings:
        count = sum(map(len, settings["templates"]))
        yield f"{count} context template{'s' if count > 1 else ''} ({Path(known['templates']).name})"
    if "edits_per_batch" in settings:
        size = settings["edits_per_batch"]
        yield f"closed-form edits in {f'batches of {size}, measured after the last batch' if size else 'one batch'}"
    for name, training in settings.get("training", {}).items():
        if name in methods:
            size = training.get("edited_at_once")
            each = "fact by fact" if size == 1 else f"in batches of {size or 'its own'}"
            yield f"{name} {each}"


def _moments(settings: dict[str, Any], name: str) -> str:
    """What a caption says of C."""
    if "published" in settings:
        return f"C as published ({name})"
    return f"C of {name} ({f'{tokens:,} tokens' if (tokens := settings['tokens']) else 'whole'})"


def meanings(dataset: xr.Dataset) -> str:
    """What a caption says of the columns of methods."""
    counterfact = dataset.attrs["config"]["settings"]["metrics"] == "counterfact"
    success = "the new answer before the true one" if counterfact else "share of the answer's tokens, teacher forced"
    return (
        f"In the columns, success: {success}; accuracy: every token of the answer the argmax, teacher forced; D_KL and "
        "Top-k: of the next token after neighbourhood prompts, against the unedited model."
    )
