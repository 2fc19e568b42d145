"""What every job is: a folder, and parts of a run, each computed where it is lacking and sealed when it is whole."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from jacobian_lab.caching import content_key, write_text
from jacobian_lab.crew.crew import ALONE, Crew
from jacobian_lab.errors import InputError
from jacobian_lab.memory import memory_of, peak_memory
from jacobian_lab.model.devices import check_places, places_of
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.planning.cards import CARDS
from jacobian_lab.planning.clock import Clock, measured
from jacobian_lab.planning.costs import DOUBLE, Costs, Stage
from jacobian_lab.planning.plan import Plan, told
from jacobian_lab.planning.sketch import Sizes, two_blocks
from jacobian_lab.progress import bar, note
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import GROWING, Run, check_folder
from jacobian_lab.store.schema import KINDS

COSTS = "costs.json"
"""What the work on a run that was done last was estimated to take, and took."""

ELSEWHERE = 2**60
"""Bytes of a host that is not here: nothing is known against it."""

Labels = Mapping[str, Any]
"""For some dimensions of an array, a label or a list of labels."""


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        wanted: The marks that it sets, and for which labels.
        compute: Computes what the run lacks of it.
        again: For which labels of its first mark a folder lacks what belongs to the part beside its arrays, if for any.
        cost: What it is going to take, stage by stage, given what of the run is finished.
    """

    wanted: Sequence[tuple[str, Labels]]
    compute: Callable[[Run], Any]
    again: Callable[[Path], Labels] = lambda _: {}
    cost: Callable[[Costs, Finished], Sequence[Stage]] = lambda _costs, _done: ()

    def finished(self, folder: Path, done: Finished) -> bool:
        """Whether a folder has all of it."""
        return all(done.all(mark, **labels) for mark, labels in self.wanted) and not self.again(folder)

    def left_by(self, done: Finished, folder: Path) -> Finished:
        """What is finished of it, less what is done again."""
        again = self.again(folder)
        return done.without(self.wanted[0][0], **again) if again else done


class Left(NamedTuple):
    """What is left of a job.

    Attributes:
        folder: The run's folder; may be new.
        parts: The parts that are not finished there.
        done: What is.
    """

    folder: Path
    parts: Sequence[Part]
    done: Finished


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
        before_cost: What that takes, given the folder if it is to be done.
        kept: Bytes that the host keeps beside the model, for all parts.
        descents: Dtype of the copy of the model that descents run in, if they do.
        crew: Who does the work; let go at its end.
    """

    kind: str
    model: LanguageModel
    out: Path | None
    settings: Labels
    provenance: Callable[[], Labels]
    coordinates: Mapping[str, Sequence[Any]]
    parts: Sequence[Part]
    before: Callable[[Path], Any] = lambda _: None
    before_cost: Callable[[Costs, Path | None], Sequence[Stage]] = lambda _costs, _folder: ()
    kept: int = 0
    descents: torch.dtype | None = None
    crew: Crew = ALONE

    def plan(self, clock: Clock, there: tuple[int, int | None], left: Left | None = None) -> list[list[Stage]]:
        """What the job is going to take."""
        costs = Costs(
            self.model, clock, self.kept, self.crew.load, self.descents, there[0] if there[1] is None else there[1]
        )
        if left is None:
            before, nothing = [costs.loading(), *self.before_cost(costs, None)], Finished.nothing()
            return [before, *(list(part.cost(costs, nothing)) for part in self.parts)]
        stages = [list(part.cost(costs, part.left_by(left.done, left.folder))) for part in left.parts]
        return [list(self.before_cost(costs, left.folder)), *stages]

    def disk(self) -> int:
        """Bytes of the run's arrays at the most."""
        sizes = {dim: len(labels) for dim, labels in self.coordinates.items()}
        return DOUBLE * sum(prod(sizes.get(dim, 1) for dim in each.dims) for each in KINDS[self.kind].values())

    def carry_out(self) -> Path:
        """Compute what the run lacks; an interrupted one goes on, a finished one computes nothing."""
        deciding = {name: each for name, each in self.settings.items() if name != GROWING}
        folder = self.out or Path("runs") / content_key([self.kind, deciding])[:12]
        check_folder(folder, self.kind, self.settings)
        done = Finished.of(folder)
        left = [part for part in self.parts if not part.finished(folder, done)]
        if left:
            try:
                self._work(Left(folder, left, done))
            finally:
                self.crew.release()
        return folder

    def _work(self, left: Left) -> None:
        """Compute what is left, and keep what that was estimated to take beside what it took."""
        record, folder = self._estimated(left), left.folder
        with record.timed():
            self.before(folder)
            provenance = self.provenance()  # λ among it, for which keys are taken
        with Run(folder, self.kind, self.settings, provenance, self.coordinates) as run:
            for part in left.parts:
                with record.timed():
                    part.compute(run)
                record.write(folder / COSTS)
        record.tell()

    def _estimated(self, left: Left) -> "Record":
        """Say what is left to do is going to take, and refuse what cannot be."""
        clock, there = measured(self.model, descents=self.descents), memory_of(self.model.devices)
        stages = self.plan(clock, there, left)
        plan = Plan(clock.machine, [stage for some in stages for stage in some], self.disk())
        plan.check_fits(*there)
        if plan.seconds:
            note(plan.sentence())
        _tell_if_slow(clock, self)
        for name in plan.tight(*there):
            note(f"{name}: more is taken side by side than memory may hold; what does not fit is halved")
        return Record(plan, stages, self.model.devices)


