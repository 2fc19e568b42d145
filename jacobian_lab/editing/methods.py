"""The paper's methods: pairs of a target scheme and an update rule, and what it takes to edit with one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from jacobian_lab.model.rows import FactRows
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
    count = len(setting.facts)
    scheme, step = SCHEMES[pair.scheme], size or count
    finite = targets.usable(scheme.kind)
    targets = rescaled(pair, setting.rows, targets)
    edits = BatchEdits(pair, setting, targets.layers, rules, eigh=eigh, several=step < count)
    for batch in (range(start, min(start + step, count)) for start in range(0, count, step)):
        if finite[list(batch)].any():
            edits.edit(batch, targets.select(batch), refit, look_on)
        done(len(batch))
    edit = edits.finish()
    edits.note_doubts()
    return edit


def rescaled(pair: Method, rows: FactRows, targets: Targets) -> Targets:
    """Give targets the length that a rule asks for, if it asks for one.

    Args:
        pair: The method.
        rows: The facts, of the model that the targets were made on.
        targets: Their targets.

    Returns:
        The targets to edit with.
    """
    return norm_anchored(rows, targets, SCHEMES[pair.scheme].kind) if pair.rule in RESCALING else targets


class BatchEdits:
    """Edits with a method, one batch after another, of a model that they leave edited (use within `restored`).

    The weights before all edits and the sum of the changes, added up in float64 and rounded once, are the model's after
    every batch.

    With old keys and the same targets, several batches at one layer give the change of one batch where a rule minimises
    ‖(W + ΔW) K − V‖² plus a fixed quadratic of the total change: memit, encore, rlsedit, alphaedit and nas; betaedit
    until it takes its null space anew, emmet with ε = 1. Each solve is then a step of recursive least squares.

    Args:
        pair: The method.
        setting: What the edits are made with, of all facts.
        layers: The decisive layers.
        rules: What rules leave open.
        eigh: Eigendecomposition of C; may remember what it has done.
        several: True where there is to be more than one batch, so that rules hand on what they carry.
        old_keys: True where the keys of earlier batches stay in the solve.
    """

    def __init__(
        self,
        pair: Method,
        setting: Setting,
        layers: Layers,
        rules: RuleSettings,
        *,
        eigh: Eigh = torch.linalg.eigh,
        several: bool = True,
        old_keys: bool = True,
    ) -> None:
        self._pair, self._setting, self._rules, self._old_keys = pair, setting, rules, old_keys
        self._scheme, self._rule, model = SCHEMES[pair.scheme], rules.rule(pair.rule, eigh), setting.model
        self._original = {layer: model.copied_weight(layer) for layer in self._scheme.edited(layers)}
        self._deltas = {layer: torch.zeros_like(w, dtype=torch.float64) for layer, w in self._original.items()}
        self._carried: CarriedStates | None = {} if several else None
        self._notes: dict[int, dict[str, float]] = {layer: {} for layer in self._original}
        self._residuals: dict[int, list[Tensor]] = {layer: [] for layer in self._original}

    def edit(
        self,
        batch: Sequence[int],
        targets: Targets,
        refit: Refit | None = None,
        look_on: Callable[[ObservedEdit], Any] | None = None,
    ) -> None:
        """Edit the next batch.

        Args:
            batch: Indices of its facts.
            targets: The targets of these facts, as `rescaled` gives them.
            refit: Optimises anchors on the model as it is, for methods that need it.
            look_on: Shown every layer's edit just after it.

        Raises:
            InputError: If no fact has a finite target, a solve is singular, or the model's dtype does not hold the
                edit.
        """
        setting, loop = self._setting.select(batch), edit_layers if look_on is None else observed_edits
        for stage, stage_targets in _stages(self._pair, self._scheme, targets, batch, refit):
            for edit in loop(setting, stage, stage_targets, self._rule, self._carried):
                if look_on is not None:
                    look_on(cast("ObservedEdit", edit))
                layer, update, notes = edit.layer, edit.update, self._notes[edit.layer]
                self._deltas[layer] += update.delta
                self._residuals[layer].append(edit.solved_residual.cpu())
                self._write(layer)
                worst = max(update.condition, notes.get("condition_number", 0.0))
                notes |= {**update.notes, "condition_number": worst}
        if self._carried is not None and not self._old_keys:
            self._carried = {layer: state.without_keys() for layer, state in self._carried.items()}

    def finish(self) -> MethodEdit:
        """Write the weights that the method ends with if no batch follows, rounded as a saved edit is.

        Returns:
            The change of all batches so far.

        Raises:
            InputError: If the model's dtype does not hold the edit.
        """
        model, deltas, by_layer = self._setting.model, dict[int, Tensor](), {}
        for layer, weight in self._original.items():
            total, notes = self._rules.finish(self._pair.rule, self._deltas[layer], weight)
            deltas[layer] = total.to(delta_dtype(model))  # what is saved is what is measured
            by_layer[layer] = self._notes[layer] | notes | write_weight(model, layer, weight, deltas[layer])
        names = dict.fromkeys(name for values in by_layer.values() for name in values)
        columns = {layer: torch.cat(parts, dim=1) for layer, parts in self._residuals.items() if parts}
        values = {name: [notes.get(name, math.nan) for notes in by_layer.values()] for name in names}
        return MethodEdit(deltas, values, columns)

    @contextmanager
    def finished(self) -> Iterator[MethodEdit]:
        """Let the model be within as `finish` leaves it, between two batches.

        Yields:
            The change of all batches so far.

        Raises:
            InputError: If the model's dtype does not hold the edit.
        """
        try:
            yield self.finish()
        finally:
            for layer in self._original:
                self._write(layer)

    def note_doubts(self) -> None:
        """Say what speaks against the edits so far, a line each."""
        for doubt in _doubts(self._notes, self._setting.model.d_mlp):
            note(doubt)

    def _write(self, layer: int) -> dict[str, float]:
        """Write a layer's weight with the sum of the changes: rounded once, not batch by batch."""
        return write_weight(self._setting.model, layer, self._original[layer], self._deltas[layer])


def _doubts(by_layer: Mapping[int, Mapping[str, float]], d_mlp: int) -> Iterator[str]:
    """Doubts about an edit, a line each, by its rule's notes on the layers."""
    whole = [layer for layer, values in by_layer.items() if values.get("null_space_rank") == d_mlp]
    if whole:
        yield (
            f"AlphaEdit's null space of C is all {d_mlp} dimensions at layers {', '.join(map(str, whole))}, so that "
            "nothing is protected: the keys are small beside alphaedit_threshold; give alphaedit_relative"
        )
    conditions = {layer: values.get("condition_number", 0.0) for layer, values in by_layer.items()}
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
