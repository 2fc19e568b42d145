"""A job: a run folder and the parts that it is to hold; what is finished is skipped, and what is left is computed."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.caching import content_key, write_text
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.memory import memory_of, peak_memory
from jacobian_lab.model.devices import check_places, parse_device
from jacobian_lab.model.footprint import DOUBLE
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.parallel.executor import SERIAL, Executor
from jacobian_lab.planning.plan import Plan, Resident, spoken
from jacobian_lab.planning.rates import CARDS, Rates, measured
from jacobian_lab.planning.shape import Shape
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import bar, note
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import GROWING, Run, check_folder
from jacobian_lab.store.schema import KINDS

COSTS = "costs.json"
"""The estimate of the work that was done last on a run, and the seconds that it took."""

ELSEWHERE = 2**60
"""Bytes of a host that is not here: nothing is known against it."""

Labels = Mapping[str, Any]
"""For some dimensions of an array, a label or a list of labels."""


@dataclass(frozen=True)
class Part:
    """A part of a run: what is left of it, what that costs in counts, and how it is computed.

    Attributes:
        todo: Lists the cells that are left, given what of the run is finished.
        compute: Computes cells and seals them in the run.
        work: Counts the work of cells, stage by stage.
    """

    todo: Callable[[Completion], Sequence[Any]]
    compute: Callable[[Run, Sequence[Any]], Any]
    work: Callable[[Counts, Sequence[Any]], Iterable[Stage]] = lambda _counts, _cells: ()


@dataclass(frozen=True)
class Preparation:
    """Work without which no part can be computed; it fails before the folder is claimed.

    Attributes:
        compute: Does it, for a folder.
        work: Counts it, for a folder if it is to be done now.
        host: Bytes that the host keeps of it: C and its factor at each layer, say.
    """

    compute: Callable[[Path], Any] = lambda _folder: None
    work: Callable[[Counts, Path | None], Iterable[Stage]] = lambda _counts, _folder: ()
    host: int = 0


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        kind: The kind of run.
        model: The model, with its weights or without.
        out: Its folder; by default one whose name follows from the settings.
        settings: Everything that decides a number, as JSON can hold it.
        provenance: Says what else is worth knowing, when the run is made.
        coordinates: Labels of each dimension.
        parts: The parts, each after those that it needs.
        before: Work before them.
        descents: Dtype of the copy of the model that descents run in, if they do.
        executor: Who does the work; let go at its end.
    """

    kind: str
    model: LanguageModel
    out: Path | None
    settings: Labels
    provenance: Callable[[], Labels]
    coordinates: Mapping[str, Sequence[Any]]
    parts: Sequence[Part]
    before: Preparation = Preparation()
    descents: torch.dtype | None = None
    executor: Executor = SERIAL

    def carry_out(self) -> Path:
        """Compute what the run lacks; an interrupted one goes on, a finished one computes nothing."""
        deciding = {name: setting for name, setting in self.settings.items() if name != GROWING}
        folder = self.out or Path("runs") / content_key([self.kind, deciding])[:12]
        check_folder(folder, self.kind, self.settings)
        done = Completion.of(folder)
        cells = [part.todo(done) for part in self.parts]
        if any(cells):
            try:
                self._work(folder, cells)
            finally:
                self.executor.release()
        return folder

    def _work(self, folder: Path, cells: Sequence[Sequence[Any]]) -> None:
        """Compute what is left, and record what that was estimated to take beside what it took."""
        memory, cards = memory_of(self.model.devices), self.model.cards
        counts = self.counts(cards, memory)
        stages = [list(self.before.work(counts, folder))]
        stages += [list(part.work(counts, left)) if left else [] for part, left in zip(self.parts, cells, strict=True)]
        plan = self._plan(measured(self.model, self.model.devices), stages, cards)
        plan.check_fits(*memory)
        if plan.seconds:
            note(plan.sentence())
        record = Record(plan, stages, self.model.devices)
        with record.timed():
            self.before.compute(folder)
            provenance = self.provenance()  # λ among it, for which keys are taken
        with Run(folder, self.kind, self.settings, provenance, self.coordinates) as run:
            for part in self.parts:
                with record.timed():
                    if left := part.todo(run.finished):
                        part.compute(run, left)
                record.write(folder / COSTS)
        record.tell()

    def counts(self, cards: int, memory: tuple[int, int | None]) -> Counts:
        """Make what counts its work, where there are so many cards and bytes of host and card."""
        load, room = self.executor.load, memory[0] if memory[1] is None else memory[1]
        free = (room - self._weights(cards)) // max(1, load.beside)
        return Counts(self.model, load.worker_cards if load.beside and cards else cards, max(0, free), self.descents)

    def _weights(self, cards: int) -> int:
        """Bytes of this process's model, and of workers' on the same host or card."""
        shape, load, itemsize = Shape.of(self.model), self.executor.load, self.model.dtype.itemsize
        workers = load.beside * shape.on_one_card(load.worker_cards) * itemsize
        return shape.on_one_card(cards) * itemsize + workers

    def _plan(self, rates: Rates, stages: Sequence[Sequence[Stage]], cards: int) -> Plan:
        """Put stages, and what is held throughout, on a machine."""
        load = self.executor.load
        resident = Resident(self._weights(cards), self.before.host, load.beside, load.sharing)
        return Plan(rates, [stage for part_stages in stages for stage in part_stages], resident, self.disk())

    def planned(self, rates: Rates, memory: tuple[int, int | None], cards: int) -> Plan:
        """Estimate the whole job, the model's loading among it, on a machine."""
        counts, nothing = self.counts(cards, memory), Completion.nothing()
        parts = [list(part.work(counts, part.todo(nothing))) for part in self.parts]
        return self._plan(rates, [[counts.loading(), *self.before.work(counts, None)], *parts], cards)

    def disk(self) -> int:
        """Bytes of the run's arrays at the most."""
        sizes = {dim: len(labels) for dim, labels in self.coordinates.items()}
        return DOUBLE * sum(prod(sizes.get(dim, 1) for dim in array.dims) for array in KINDS[self.kind].values())


