"""Batches of a sequence observed: J of some facts just before the edit, and the split of what the edit does."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jacobian_lab.catalogue import SCHEMES, method
from jacobian_lab.editing.measures import ObservedEdit, measure
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment
from jacobian_lab.jobs.jacobians import Survey, surveyed_conditions
from jacobian_lab.jobs.job import Labels
from jacobian_lab.maps.jacobians import MEMORY_BUDGET
from jacobian_lab.maps.replay import RESIDUAL
from jacobian_lab.planning.work import Stage
from jacobian_lab.store.run import Run
from jacobian_lab.store.sequences import EXAMINED, OBSERVED


@dataclass(frozen=True, eq=False)
class Observer:
    """Looks on at the edits of batches.

    Attributes:
        experiment: The facts, the layers and the model.
        examined: Facts of each batch whose Jacobians are examined; with none nothing is observed.
    """

    experiment: Experiment
    examined: int

    @cached_property
    def _survey(self) -> Survey:
        model, session = self.experiment.model, self.experiment.session
        return Survey.by_width(model.d_model, model.device, session.seed)

    @contextmanager
    def observed(
        self, run: Run, cell: Labels, batch: range, targets: Targets
    ) -> Iterator[Callable[[ObservedEdit], Any] | None]:
        """Examine J of a batch's first facts, and store what its edit within does, unless both have been stored.

        Yields what looks on at the edit of each layer, or nothing where nothing is to be observed.
        """
        course = {name: cell[name] for name in ("edit", "targets")}
        facts = self.experiment.labels()[batch.start : batch.stop]
        if not self.examined or run.done("observed", fact=facts, **course).all():
            yield None
            return
        for place, fact in zip(batch[: self.examined], facts, strict=False):
            for layer, conditions in zip(self.experiment.layers, self._conditions(place), strict=False):
                for name in EXAMINED:
                    run.write(name, conditions.get(name, np.nan), fact=fact, layer=layer, **course)
        edits: list[ObservedEdit] = []
        yield edits.append
        values = measure(edits, targets, SCHEMES[method(course["edit"]).scheme])
        for name in OBSERVED:
            run.write(name, values[name].cpu().numpy(), fact=facts, layer=[edit.layer for edit in edits], **course)
        run.commit("observed", fact=facts, **course)

    def _conditions(self, place: int) -> list[dict[str, Any]]:
        """Examine one fact's Jacobians below the last layer, on the model as it is."""
        model, facts, layers = self.experiment.model, self.experiment.facts, self.experiment.layers
        if len(layers) == 1:
            return []
        return surveyed_conditions(model, facts, layers, self._survey, RESIDUAL, MEMORY_BUDGET, [place])

    def work(self, counts: Counts, batches: Sequence[range], courses: int) -> Iterable[Stage]:
        """Count the Jacobians of all courses."""
        places = [place for batch in batches for place in batch[: self.examined]]
        rows = [self.experiment.rows.bare[place] for place in places] * courses
        if rows:
            yield counts.survey(rows, self.experiment.layers, self._survey.formed(len(rows)), 0, MEMORY_BUDGET)
