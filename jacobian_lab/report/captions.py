"""Sentences of captions: a run's model and facts, how it was made, and the meaning of its columns."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from jacobian_lab.progress import span
from jacobian_lab.store.run import config_of


def facts_in_cells(total: int, counts: Iterable[Any]) -> str:
    """Number of facts, and how many of them are in the cells of a table."""
    numbers = {int(count) for count in counts}
    fewest, most = min(numbers), max(numbers)
    if fewest == total:
        return f"{total} facts"
    return (
        f"{fewest} of {total} facts in each cell"
        if fewest == most
        else f"{fewest} to {most} of {total} facts in a cell"
    )


def model_name(dataset: xr.Dataset) -> str:
    """Name of a run's model."""
    return short_name(str(config_of(dataset)["provenance"]["model"]))


def short_name(model: str) -> str:
    """Name of a model; of a file or a folder without those that it is in."""
    return Path(model).name if model.endswith(".gguf") or Path(model).is_absolute() else model


def facts_line(dataset: xr.Dataset, counts: Iterable[Any], detail: str = "", methods: Iterable[Any] = ()) -> str:
    """Model, facts, some detail, and how the run was made."""
    facts = facts_in_cells(dataset.sizes["fact"], counts)
    circumstances = ", ".join(_circumstances(config_of(dataset), set(map(str, methods))))
    return f"{model_name(dataset)}, {facts}{detail}. Made with {circumstances}."


def figure_line(dataset: xr.Dataset) -> str:
    """Model, facts, layers and λ of a figure."""
    config, facts = config_of(dataset), config_of(dataset)["provenance"]["facts"]
    layers, ridge = config["settings"]["layers"], config["provenance"].get("ridge")
    source = " ".join(filter(None, (Path(facts["source"]).name, facts["slice"])))
    solved = f", λ = {ridge:g}" if ridge is not None and "ridges" not in config["settings"] else ""
    return f"{model_name(dataset)}, {dataset.sizes['fact']} facts ({source}), layers {span(layers)}{solved}."


def facts_of(dataset: xr.Dataset, counts: Iterable[Any], methods: Iterable[Any] | None = None) -> str:
    """`facts_line` of a table of methods, which says where its facts are from."""
    source = Path(config_of(dataset)["provenance"]["facts"]["source"]).name
    return facts_line(dataset, counts, f", of {source}", dataset["edit"].values if methods is None else methods)


def _circumstances(config: dict[str, Any], methods: set[str]) -> Iterator[str]:
    """Settings that apply to a run, as far as its configuration has them."""
    settings, provenance = config["settings"], config["provenance"]
    descents = settings.get("anchor", {}).get("dtype", settings["dtype"])
    yield settings["dtype"] + (f" (anchors in {descents})" if descents != settings["dtype"] else "")
    if "chat" in settings:
        yield "prompts in the model's chat template"
    if "ridge" in provenance:
        if "ridges" not in settings:
            yield f"λ = {provenance['ridge']:g}"
        if "corpus" in provenance:
            yield _moments(settings["corpus"], Path(provenance["corpus"]).name)
    if "templates" in settings:
        count = sum(map(len, settings["templates"]))
        yield f"{count} context template{'s' if count > 1 else ''} ({Path(provenance['templates']).name})"
    if "edits_per_batch" in settings:
        size = settings["edits_per_batch"]
        when = "measured on the way" if "sequence" in settings else "measured after the last batch"
        yield f"closed-form edits in {f'batches of {size}, {when}' if size else 'one batch'}"
    if settings.get("sequence", {}).get("old_keys") == "drop":
        yield "without the keys of earlier batches"
    for name, training in settings.get("training", {}).items():
        if name in methods:
            size = training.get("edited_at_once")
            manner = "fact by fact" if size == 1 else f"in batches of {size or 'its own'}"
            yield f"{name} {manner}"


def _moments(settings: dict[str, Any], name: str) -> str:
    """Source of C."""
    if "published" in settings:
        return f"C as published ({name})"
    return f"C of {name} ({f'{tokens:,} tokens' if (tokens := settings['tokens']) else 'whole'})"


def meanings(dataset: xr.Dataset) -> str:
    """Meaning of the columns of a table of methods."""
    counterfact = config_of(dataset)["settings"]["metrics"] == "counterfact"
    success = "the new answer before the true one" if counterfact else "share of the answer's tokens, teacher forced"
    return (
        f"In the columns, success: {success}; accuracy: every token of the answer the argmax, teacher forced; D_KL and "
        "Top-k: of the next token after neighbourhood prompts, against the unedited model."
    )