@dataclass(eq=False)
class Record:
    """The estimate of a job's work, and the seconds that it took.

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
        """Time the work within: first that before the parts, then each part's."""
        begin = time.perf_counter()
        yield
        self.took.append(time.perf_counter() - begin)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        parts = [
            {
                "stages": [stage.name for stage in stages],
                "seconds": sum(map(self.plan.seconds_of, stages), 0.0),
                "took_seconds": seconds,
            }
            for stages, seconds in zip(self.stages, self.took, strict=False)
        ]
        totals = {"parts": parts, "took_seconds": sum(self.took), "peak_bytes": peak_memory(self.devices)}
        write_text(path, json.dumps(self.plan.as_json() | totals, indent=1) + "\n")

    def tell(self) -> None:
        """Say how it went."""
        if self.plan.seconds:
            ratio = sum(self.took) / self.plan.seconds
            note(f"took {spoken(sum(self.took))}, {ratio:.2f} of what was estimated")


def planned(job: Callable[..., Job], config: Any, *, card: str | None = None, as_json: bool = False) -> str:
    """Estimate a job, in words or as JSON; the model's weights are not read."""
    devices = parse_device(config.device)
    if card is None:
        check_places(devices, config.device)
    elif devices[0].type != "cuda":
        devices = (torch.device("cuda"),)
    whole, cards = job(config, progress=False, sketch=devices), len(devices) if devices[0].type == "cuda" else 0
    if card is None:
        rates, memory = measured(whole.model, devices), memory_of(devices)
    else:
        rates, memory = CARDS[card].of(whole.model, cards), (ELSEWHERE, CARDS[card].memory)
    plan = whole.planned(rates, memory, cards)
    try:
        plan.check_fits(*memory)
        refused = None
    except InputError as error:
        refused = error.by_option()
    if as_json:
        return json.dumps(plan.as_json() | {"refused": refused}, indent=1)
    return "\n".join([*plan.lines(), *([refused] if refused else [])])


def each_cell(
    run: Run,
    mark: str,
    cells: Sequence[Labels],
    compute: Callable[..., Iterable[tuple[str, Any, Labels]]],
    bar_name: str,
    unit: str,
    progress: bool,
) -> None:
    """Compute and commit cells one by one."""
    with bar(len(cells), bar_name, unit, show=progress) as progress_bar:
        for cell in cells:
            for variable, values, further in compute(**cell):
                run.write(variable, values, **cell, **further)
            run.commit(mark, **cell)
            progress_bar.update()


def unfinished(done: Completion, mark: str, cells: Iterable[Labels]) -> list[Labels]:
    """List those of some cells that are not finished."""
    return [cell for cell in cells if not done.all(mark, **cell)]
