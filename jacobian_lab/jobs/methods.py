"""Every method under the same anchors, keys and seeds, evaluated by the paper's metrics: Tables 3, 4, 6 and 7."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacobian_lab.editing.deltas import DELTA, FOLDER, save_delta, save_model
from jacobian_lab.editing.layers import restored
from jacobian_lab.editing.methods import METHODS, PAIRS, UNEDITED, MethodEdit, edit_with, method, method_name
from jacobian_lab.editing.schemes import SCHEMES
from jacobian_lab.editing.solving import null_space
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.examination import Examination
from jacobian_lab.evaluation.metrics import check_questions, perplexity
from jacobian_lab.evaluation.questions import neighborhood, paraphrases, style_of
from jacobian_lab.jobs.bench import Bench, any_coordinated
from jacobian_lab.jobs.config import EditConfig, EditTableConfig, EvaluationConfig, check
from jacobian_lab.jobs.job import Job, Part
from jacobian_lab.jobs.setup import Experiment, prepare
from jacobian_lab.model.corpus import Corpus, load_corpus, token_rows
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.progress import bar
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import Run

NO_PROBES = "none"
"""What the dimension of further questions holds where there are none: one group that stays empty."""


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
    return _run(config, (_edited(config.method),), config.save, progress)


def saved_paths(folder: Path, name: str, save: str) -> list[Path]:
    """Where a method's saved edit is.

    Args:
        folder: The run's folder.
        name: The method.
        save: ``"delta"``, ``"folder"`` or ``"both"``.

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
    check(config)
    held_out = load_corpus(config.held_out, "held_out", config.seed)
    experiment = prepare(config)
    examination = _examination(config, experiment)
    text = _held_out_rows(config, experiment, held_out)
    chosen, count = {name: method(name) for name in methods}, len(experiment.facts)
    schemes = [each.scheme for each in chosen.values()]
    without_keys = any(each.rule == "emmet" for each in chosen.values())
    bench = Bench(experiment, progress, 0 if without_keys else min(config.edits_per_batch or count, count))
    eigh = functools.cache(lambda matrix: torch.linalg.eigh(matrix.to(experiment.model.device)))  # each C's once
    settings = experiment.settings() | {
        "rules": asdict(config.rules),
        "edits_per_batch": config.edits_per_batch,
        "metrics": examination.style,
        "greedy": config.greedy,
        "held_out": {"digest": held_out.digest, "tokens": config.held_out_tokens},
    }

    def saved(folder: Path) -> list[Path]:
        return saved_paths(folder, methods[0], save) if save else []

    def again(folder: Path) -> list[str]:
        """Methods that have been measured, but without what they left."""
        lost, refitted = (
            not all(path.exists() for path in saved(folder)),
            not Finished.of(folder).lost("refit_anchor_passes"),
        )
        return [name for name, each in chosen.items() if lost or (each.refit and not refitted)]

    def usable() -> None:
        """Make it clear before the long work that the rules can use every C."""
        moments, rules = bench.moments.matrices, config.rules
        projected = [
            SCHEMES[each.scheme].edited(experiment.layers) for each in chosen.values() if each.rule == "alphaedit"
        ]
        for layer in sorted({layer for layers in projected for layer in layers}):
            threshold, relative = rules.alphaedit_threshold, rules.alphaedit_relative
            null_space(moments[layer], threshold, relative=relative, eigh=eigh, name=f"C at layer {layer}")

    def measured(run: Run) -> None:
        targets = bench.targets(run, schemes)
        redone = again(run.folder)
        todo = [n for n in (UNEDITED, *methods) if n in redone or not run.done("measured", edit=n).all()]
        _ = examination.before  # of the unedited model

        def refit(layer: int, batch: Sequence[int]) -> Tensor:
            return bench.anchors(run, (layer,), "refit_anchor", batch)[layer]

        for place, name in enumerate(todo, 1):
            what = f"{name} ({place} of {len(todo)})"
            with restored(experiment.model, experiment.layers), bar(2 * count, what, "fact", show=progress) as shown:
                if name == UNEDITED:
                    shown.update(count)
                else:
                    made = edit_with(
                        chosen[name],
                        bench.setting,
                        targets,
                        config.rules,
                        eigh=eigh,
                        size=config.edits_per_batch,
                        refit=refit,
                        done=shown.update,
                    )
                    for variable, values in made.values.items():
                        run.write(variable, values, edit=name, layer=list(made.deltas))
                    _save(experiment.model, made, saved(run.folder), {**settings, "method": name})
                _store_answers(run, examination, name, shown.update)
                run.write("perplexity", perplexity(experiment.model, text), edit=name)
            run.seal("measured", edit=name)

    shifted = Part([("coordinated_shift_passes", {})], lambda run: bench.shifts(run, experiment.layers))
    coordinated = [shifted] if any_coordinated(schemes) else []
    return Job(
        "edit_table",
        config.out,
        settings,
        experiment.provenance(),
        _coordinates(experiment, examination),
        [
            Part([("anchor_passes", {})], lambda run: bench.anchors(run, experiment.anchor_layers)),
            *coordinated,
            Part([("neighbors_compared", {})], lambda run: _store_edited_neighbors(run, examination)),
            Part([("measured", {"edit": [UNEDITED, *methods]})], measured, also=lambda folder: not again(folder)),
        ],
        before=usable,
    ).carry_out()


