"""What every job is: a folder, and parts of a run, each computed where it is lacking and sealed when it is whole."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from jacobian_lab.caching import content_key, write_text
from jacobian_lab.memory import available_memory, card_memory, held_memory, peak_memory
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import place_of
from jacobian_lab.planning.cards import CARDS
from jacobian_lab.planning.clock import Clock, measured
from jacobian_lab.planning.costs import DOUBLE, Costs, Stage
from jacobian_lab.planning.plan import Plan, told
from jacobian_lab.planning.sketch import Sizes, two_blocks
from jacobian_lab.progress import bar, note
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import Run, check_folder
from jacobian_lab.store.schema import KINDS

COSTS = "costs.json"
"""What the work on a run that was done last was estimated to take, and took."""

Labels = Mapping[str, Any]
"""For some dimensions of an array, a label or a list of labels."""


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        wanted: The marks that it sets, and for which labels.
        compute: Computes what the run lacks of it.
        also: Whether a folder holds what belongs to the part beside its arrays.
        cost: What it is going to take, stage by stage.
    """

    wanted: Sequence[tuple[str, Labels]]
    compute: Callable[[Run], Any]
    also: Callable[[Path], bool] = lambda _: True
    cost: Callable[[Costs], Sequence[Stage]] = lambda _: ()

    def finished(self, folder: Path, done: Finished) -> bool:
        """Whether a folder has all of it.

        Args:
            folder: The run's folder; may be new.
            done: What is finished there.

        Returns:
            Whether there is nothing left to compute.
        """
        return all(done.all(mark, **labels) for mark, labels in self.wanted) and self.also(folder)


@dataclass(frozen=True)
class Job:
    """What is to be in a run.

    Attributes:
        kind: The kind of run.
        model: The model, with its weights or without.
        out: Its folder; by default one whose name follows from the settings.
        settings: Everything that decides a number, as JSON can hold it.
        provenance: Says what else is worth knowing, when the run is made.
        coordinates: Labels of each dimension.
        parts: The parts, each after those that it needs.
        before: Given the folder, work without which no part can be computed; it fails before the folder is claimed.
        before_cost: What that takes.
    """

    kind: str
    model: LanguageModel
    out: Path | None
    settings: Labels
    provenance: Callable[[], Labels]
    coordinates: Mapping[str, Sequence[Any]]
    parts: Sequence[Part]
    before: Callable[[Path], Any] = lambda _: None
    before_cost: Callable[[Costs], Sequence[Stage]] = lambda _: ()

    def plan(self, clock: Clock, parts: Sequence[Part] | None = None) -> Plan:
        """What the job is going to take.

        Args:
            clock: The machine's, for the model.
            parts: The parts that are left; all of them by default.

        Returns:
            The plan.
        """
        costs = Costs(self.model, clock)
        of_parts = [stage for part in (self.parts if parts is None else parts) for stage in part.cost(costs)]
        return Plan(clock.machine, [*self.before_cost(costs), *of_parts], DOUBLE * _cells(self.kind, self.coordinates))

    def carry_out(self) -> Path:
        """Compute what the run lacks; an interrupted one goes on, a finished one computes nothing.

        Returns:
            The run's folder.

        Raises:
            InputError: If the folder cannot be used.
        """
        folder = self.out or Path("runs") / content_key([self.kind, self.settings])[:12]
        check_folder(folder, self.kind, self.settings)
        done = Finished.of(folder)
        left = [part for part in self.parts if not part.finished(folder, done)]
        if left:
            plan = self.plan(measured(self.model), left)
            if plan.seconds:
                note(plan.sentence())
            plan.check_fits(available_memory() + held_memory(), card_memory(self.model.device))
            times = [time.perf_counter()]
            self.before(folder)
            times.append(time.perf_counter())
            with Run(folder, self.kind, self.settings, self.provenance(), self.coordinates) as run:
                for part in left:
                    part.compute(run)
                    times.append(time.perf_counter())
            self._tell(plan, [late - early for early, late in pairwise(times)], folder)
        return folder

    def _tell(self, plan: Plan, seconds: Sequence[float], folder: Path) -> None:
        """Say what the work took beside what was estimated, and keep it: before the parts, and part by part."""
        took = {"took_seconds": sum(seconds), "took_by_part": seconds, "peak_bytes": peak_memory(self.model.device)}
        if plan.seconds:
            note(f"took {told(sum(seconds))}, {sum(seconds) / plan.seconds:.2f} of what was estimated")
        write_text(folder / COSTS, json.dumps(plan.as_json() | took, indent=1) + "\n")


def _cells(kind: str, coordinates: Mapping[str, Sequence[Any]]) -> int:
    """Numbers that a run holds."""
    sizes = {dim: len(labels) for dim, labels in coordinates.items()}
    return sum(prod(sizes.get(dim, 1) for dim in variable.dims) for variable in KINDS[kind].values())


@dataclass(frozen=True)
class PlanOptions:
    """Whether to work, or only to say what it would take.

    Attributes:
        plan: Whether to print what it would take, time and memory by stage, and stop; the model's weights are not read.
        json: Whether to print that as JSON.
        card: Card to plan for, instead of this machine.
    """

    plan: bool = False
    json: bool = False
    card: Literal["h200"] | None = None


NO_PLAN = PlanOptions()


def planned(job: Callable[..., Job], config: Any, options: PlanOptions) -> str:
    """What a job would take, in words or as JSON.

    Args:
        job: Makes the job of a configuration; told by ``sketch`` where it would be done, it needs no weights.
        config: The configuration.
        options: For which machine, and how to say it.

    Returns:
        The text.

    Raises:
        InputError: If the configuration cannot be used, or its memory is not there.
    """
    card = CARDS[options.card] if options.card else None
    place = place_of(config.device) if card is None else torch.device("cuda")
    made = job(config, progress=False, sketch=place)
    if card is None:
        clock = measured(two_blocks(made.model, place), Sizes.of(made.model).words)
    else:
        clock = card.clock(made.model)
    plan = made.plan(clock)
    if card is not None:
        plan.check_fits(plan.host, card.memory)
    return json.dumps(plan.as_json(), indent=1) if options.json else "\n".join(plan.lines())


def cell_by_cell(
    run: Run,
    mark: str,
    cells: Sequence[Labels],
    compute: Callable[..., Iterable[tuple[str, Any, Labels]]],
    what: str,
    unit: str,
    progress: bool,
) -> None:
    """Compute and seal those cells of a part that a run lacks.

    Args:
        run: The run.
        mark: The part's mark.
        cells: The labels of each cell.
        compute: Given a cell's labels by name: variables with their values and further labels.
        what: What is being done, for the progress bar.
        unit: What is counted.
        progress: Whether to show the bar.
    """
    left = [cell for cell in cells if not run.done(mark, **cell).all()]
    with bar(len(left), what, unit, show=progress) as shown:
        for cell in left:
            for variable, values, further in compute(**cell):
                run.write(variable, values, **cell, **further)
            run.seal(mark, **cell)
            shown.update()
