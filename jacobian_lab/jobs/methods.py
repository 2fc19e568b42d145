"""Every method under the same anchors, keys and seeds, evaluated by the paper's metrics: Tables 3, 4, 6 and 7."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.caching import content_key
from jacobian_lab.editing.deltas import DELTA, FOLDER, save_delta, save_model
from jacobian_lab.editing.layers import restored
from jacobian_lab.editing.methods import METHODS, PAIRS, UNEDITED, MethodEdit, edit_with, method, method_name
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.editing.solving import Eigh, null_space
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.metrics import check_questions, evaluate, greedy_matches, neighborhood_states, perplexity
from jacobian_lab.evaluation.questions import STYLES, neighborhood, paraphrases, probe_groups, style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.config import EditingConfig
from jacobian_lab.jobs.setup import Experiment, prepare
from jacobian_lab.jobs.shared import read_anchors, store_anchors, usable_moments
from jacobian_lab.model.corpus import DOCSTRINGS, load_corpus, token_rows
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.progress import bar
from jacobian_lab.store.run import Run, check_folder, marked, unfinished, whole

FACTS_AT_ONCE = 32
"""Facts whose final states are held at once while a model is evaluated."""

AUTO = "auto"
NO_PROBES = "none"
"""What the dimension of further questions holds where there are none: one group that stays empty."""

PAPER_METHODS = tuple(name for name in METHODS if name != "blue-refit")
SAVES = ("delta", "folder", "both")


@dataclass(frozen=True)
class EvaluationConfig(EditingConfig, RuleSettings):
    """How methods edit, and how an edited model is evaluated.

    Attributes:
        edits_per_batch: Facts that are edited jointly; all of them by default, else one batch after the other.
        metrics: Whose definition of Success: counterfact (before the true answer), zsre (share of tokens), or auto:
            counterfact where every fact has a true answer.
        greedy: Whether Accuracy is checked by real greedy decoding.
        held_out: Text whose perplexity is taken, named as --corpus is.
        held_out_tokens: Tokens of it.
    """

    edits_per_batch: int | None = None
    metrics: str = AUTO
    greedy: bool = True
    held_out: str = DOCSTRINGS
    held_out_tokens: int = 2048


@dataclass(frozen=True)
class EditTableConfig(EvaluationConfig):
    """Edit with every method of the paper and evaluate: Tables 3, 4, 6 and 7.

    Whatever is not given suits the model at hand.

    Attributes:
        methods: Methods, or pairs rule@scheme; the unedited model always comes first.
    """

    methods: tuple[str, ...] = PAPER_METHODS


@dataclass(frozen=True)
class EditConfig(EvaluationConfig):
    """Edit facts with one method, evaluate, and save the edited model.

    Whatever is not given suits the model at hand.

    Attributes:
        method: The method, or a pair rule@scheme.
        save: delta (delta-<method>.safetensors, for jacobian-lab apply), folder (model-<method>, for transformers), or
            both.
    """

    method: str = "memit+fe"
    save: str = "delta"


@dataclass(frozen=True, eq=False)
class _Bench:
    """What every method is evaluated on.

    Attributes:
        experiment: Model and facts.
        style: Whose definition of Success.
        held_out: Rows of the held-out text.
        settings: Everything that decides a number of the run.
    """

    experiment: Experiment
    style: str
    held_out: Sequence[Prompt]
    settings: Mapping[str, Any]


def run_edit_table(config: EditTableConfig, *, progress: bool = True) -> Path:
    """Edit with each method and evaluate it; an interrupted run goes on, a finished one computes nothing.

    Anchors are optimised once for each anchor layer and shared; the weights are put back after every method.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    if not config.methods:
        raise InputError(f"expected at least one method of {', '.join(METHODS)}, got none: name one after --methods")
    return _run(config, tuple(dict.fromkeys(map(_edited, config.methods))), None, progress)


def run_edit(config: EditConfig, *, progress: bool = True) -> Path:
    """Edit with one method, evaluate it, and save the edited model into the run's folder.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder, with what `saved_paths` names in it.

    Raises:
        InputError: If anything cannot be used.
    """
    if config.save not in SAVES:
        raise InputError(f"expected --save of {', '.join(SAVES)}, got {config.save!r}: choose one of them")
    return _run(config, (_edited(config.method),), config.save, progress)


def saved_paths(folder: Path, name: str, save: str) -> list[Path]:
    """Where a method's saved edit is.

    Args:
        folder: The run's folder.
        name: The method.
        save: One of `SAVES`.

    Returns:
        The files or folders.
    """
    kinds = {"delta": (DELTA,), "folder": (FOLDER,), "both": (DELTA, FOLDER)}[save]
    return [folder / kind.format(method_name(name)) for kind in kinds]


