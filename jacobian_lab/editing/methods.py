"""The paper's methods: pairs of a target scheme and an update rule, and what it takes to edit with one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import SCHEMES, Method, Scheme
from jacobian_lab.editing.deltas import delta_dtype, save_delta, save_model
from jacobian_lab.editing.layers import Setting, edit_layers, write_weight
from jacobian_lab.editing.measures import ObservedEdit, observed_edits
from jacobian_lab.editing.rules import Kept, RuleSettings
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
    """What editing with a method did to the weights.

    Attributes:
        deltas: ΔW of each edited layer as it was asked for, all batches together, rounded to `delta_dtype`: the
            weights before the edit and these, added up in float64 and rounded once, are the edited model's bit for bit.
        values: By the names under which runs store them, a number for each edited layer: ``update_norm``,
            ``unstored``, ``condition_number`` (the largest of those that were factored) and the rules' notes (of the
            last batch).
    """

    deltas: Mapping[int, Float[Tensor, "d_model d_mlp"]]
    values: Mapping[str, list[float]]

    def save(self, path: Path, model: LanguageModel, config: Mapping[str, Any]) -> None:
        """Write the edit, while the model is edited.

        Args:
            path: A file that ends in ``.safetensors``, for a delta; else a folder, for the model.
            model: The model.
            config: Everything that decided it, as JSON can hold it.

        Raises:
            InputError: If it is not finite.
        """
        if path.suffix == ".safetensors":
            save_delta(path, model, self.deltas, config)
        else:
            save_model(model, path)


def edit_with(
    chosen: Method,
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
        chosen: The method.
        setting: What the edit is made with.
        targets: The targets of all facts.
        rules: What rules leave open.
        eigh: Eigendecomposition of C; may remember what it has done.
        size: Facts in a batch; all of them in one by default.
        refit: Optimises anchors on the model as it is, for methods that need it.
        done: Told of every batch's number of facts.
        look_on: Shown every layer's edit just after it; what that did is observed for it alone.

    Returns:
        What it did.

    Raises:
        InputError: If no fact has a finite anchor, a solve is singular, or the model's dtype does not hold the edit.
    """
    model, count = setting.model, len(setting.facts)
    scheme, rule = SCHEMES[chosen.scheme], rules.rule(chosen.rule, eigh)
    finite = targets.usable(scheme.kind).tolist()
    step = size or count
    original = {layer: model.weight_at_home(layer) for layer in scheme.edited(targets.layers)}
    deltas = {layer: torch.zeros_like(weight, dtype=torch.float64) for layer, weight in original.items()}
    kept: dict[int, Kept] | None = {} if step < count else None
    seen: dict[int, dict[str, float]] = {layer: {} for layer in original}
    for batch in (range(start, min(start + step, count)) for start in range(0, count, step)):
        some = setting.select(batch)
        stages = _stages(chosen, scheme, targets.select(batch), batch, refit) if any(finite[i] for i in batch) else ()
        for stage, wanted in stages:
            loop = edit_layers if look_on is None else observed_edits
            for edit in loop(some, stage, wanted, rule, kept):
                if look_on is not None:
                    look_on(cast("ObservedEdit", edit))
                layer, update = edit.layer, edit.update
                deltas[layer] += update.delta
                write_weight(model, layer, original[layer], deltas[layer])  # rounded once, not batch by batch
                worst = max(update.condition, seen[layer].get("condition_number", 0.0))
                seen[layer] |= {**update.notes, "condition_number": worst}
        done(len(batch))
    for layer, weight in original.items():
        total, notes = rules.finish(chosen.rule, deltas[layer], weight)
        deltas[layer] = total.to(delta_dtype(model))  # what is saved is what is measured
        seen[layer] |= notes | write_weight(model, layer, weight, deltas[layer])
    for doubt in _doubts(seen, model.d_mlp):
        note(doubt)
    names = dict.fromkeys(name for values in seen.values() for name in values)
    return MethodEdit(deltas, {name: [values.get(name, math.nan) for values in seen.values()] for name in names})


def _doubts(seen: Mapping[int, Mapping[str, float]], d_mlp: int) -> Iterator[str]:
    """What speaks against an edit, a line each, from what its rule has to say of the layers."""
    whole = [layer for layer, values in seen.items() if values.get("null_space_rank") == d_mlp]
    if whole:
        yield (
            f"AlphaEdit's null space of C is all {d_mlp} dimensions at layers {', '.join(map(str, whole))}, so that "
            "nothing is protected: the keys are small beside alphaedit_threshold; give alphaedit_relative"
        )
    worst = max(seen, key=lambda layer: seen[layer]["condition_number"], default=None)
    if worst is not None and seen[worst]["condition_number"] > ILL_CONDITIONED:
        yield (
            f"the solve at layer {worst} has the condition number {seen[worst]['condition_number']:.1e}: its change is "
            "known to fewer digits than float32 has; raise what is added to K Kᵀ (ridge, alphaedit_l2)"
        )


def _stages(
    chosen: Method, scheme: Scheme, targets: Targets, batch: Sequence[int], refit: Refit | None
) -> Iterator[tuple[Scheme, Targets]]:
    """Edits to be made one after the other: one, or with refitting one a layer, the next target made after the last."""
    if not chosen.refit:
        yield scheme, targets
        return
    assert refit is not None
    layers: Layers = scheme.edited(targets.layers)
    usable = targets.finite()[:, None]
    for layer in layers:
        anchors = targets.optimised[layer] if layer == layers[0] else refit(layer, batch)
        wanted = {layer: torch.where(usable, anchors, torch.nan)}
        if torch.isfinite(wanted[layer]).all(-1).any():
            yield SCHEMES["one-layer"], Targets((layer,), wanted, wanted)
