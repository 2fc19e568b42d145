"""The paper's methods: pairs of a target scheme and an update rule, and what it takes to edit with one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import RESCALING, SCHEMES, Method, Scheme
from jacobian_lab.editing.deltas import Form, delta_dtype, save_edit
from jacobian_lab.editing.layers import Setting, edit_layers, write_weight
from jacobian_lab.editing.measures import ObservedEdit, observed_edits
from jacobian_lab.editing.norm_anchors import norm_anchored
from jacobian_lab.editing.problems import CarriedStates
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.editing.solving import Eigh
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.progress import note

ILL_CONDITIONED = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
"""Above this condition number a solve in float64 leaves fewer digits than float32 has."""


Refit = Callable[[int, Sequence[int]], Float[Tensor, "fact d_model"]]
"""Gives the anchors of some facts at a layer of the model as it is now."""


@dataclass(frozen=True, eq=False)
class MethodEdit:
    """Change of the weights by an edit with a method.

    Attributes:
        deltas: ΔW of each edited layer as it was asked for, all batches together, rounded to `delta_dtype`: the
            weights before the edit and these, added up in float64 and rounded once, are the edited model's bit for bit.
        values: By the names under which runs store them, a number for each edited layer: ``update_norm``,
            ``unstored``, ``condition_number`` (the largest of those that were factored) and the rules' notes (of the
            last batch).
        residuals: R of each edited layer as the rule was given it, all batches side by side.
    """

    deltas: Mapping[int, Float[Tensor, "d_model d_mlp"]]
    values: Mapping[str, list[float]]
    residuals: Mapping[int, Float[Tensor, "d_model solved"]]

    def save(self, form: Form, path: Path, model: LanguageModel, config: Mapping[str, Any]) -> None:
        """Write the edit, while the model is edited.

        Args:
            form: A delta, the whole model, or an adapter.
            path: The file of a delta, else a folder.
            model: The model.
            config: Everything that decided it, as JSON can hold it.

        Raises:
            InputError: If it is not finite, or cannot be saved in this form.
        """
        save_edit(form, path, model, self.deltas, config, self.residuals)


def edit_with(
    pair: Method,
    setting: Setting,
    targets: Targets,
    rules: RuleSettings,
    *,
    eigh: Eigh = torch.linalg.eigh,
    size: int | None = None,
    refit: Refit | None = None,
    done: Callable[[int], Any] = lambda _: None,
    look_on: Callable[[ObservedEdit], Any] | None = None,
) -> MethodEdit:
    """Edit, and leave the model edited (use within `restored`).

    Targets are those of the unedited model for every batch, as in the official ``FE-memit_main.py``, which takes
    precomputed ones; ``memit_main.py``, ``alphaedit_main.py`` and ``prune_main.py`` optimise each batch's (by
    ``compute_z``) on the model as the batches before have left it. Keys and hidden states are measured on that
    model here too, and Σ K Kᵀ of the batches before, as it was solved with, stays in the solve. With one batch
    all this makes no difference.

    Args:
        pair: The method.
        setting: What the edit is made with.
        targets: The targets of all facts.
        rules: What rules leave open.
        eigh: Eigendecomposition of C; may remember what it has done.
        size: Facts in a batch; all of them in one by default.
        refit: Optimises anchors on the model as it is, for methods that need it.
        done: Told of every batch's number of facts.
        look_on: Shown every layer's edit just after it; what that did is observed for it alone.

    Returns:
        The change.

    Raises:
        InputError: If no fact has a finite anchor, a solve is singular, or the model's dtype does not hold the edit.
    """
    model, count = setting.model, len(setting.facts)
    scheme, rule = SCHEMES[pair.scheme], rules.rule(pair.rule, eigh)
    finite = targets.usable(scheme.kind).tolist()
    targets = norm_anchored(setting.rows, targets, scheme.kind) if pair.rule in RESCALING else targets
    step = size or count
    original = {layer: model.copied_weight(layer) for layer in scheme.edited(targets.layers)}
    deltas = {layer: torch.zeros_like(weight, dtype=torch.float64) for layer, weight in original.items()}
    carried: CarriedStates | None = {} if step < count else None
    by_layer: dict[int, dict[str, float]] = {layer: {} for layer in original}
    residuals: dict[int, list[Tensor]] = {layer: [] for layer in original}
    for batch in (range(start, min(start + step, count)) for start in range(0, count, step)):
        batch_setting = setting.select(batch)
        stages = _stages(pair, scheme, targets.select(batch), batch, refit) if any(finite[i] for i in batch) else ()
        for stage, stage_targets in stages:
            loop = edit_layers if look_on is None else observed_edits
            for edit in loop(batch_setting, stage, stage_targets, rule, carried):
                if look_on is not None:
                    look_on(cast("ObservedEdit", edit))
                layer, update = edit.layer, edit.update
                deltas[layer] += update.delta
                residuals[layer].append(edit.solved_residual.cpu())
                write_weight(model, layer, original[layer], deltas[layer])  # rounded once, not batch by batch
                worst = max(update.condition, by_layer[layer].get("condition_number", 0.0))
                by_layer[layer] |= {**update.notes, "condition_number": worst}
        done(len(batch))
    for layer, weight in original.items():
        total, notes = rules.finish(pair.rule, deltas[layer], weight)
        deltas[layer] = total.to(delta_dtype(model))  # what is saved is what is measured
        by_layer[layer] |= notes | write_weight(model, layer, weight, deltas[layer])
    for doubt in _doubts(by_layer, model.d_mlp):
        note(doubt)
    names = dict.fromkeys(name for values in by_layer.values() for name in values)
    columns = {layer: torch.cat(parts, dim=1) for layer, parts in residuals.items() if parts}
    values = {name: [notes.get(name, math.nan) for notes in by_layer.values()] for name in names}
    return MethodEdit(deltas, values, columns)


def _doubts(by_layer: Mapping[int, Mapping[str, float]], d_mlp: int) -> Iterator[str]:
    """Doubts about an edit, a line each, by its rule's notes on the layers."""
    whole = [layer for layer, values in by_layer.items() if values.get("null_space_rank") == d_mlp]
    if whole:
        yield (
            f"AlphaEdit's null space of C is all {d_mlp} dimensions at layers {', '.join(map(str, whole))}, so that "
            "nothing is protected: the keys are small beside alphaedit_threshold; give alphaedit_relative"
        )
    conditions = {layer: values["condition_number"] for layer, values in by_layer.items()}
    worst = max(conditions, key=conditions.__getitem__, default=None)
    if worst is not None and conditions[worst] > ILL_CONDITIONED:
        yield (
            f"the solve at layer {worst} has the condition number {conditions[worst]:.1e}: its change is known to "
            "fewer digits than float32 has; raise what is added to K Kᵀ (ridge, alphaedit_l2)"
        )


def _stages(
    pair: Method, scheme: Scheme, targets: Targets, batch: Sequence[int], refit: Refit | None
) -> Iterator[tuple[Scheme, Targets]]:
    """Edits to be made one after the other: one, or with refitting one a layer, the next target made after the last."""
    if not pair.refit:
        yield scheme, targets
        return
    assert refit is not None
    layers: Layers = scheme.edited(targets.layers)
    usable = targets.finite()[:, None]
    for layer in layers:
        anchors = targets.optimised[layer] if layer == layers[0] else refit(layer, batch)
        states = {layer: torch.where(usable, anchors, torch.nan)}
        if torch.isfinite(states[layer]).all(-1).any():
            yield SCHEMES["one-layer"], Targets((layer,), states, states)