def _edited(name: str) -> str:
    if name.lower() == UNEDITED:
        raise InputError(f"expected a method that edits, got {name!r}: the unedited model is the first row anyway")
    return method_name(name)


def _run(config: EvaluationConfig, methods: tuple[str, ...], save: str | None, progress: bool) -> Path:
    bench = _bench(config)
    experiment = bench.experiment
    model, facts, layers = experiment.model, experiment.facts, experiment.layers
    folder = config.out or Path("runs") / content_key(["edit_table", bench.settings])[:12]
    check_folder(folder, "edit_table", bench.settings)
    saved = saved_paths(folder, methods[0], save) if save else []
    lost = not all(path.exists() for path in saved)
    left = unfinished(folder, "measured", edit=[UNEDITED, *methods])
    refitted = whole(folder, "refit_anchor_passes")
    again = [name for name in methods if lost or (method(name).refit and not refitted)]
    todo = [name for name in (UNEDITED, *methods) if name in {*left, *again}]
    if not todo and marked(folder, "anchor_passes") and marked(folder, "neighbors_compared"):
        return folder
    eigh = functools.cache(lambda matrix: torch.linalg.eigh(matrix.to(model.device)))  # each C's once, for all methods
    moments = _moments(config, experiment, methods, eigh, progress)
    with Run(folder, "edit_table", bench.settings, experiment.provenance(), _coordinates(bench)) as run:
        store_anchors(run, experiment, experiment.anchor_layers, progress)
        anchors = read_anchors(folder, model)
        targets = make_targets(model, facts, layers, anchors)
        _store_edited_neighbors(run, bench)
        before = [state for part in _parts(facts) for state in neighborhood_states(model, facts[part], bench.style)]

        def refit(layer: int, batch: Sequence[int]) -> torch.Tensor:
            store_anchors(run, experiment, (layer,), progress, "refit_anchor", batch)
            stored = run.read("refit_anchor", fact=[run.coordinates["fact"][i] for i in batch], anchor_layer=layer)
            return torch.tensor(stored, dtype=anchors[layer].dtype, device=model.device)

        for place, name in enumerate(todo, 1):
            with (
                restored(model, layers),
                bar(2 * len(facts), f"{name} ({place} of {len(todo)})", "fact", show=progress) as shown,
            ):
                if name == UNEDITED:
                    shown.update(len(facts))
                else:
                    made = edit_with(
                        method(name),
                        experiment,
                        targets,
                        moments,
                        config,
                        eigh=eigh,
                        size=config.edits_per_batch,
                        refit=refit,
                        done=shown.update,
                    )
                    for variable, values in made.values.items():
                        run.write(variable, values, edit=name, layer=list(made.deltas))
                    _save(model, made, saved, {**bench.settings, "method": name})
                _store_metrics(run, bench, name, before, shown.update)
            run.seal("measured", edit=name)
    return folder


def _bench(config: EvaluationConfig) -> _Bench:
    """Load what is needed, and refuse what cannot be used, before any long work."""
    config.check()
    if config.metrics not in {AUTO, *STYLES}:
        raise InputError(
            f"expected metrics of {', '.join((AUTO, *STYLES))}, got {config.metrics!r}: choose one of them"
        )
    held_out = load_corpus(config.held_out, "--held-out", config.seed)
    experiment = prepare(config)
    model, facts = experiment.model, experiment.facts
    if held_out.digest == experiment.corpus.digest:
        raise InputError(f"expected a held-out text, got the corpus {config.corpus!r} itself: give another --held-out")
    style = style_of(facts) if config.metrics == AUTO else config.metrics
    if style == "counterfact" and not all(fact.target_true for fact in facts):
        raise InputError("expected a target_true in every fact for --metrics counterfact, got some without: use zsre")
    check_questions(model, facts, style)
    rows = token_rows(model, held_out, min(config.corpus_length, model.max_tokens), config.held_out_tokens)
    if not any(len(row.ids) > 1 for row in rows):
        raise InputError(f"expected a held-out text of some tokens, got {config.held_out!r}: raise --held-out-tokens")
    settings = experiment.settings() | {
        "rules": {field.name: getattr(config, field.name) for field in fields(RuleSettings)},
        "edits_per_batch": config.edits_per_batch,
        "metrics": style,
        "greedy": config.greedy,
        "held_out": {"digest": held_out.digest, "tokens": config.held_out_tokens},
    }
    return _Bench(experiment, style, rows, settings)


