"""What several jobs do: anchors into a run, usable second moments, an edit measured and undone."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jacobian_lab.editing.anchors import Anchors, anchor_batches, optimise_anchors
from jacobian_lab.editing.layers import restored
from jacobian_lab.editing.measures import LayerEdit, apply_edit, measure
from jacobian_lab.editing.schemes import Scheme, Targets
from jacobian_lab.editing.second_moments import SecondMoment, second_moments
from jacobian_lab.editing.solving import advice, factored
from jacobian_lab.evaluation.metrics import efficacy
from jacobian_lab.jobs.setup import Experiment
from jacobian_lab.memory import halving
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.progress import bar, note
from jacobian_lab.store.run import Run, open_run


def store_anchors(
    run: Run,
    experiment: Experiment,
    layers: Layers,
    progress: bool,
    name: str = "anchor",
    only: Sequence[int] | None = None,
) -> None:
    """Optimise and store the anchors that a run lacks, batch by batch, on the model as it is now.

    A batch that lacks some is optimised as a whole, so that the numbers are the same to the last bit.

    Args:
        run: The run.
        experiment: What to optimise.
        layers: Layers among the run's anchor layers.
        progress: Whether to show a progress bar.
        name: Under which name to store them.
        only: Indices of the facts; all of them by default.
    """
    model, facts, labels = experiment.model, experiment.facts, run.coordinates["fact"]
    places = [run.coordinates["anchor_layer"].index(layer) for layer in layers]
    chosen = list(range(len(facts)) if only is None else only)
    done = run.done(f"{name}_passes")
    finished = done[np.ix_(chosen, places)]
    batches = [
        [chosen[index] for index in batch]
        for batch in anchor_batches(model, [facts[index] for index in chosen], experiment.config.batch_size)
    ]
    with bar(finished.size, f"{name}s".replace("_", " "), "anchor", done=int(finished.sum()), show=progress) as shown:

        def advance(finished: int, loss: float) -> None:
            shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
            shown.update(finished)

        def optimise(batch: Sequence[int], layer: int) -> Anchors:
            shown.n = int(run.done(f"{name}_passes")[np.ix_(chosen, places)].sum())  # less what did not fit
            these = [facts[index] for index in batch]
            return optimise_anchors(model, these, layer, experiment.templates, experiment.anchor, advance)

        for place, layer in zip(places, layers, strict=True):
            left = [batch for batch in batches if not done[batch, place].all()]
            for batch, anchors in halving(left, partial(optimise, layer=layer), _tell):
                where = {"fact": [labels[index] for index in batch], "anchor_layer": layer}
                run.write(name, anchors.states.cpu().double(), **where)
                run.write(f"{name}_loss", anchors.loss.cpu(), **where)
                run.seal(f"{name}_passes", anchors.passes.cpu(), **where)


def _tell(failed: int, next_size: int) -> None:
    note(f"out of memory with the anchors of {failed} facts side by side: going on with {next_size}")


def read_anchors(folder: Path, model: LanguageModel) -> dict[int, torch.Tensor]:
    """The anchors that a run holds.

    Args:
        folder: The run's folder.
        model: The model that they were optimised for.

    Returns:
        Anchors by layer, ``[fact, d_model]``, in float32 or better.
    """
    stored = open_run(folder, part="anchor_passes")["anchor"]
    dtype = torch.promote_types(model.dtype, torch.float32)
    return {
        int(layer): torch.tensor(stored.sel(anchor_layer=layer).values, dtype=dtype, device=model.device)
        for layer in stored["anchor_layer"].values
    }


def usable_moments(experiment: Experiment, layers: Layers, progress: bool, columns: int | None = None) -> SecondMoment:
    """C of some layers; solved with fewer keys than they are wide, a singular λC is refused at once.

    Args:
        experiment: What is going to be solved.
        layers: The layers.
        progress: Whether to show a progress bar.
        columns: How many keys are solved with at the least; one a fact by default.

    Returns:
        The second moments.

    Raises:
        InputError: If the corpus has too little text, or one of them is singular.
    """
    config, model = experiment.config, experiment.model
    moments = second_moments(
        model, experiment.corpus, layers, config.corpus_length, config.corpus_tokens, progress=progress
    )
    if (len(experiment.facts) if columns is None else columns) < model.d_mlp:
        for layer, matrix in moments.matrices.items():
            factored(experiment.ridge * matrix, f"λC at layer {layer}", advice(matrix, experiment.ridge))
    return moments


def measured_edit(
    experiment: Experiment,
    scheme: Scheme,
    targets: Targets,
    moments: SecondMoment,
    inspect: Callable[[LayerEdit], None] | None = None,
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Edit, measure, and put the weights back.

    Args:
        experiment: Model, facts, templates and λ.
        scheme: The target scheme.
        targets: The targets; they say which layers are decisive.
        moments: C of these layers.
        inspect: Shown every layer's edit.

    Returns:
        The edited layers, and what `measure` says of them with the efficacy, ``[fact]``.
    """
    model, facts = experiment.model, experiment.facts
    with restored(model, targets.layers):
        record = apply_edit(
            model, facts, scheme, targets, experiment.templates, moments.matrices, experiment.ridge, inspect=inspect
        )
        answered = where_finite(efficacy(model, facts), targets)
    values = {name: value.cpu().numpy() for name, value in measure(record, targets, scheme).items()}
    return record.layers, values | {"efficacy": answered}


def where_finite(values: torch.Tensor, targets: Targets) -> np.ndarray:
    """NaN for facts that took no part in the edit."""
    finite = targets.finite().to(values.device).view(-1, *[1] * (values.dim() - 1))
    return torch.where(finite, values.double(), math.nan).cpu().numpy()