def _examination(config: EvaluationConfig, experiment: Experiment) -> Examination:
    """What is asked, once it is clear that it can be."""
    style = style_of(experiment.facts) if config.metrics == "auto" else config.metrics
    if style == "counterfact" and not all(fact.target_true for fact in experiment.facts):
        raise InputError("expected a target_true in every fact for ⟨metrics⟩ counterfact, got some without: use zsre")
    check_questions(experiment.model, experiment.facts, style)
    return Examination(experiment.model, experiment.facts, style, config.greedy)


def _held_out_rows(config: EvaluationConfig, experiment: Experiment, text: Corpus) -> list[Prompt]:
    if text.digest == experiment.corpus.digest:
        raise InputError(f"expected a held-out text, got the corpus {config.corpus!r} itself: give another ⟨held_out⟩")
    length = min(config.corpus_length, experiment.model.max_tokens)
    rows = token_rows(experiment.model, text, length, config.held_out_tokens)
    if not any(len(row.ids) > 1 for row in rows):
        raise InputError(f"expected a held-out text of some tokens, got {config.held_out!r}: raise ⟨held_out_tokens⟩")
    return rows


def _coordinates(experiment: Experiment, asked: Examination) -> dict[str, Sequence[Any]]:
    return {
        "fact": experiment.labels(),
        "edit": [UNEDITED, *METHODS, *PAIRS],
        "layer": list(experiment.layers),
        "anchor_layer": list(experiment.anchor_layers),
        "paraphrase": range(max(1, *(len(paraphrases(fact, asked.style)) for fact in asked.facts))),
        "probe": asked.groups or [NO_PROBES],
        "neighbor": range(max(1, *(len(neighborhood(fact, asked.style)) for fact in asked.facts))),
        "d_model": range(experiment.model.d_model),
    }


def _save(model: LanguageModel, made: MethodEdit, paths: Sequence[Path], config: Mapping[str, Any]) -> None:
    for path in paths:
        if path.suffix == ".safetensors":
            save_delta(path, model, made.deltas, config)
        else:
            save_model(model, path)


def _store_edited_neighbors(run: Run, asked: Examination) -> None:
    """Which neighbourhood prompts are edited themselves, so that no method should leave them alone."""
    edited = {fact.text for fact in asked.facts}
    found = [[float(text in edited) for text, _ in neighborhood(fact, asked.style)] for fact in asked.facts]
    run.write("neighbor_edited", _padded(found, len(run.coordinates["neighbor"])))
    run.seal("neighbors_compared")


def _store_answers(run: Run, asked: Examination, name: str, done: Callable[[int], Any]) -> None:
    """Examine the model as it is."""
    for part, found in asked.answers():
        for variable in sorted({variable for values in found for variable in values}):
            lists = [values.get(variable, []) for values in found]
            width = [len(run.coordinates[dim]) for dim in run.variables[variable].dims[2:]]
            padded = _padded(lists, math.prod(width)).reshape(len(found), 1, *width)
            run.write(variable, padded, fact=run.coordinates["fact"][part], edit=[name])
        done(len(found))


def _padded(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """Rows of different lengths as one array, NaN where a row has ended."""
    return np.array([[*row, *[math.nan] * (width - len(row))] for row in rows])
