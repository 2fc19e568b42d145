"""Batches of a sequence observed: J of some facts just before the edit, and the split of what the edit does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from jacobian_lab.catalogue import SCHEMES, method
from jacobian_lab.editing.measures import ObservedEdit, measure
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.jobs.experiment import Experiment
from jacobian_lab.jobs.jacobians import Survey, surveyed_conditions
from jacobian_lab.jobs.job import Labels
from jacobian_lab.maps.definiteness import WIDEST_DENSE
from jacobian_lab.maps.jacobians import MEMORY_BUDGET
from jacobian_lab.maps.replay import RESIDUAL
from jacobian_lab.store.run import Run
from jacobian_lab.store.sequences import EXAMINED, OBSERVED


@contextmanager
def observed_batch(
    experiment: Experiment, run: Run, cell: Labels, batch: range, targets: Targets, examined: int
) -> Iterator[Callable[[ObservedEdit], Any] | None]:
    """Examine J of a batch's first facts, and store what its edit within does, unless both have been stored.

    Yields what looks on at the edit of each layer, or nothing where nothing is to be observed.
    """
    facts, course = experiment.labels()[batch.start : batch.stop], {name: cell[name] for name in ("edit", "targets")}
    if not examined or run.done("observed", fact=facts, **course).all():
        yield None
        return
    for place in batch[:examined]:
        for layer, conditions in zip(experiment.layers, _examined(experiment, place), strict=False):
            for name in EXAMINED:
                value = conditions.get(name, np.nan)
                run.write(name, value, fact=experiment.labels()[place], layer=layer, **course)
    edits: list[ObservedEdit] = []
    yield edits.append
    values = measure(edits, targets, SCHEMES[method(course["edit"]).scheme])
    for name in OBSERVED:
        run.write(name, values[name].cpu().numpy(), fact=facts, layer=[edit.layer for edit in edits], **course)
    run.commit("observed", fact=facts, **course)


def _examined(experiment: Experiment, place: int) -> list[dict[str, Any]]:
    """Examine one fact's Jacobians on the model as it is, by the matrix where that is not too wide."""
    if len(experiment.layers) == 1:
        return []
    wide = experiment.model.d_model > WIDEST_DENSE
    survey = Survey("lanczos" if wide else "dense", frozenset(), seed=0)
    named = (experiment.model, experiment.facts, experiment.layers, survey, RESIDUAL, MEMORY_BUDGET)
    return surveyed_conditions(*named, [place])