def _coordinates(bench: _Bench) -> dict[str, Sequence[Any]]:
    experiment, style = bench.experiment, bench.style
    return {
        "fact": experiment.labels(),
        "edit": [UNEDITED, *METHODS, *PAIRS],
        "layer": list(experiment.layers),
        "anchor_layer": list(experiment.anchor_layers),
        "paraphrase": range(max(1, *(len(paraphrases(fact, style)) for fact in experiment.facts))),
        "probe": probe_groups(experiment.facts) or [NO_PROBES],
        "neighbor": range(max(1, *(len(neighborhood(fact, style)) for fact in experiment.facts))),
        "d_model": range(experiment.model.d_model),
    }


def _moments(
    config: EvaluationConfig, experiment: Experiment, methods: Sequence[str], eigh: Eigh, progress: bool
) -> Mapping[int, Float[Tensor, "d_mlp d_mlp"]]:
    """C of every decisive layer, once it is clear that all rules can use it."""
    chosen, count = [method(name) for name in methods], len(experiment.facts)
    solves_without_keys = any(each.rule == "emmet" for each in chosen)
    fewest = 0 if solves_without_keys else min(config.edits_per_batch or count, count)
    moments = usable_moments(experiment, experiment.layers, progress, fewest).matrices
    projected = [
        experiment.scheme(each.scheme).edited(experiment.layers) for each in chosen if each.rule == "alphaedit"
    ]
    for layer in sorted({layer for layers in projected for layer in layers}):
        threshold, relative = config.alphaedit_threshold, config.alphaedit_relative
        null_space(moments[layer], threshold, relative=relative, eigh=eigh, name=f"C at layer {layer}")
    return moments


def _save(model: LanguageModel, made: MethodEdit, paths: Sequence[Path], config: Mapping[str, Any]) -> None:
    for path in paths:
        if path.suffix == ".safetensors":
            save_delta(path, model, made.deltas, config)
        else:
            save_model(model, path)


def _store_edited_neighbors(run: Run, bench: _Bench) -> None:
    """Which neighbourhood prompts are edited themselves, so that no method should leave them alone."""
    facts = bench.experiment.facts
    edited = {fact.text for fact in facts}
    found = [[float(text in edited) for text, _ in neighborhood(fact, bench.style)] for fact in facts]
    run.write("neighbor_edited", _padded(found, len(run.coordinates["neighbor"])))
    run.seal("neighbors_compared")


def _store_metrics(run: Run, bench: _Bench, name: str, before: Sequence[Tensor], done: Callable[[int], Any]) -> None:
    """Evaluate the model as it is, a part of the facts at a time.

    `before` holds the final states of the unedited model at the neighbourhood prompts, by fact.
    """
    model, labels = bench.experiment.model, run.coordinates["fact"]
    for part in _parts(bench.experiment.facts):
        facts = bench.experiment.facts[part]
        found = evaluate(model, facts, before[part], bench.style, probe_groups(bench.experiment.facts))
        if bench.settings["greedy"]:
            for values, extra in zip(found, _decoded(model, facts, bench.style), strict=True):
                values |= extra
        for variable in sorted({variable for values in found for variable in values}):
            lists = [values.get(variable, []) for values in found]
            width = [len(run.coordinates[dim]) for dim in run.variables[variable].dims[2:]]
            padded = _padded(lists, math.prod(width)).reshape(len(facts), 1, *width)
            run.write(variable, padded, fact=labels[part], edit=[name])
        done(len(facts))
    run.write("perplexity", perplexity(model, bench.held_out), edit=name)


def _decoded(model: LanguageModel, facts: Sequence[Fact], style: str) -> list[dict[str, list[float]]]:
    """Accuracy by greedy decoding, prompt by prompt."""
    texts = [(fact.text, *paraphrases(fact, style)) for fact in facts]
    rows = [
        model.text_prompt(text, fact.target_new, fact.join)
        for fact, each in zip(facts, texts, strict=True)
        for text in each
    ]
    verdicts = greedy_matches(model, rows).double().split([len(each) for each in texts])
    return [{"efficacy_greedy": v[:1].tolist(), "generalization_greedy": v[1:].tolist()} for v in verdicts]


def _padded(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """Rows of different lengths as one array, NaN where a row has ended."""
    return np.array([[*row, *[math.nan] * (width - len(row))] for row in rows])


def _parts(facts: Sequence[Fact]) -> list[slice]:
    return [slice(start, start + FACTS_AT_ONCE) for start in range(0, len(facts), FACTS_AT_ONCE)]
