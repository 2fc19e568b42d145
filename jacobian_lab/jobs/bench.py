"""What several jobs need of an experiment: its second moments, its anchors and targets, an edit measured and undone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from jacobian_lab.editing.anchors import Anchors, anchor_batches, optimise_anchors
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import ObservedEdit, measure, observed_edits
from jacobian_lab.editing.schemes import Scheme, Targets, make_targets
from jacobian_lab.editing.second_moments import SecondMoment, second_moments
from jacobian_lab.editing.solving import advice, factored
from jacobian_lab.evaluation.metrics import efficacy
from jacobian_lab.jobs.setup import Experiment
from jacobian_lab.memory import halving
from jacobian_lab.model.language_model import Layers
from jacobian_lab.progress import bar, note
from jacobian_lab.store.run import Run


@dataclass(frozen=True, eq=False)
class Bench:
    """An experiment at work; what takes long is made once, when it is first asked for.

    Attributes:
        experiment: The experiment.
        progress: Whether to show progress bars.
        columns: With how many keys the least is solved; one a fact by default.
    """

    experiment: Experiment
    progress: bool
    columns: int | None = None

    @cached_property
    def moments(self) -> SecondMoment:
        """C of the decisive layers; solved with fewer keys than they are wide, a singular λC is refused at once."""
        experiment, config, model = self.experiment, self.experiment.config, self.experiment.model
        moments = second_moments(
            model,
            experiment.corpus,
            experiment.layers,
            config.corpus_length,
            config.corpus_tokens,
            progress=self.progress,
        )
        if (len(experiment.facts) if self.columns is None else self.columns) < model.d_mlp:
            for layer, matrix in moments.matrices.items():
                factored(experiment.ridge * matrix, f"λC at layer {layer}", advice(matrix, experiment.ridge))
        return moments

    @cached_property
    def setting(self) -> Setting:
        """What its edits are made with."""
        return self.experiment.setting(self.moments)

    def targets(self, run: Run) -> Targets:
        """Targets of both kinds, from anchors that the run holds afterwards.

        Args:
            run: The run.

        Returns:
            The targets.
        """
        experiment = self.experiment
        return make_targets(experiment.rows, experiment.layers, self.anchors(run, experiment.anchor_layers))

    def anchors(
        self, run: Run, layers: Layers, name: str = "anchor", only: Sequence[int] | None = None
    ) -> dict[int, torch.Tensor]:
        """Anchors of the model as it is now; what the run lacks of them is optimised, batch by batch, and stored.

        A batch that lacks some is optimised as a whole, so that the numbers are the same to the last bit.

        Args:
            run: The run.
            layers: Layers among the run's anchor layers.
            name: Under which name they are stored.
            only: Indices of the facts; all of them by default.

        Returns:
            Anchors of these facts by layer, ``[fact, d_model]``, in float32 or better.
        """
        experiment, model, labels = self.experiment, self.experiment.model, run.coordinates["fact"]
        places = [run.coordinates["anchor_layer"].index(layer) for layer in layers]
        chosen = list(range(len(labels)) if only is None else only)
        done = run.done(f"{name}_passes")
        finished = done[np.ix_(chosen, places)]
        rows = experiment.rows
        batches = [
            [chosen[index] for index in batch]
            for batch in anchor_batches(rows.select(chosen), experiment.config.batch_size)
        ]
        what = f"{name}s".replace("_", " ")
        with bar(finished.size, what, "anchor", done=int(finished.sum()), show=self.progress) as shown:

            def advance(finished: int, loss: float) -> None:
                shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
                shown.update(finished)

            def optimise(batch: Sequence[int], layer: int) -> Anchors:
                shown.n = int(run.done(f"{name}_passes")[np.ix_(chosen, places)].sum())  # less what did not fit
                return optimise_anchors(rows.select(batch), layer, experiment.anchor, advance)

            for place, layer in zip(places, layers, strict=True):
                left = [batch for batch in batches if not done[batch, place].all()]
                for batch, anchors in halving(left, partial(optimise, layer=layer), _tell):
                    where = {"fact": [labels[index] for index in batch], "anchor_layer": layer}
                    run.write(name, anchors.states.cpu().double(), **where)
                    run.write(f"{name}_loss", anchors.loss.cpu(), **where)
                    run.seal(f"{name}_passes", anchors.passes.cpu(), **where)
        dtype, facts = torch.promote_types(model.dtype, torch.float32), [labels[index] for index in chosen]
        stored = {layer: run.read(name, fact=facts, anchor_layer=layer) for layer in layers}
        return {layer: torch.tensor(values, dtype=dtype, device=model.device) for layer, values in stored.items()}


def _tell(failed: int, next_size: int) -> None:
    note(f"out of memory with the anchors of {failed} facts side by side: going on with {next_size}")


def measured_edit(
    setting: Setting, scheme: Scheme, targets: Targets, look_on: Callable[[ObservedEdit], Any] = lambda _: None
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Edit, measure, and put the weights back.

    Args:
        setting: What the edit is made with.
        scheme: The target scheme.
        targets: The targets; they say which layers are decisive.
        look_on: Shown every layer's edit just after it.

    Returns:
        The edited layers, and what `measure` says of them with the efficacy, ``[fact]``.
    """
    edits = []
    with restored(setting.model, targets.layers):
        for edit in observed_edits(setting, scheme, targets):
            look_on(edit)
            edits.append(edit)
        answered = where_finite(efficacy(setting.model, setting.facts), targets)
    values = {name: value.cpu().numpy() for name, value in measure(edits, targets, scheme).items()}
    return scheme.edited(targets.layers), values | {"efficacy": answered}


def where_finite(values: torch.Tensor, targets: Targets) -> np.ndarray:
    """NaN for facts that took no part in the edit.

    Args:
        values: One or several for each fact, ``[fact, ...]``.
        targets: Their targets.

    Returns:
        The same in float64.
    """
    finite = targets.finite().to(values.device).view(-1, *[1] * (values.dim() - 1))
    return torch.where(finite, values.double(), math.nan).cpu().numpy()