@dataclass(eq=False)
class Record:
    """What a job was estimated to take, and took.

    Attributes:
        plan: The estimate.
        stages: Its stages, before the parts and part by part.
        devices: Where the model is.
        took: Seconds so far, likewise.
    """

    plan: Plan
    stages: Sequence[Sequence[Stage]]
    devices: Sequence[torch.device]
    took: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time what is done within: first what comes before the parts, then each part."""
        begin = time.perf_counter()
        yield
        self.took.append(time.perf_counter() - begin)

    def write(self, path: Path) -> None:
        """Write it."""
        done = zip(self.stages, self.took, strict=False)
        parts = [
            {
                "stages": [stage.name for stage in some],
                "seconds": sum((stage.seconds for stage in some), 0.0),
                "took_seconds": seconds,
            }
            for some, seconds in done
        ]
        told = {"parts": parts, "took_seconds": sum(self.took), "peak_bytes": peak_memory(self.devices)}
        write_text(path, json.dumps(self.plan.as_json() | told, indent=1) + "\n")

    def tell(self) -> None:
        """Say how it went."""
        if self.plan.seconds:
            ratio = sum(self.took) / self.plan.seconds
            note(f"took {told(sum(self.took))}, {ratio:.2f} of what was estimated")


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
    card: Literal["h100", "h200"] | None = None


NO_PLAN = PlanOptions()


def planned(job: Callable[..., Job], config: Any, options: PlanOptions) -> str:
    """What a job would take, in words or as JSON."""
    card = CARDS[options.card] if options.card else None
    places = places_of(config.device)
    if card is None:
        check_places(places, config.device)
    elif places[0].type != "cuda":
        places = (torch.device("cuda"),)
    made = job(config, progress=False, sketch=places)
    if card is None:
        small, words = two_blocks(made.model, places[0]), Sizes.of(made.model).words
        clock, there = measured(small, words, made.descents), memory_of(places)
    else:
        clock = card.clock(made.model, made.crew.load.all_cards, made.descents)
        there = ELSEWHERE, card.memory
    _tell_if_slow(clock, made)
    plan = Plan(clock.machine, [stage for some in made.plan(clock, there) for stage in some], made.disk())
    try:
        plan.check_fits(*there)
        refused = None
    except InputError as error:
        refused = error.by_option()
    if options.json:
        return json.dumps(plan.as_json() | {"refused": refused}, indent=1)
    return "\n".join([*plan.lines(), *([refused] if refused else [])])


def _tell_if_slow(clock: Clock, job: Job) -> None:
    """Say that a dtype of less precision, chosen for descents, makes them slower, where it does."""
    times, chosen, own = clock.slowdown(), job.descents, job.model.dtype
    if chosen is not None and chosen.itemsize <= own.itemsize and times > 1.1:
        chosen_name, own_name = (str(dtype).removeprefix("torch.") for dtype in (chosen, own))
        told_times = f"{times:.0f}" if times > 10 else f"{times:.1f}"
        note(f"descents in {chosen_name} take {told_times} times as long as in {own_name} here: better without")


def cell_by_cell(
    run: Run,
    mark: str,
    cells: Sequence[Labels],
    compute: Callable[..., Iterable[tuple[str, Any, Labels]]],
    what: str,
    unit: str,
    progress: bool,
) -> None:
    """Compute and seal those cells of a part that a run lacks."""
    left = [cell for cell in cells if not run.done(mark, **cell).all()]
    with bar(len(left), what, unit, show=progress) as shown:
        for cell in left:
            for variable, values, further in compute(**cell):
                run.write(variable, values, **cell, **further)
            run.seal(mark, **cell)
            shown.update()
