"""What several jobs need of an experiment: its second moments, its anchors and targets, an edit measured and undone."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from jacobian_lab.crew.crew import called
from jacobian_lab.editing.anchors import (
    AnchorSettings,
    CoordinationSettings,
    Progress,
    anchor_batches,
    coordinate_shifts,
    optimise_anchors,
)
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import ObservedEdit, measure, observed_edits
from jacobian_lab.editing.schemes import COORDINATED, SCHEMES, Scheme, Targets, make_targets
from jacobian_lab.editing.second_moments import SecondMoment, moment_rows, moments_cached, second_moments
from jacobian_lab.editing.solving import advice, factored, suited_ridge
from jacobian_lab.evaluation.aims import Aim
from jacobian_lab.evaluation.metrics import efficacy
from jacobian_lab.jobs.job import Labels, Part
from jacobian_lab.jobs.setup import Experiment
from jacobian_lab.memory import free_memory
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.planning.costs import Costs, Stage
from jacobian_lab.progress import bar, counted, note
from jacobian_lab.store.arrays import exists, open_arrays, read_config
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import Run

NOTHING: Mapping[Layers, Labels] = MappingProxyType({})

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a descent gives: states or shifts, losses and passes, fact by fact."""


@dataclass(frozen=True, eq=False)
class Aimed:
    """What methods that are pairs edit with, and others are held against.

    Attributes:
        setting: What the edit is made with; none where no method is a pair.
        targets: The targets.
        aim: Where the anchors at the last decisive layer lead, if that is asked.
    """

    setting: Setting | None
    targets: Targets
    aim: Aim | None = None


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
        """C of the decisive layers."""
        experiment, config, model = self.experiment, self.experiment.config, self.experiment.model
        if experiment.published is not None:
            return experiment.published.read(model)
        assert experiment.corpus is not None
        return second_moments(
            model,
            experiment.corpus,
            experiment.layers,
            config.corpus_length,
            experiment.corpus_tokens,
            progress=self.progress,
        )

    @cached_property
    def ridge(self) -> float:
        """λ: what was given, or suits the model at hand."""
        experiment = self.experiment
        if experiment.ridge is not None:
            return experiment.ridge
        for layer, matrix in self.moments.matrices.items():
            factored(matrix.to(experiment.model.device), f"λC at layer {layer}", advice(matrix, 1.0))
        return suited_ridge(experiment.setting(self.moments, 0.0).eases(experiment.layers))

    def begin(self, folder: Path) -> None:
        """Read or make the moments; refuse a singular λC at once where it is solved with fewer keys than it is wide.

        A run that is resumed keeps its λ, lest another machine's rounding choose another.
        """
        self.recall(folder)
        count = len(self.experiment.facts) if self.columns is None else self.columns
        if self.experiment.published is not None:
            _ = self.moments  # files that cannot be used are refused before the long work
        device = self.experiment.model.device
        matrices = self.moments.matrices if count < self.experiment.model.d_mlp else {}
        for layer, matrix in matrices.items():
            factored(self.ridge * matrix.to(device), f"λC at layer {layer}", advice(matrix, self.ridge))

    def recall(self, folder: Path) -> None:
        """Take the λ that a run has been made with, if it followed from what is realised."""
        if self.experiment.ridge is None and exists(folder) and "ridge" in (told := read_config(folder)["provenance"]):
            vars(self)["ridge"] = float(told["ridge"])

    @property
    def descents(self) -> torch.dtype | None:
        """Dtype of the copy of the model that descents run in, if it is another than the model's."""
        chosen = self.experiment.anchor.dtype
        dtype = None if chosen is None else getattr(torch, chosen)
        return None if dtype == self.experiment.model.dtype else dtype

    def _together(self) -> dict[str, Any]:
        """What `anchor_batches` has to know of those who descend: this process, or the workers."""
        model, crew, load = self.experiment.model, self.experiment.crew, self.experiment.crew.load
        weights, copied = sum(w.numel() for w in model.hf.parameters()), self.descents.itemsize if self.descents else 0
        if crew.free is None:
            free, cards = free_memory(model.devices) - weights * copied // max(1, model.cards), model.cards
        else:
            taken = load.beside * weights * (model.dtype.itemsize + copied) // load.worker_cards
            free, cards = (crew.free - taken) // load.beside, load.worker_cards if model.cards else 0
        return {"cards": cards, "free": max(0, free), "dtype": self.descents}

    @property
    def kept(self) -> int:
        """Bytes of C at all decisive layers, which the host keeps."""
        return len(self.experiment.layers) * self.experiment.model.d_mlp**2 * torch.float64.itemsize

    @cached_property
    def _moment_lengths(self) -> list[int]:
        """Tokens of each row that the second moments are still to be taken over; none where they are there."""
        experiment, config = self.experiment, self.experiment.config
        if experiment.corpus is None:
            return []
        given = (experiment.corpus, experiment.layers, config.corpus_length, experiment.corpus_tokens)
        if moments_cached(experiment.model, *given):
            return []
        rows = moment_rows(experiment.model, experiment.corpus, config.corpus_length, experiment.corpus_tokens)
        return [len(row.ids) for row in rows]

    def cost_before(self, costs: Costs, folder: Path | None) -> list[Stage]:
        """What `begin` and the choice of λ are going to take; without weights, as if nothing were in the cache."""
        experiment = self.experiment
        if folder is not None:
            self.recall(folder)
        lengths = self._moment_lengths
        moments = [costs.moments(sum(lengths), experiment.layers, max(lengths))] if lengths else []
        seconds, count = 0.0, len(experiment.layers)
        if experiment.ridge is None and "ridge" not in vars(self):
            contexts = [row for each in experiment.rows.contexts for row in each]
            keys = sum((costs.forward(contexts, layer + 1) for layer in experiment.layers), 0.0)
            seconds = keys + costs.solves(2 * count, len(experiment.rows))
        return [*moments, costs.editing("λ and its checks", seconds + costs.solves(count, 0), 0)]

    def cost_of_descents(
        self,
        costs: Costs,
        done: Finished,
        layers: Sequence[int],
        shifted: Mapping[Layers, Labels] = NOTHING,
        name: str = "anchor",
    ) -> list[Stage]:
        """What anchors and coordinated shifts are going to take."""
        wanted: list[tuple[str, int, str, Labels]] = [
            (f"anchors at layer {layer}", layer, name, {"anchor_layer": layer}) for layer in layers
        ]
        for some, where in shifted.items():
            wanted.append((f"coordinated shifts at {counted(len(some), 'layer')}", some[0], "coordinated_shift", where))
        experiment, stages, labels = self.experiment, list[Stage](), self.experiment.labels()
        for what, first, stored, where in wanted:
            there = np.reshape(done.cells(f"{stored}_passes", fact=labels, **where), -1)
            lacking = [] if there.all() else self._lacking(stored, **where)
            if facts := [place for place in lacking if not there[place]]:
                steps, rows = experiment.anchor.steps, experiment.rows.select(facts)
                stages.append(costs.descent(what, rows, first, steps, experiment.config.batch_size))
        return stages

    def _lacking(self, name: str, **where: Any) -> list[int]:
        """Of which facts the run that ⟨anchors_from⟩ names gives no such descent."""
        experiment, donor = self.experiment, self.experiment.config.anchors_from
        everyone = list(range(len(experiment.facts)))
        if donor is None or name == "refit_anchor":
            return everyone
        if experiment.gone is not None:
            raise experiment.gone
        if name == "coordinated_shift" and self._other_shifts(donor):
            return everyone
        mark, opened, labels = f"{name}_passes", open_arrays(donor, "r"), experiment.labels()
        dims = opened.variables[mark].dims if mark in opened.variables else ()
        if {*dims} != {"fact", *where} or any(label not in opened.labels[dim] for dim, label in where.items()):
            return everyone
        shared = [place for place in everyone if place in experiment.shared]
        given = np.reshape(Finished.of(donor).cells(mark, fact=[labels[place] for place in shared], **where), -1)
        has = {place for place, done in zip(shared, given.tolist(), strict=True) if done}
        return [place for place in everyone if place not in has]

    def provenance(self) -> dict[str, Any]:
        """What is worth knowing of a run of this experiment, λ among it."""
        return self.experiment.provenance() | {"ridge": self.ridge}

    @cached_property
    def setting(self) -> Setting:
        """What its edits are made with."""
        return self.experiment.setting(self.moments, self.ridge)

    def parts(self, coordinated: bool) -> list[Part]:
        """The parts of a run that hold anchors and shifts."""
        layers, ends = self.experiment.layers, self.experiment.anchor_layers
        anchors = Part(
            [("anchor_passes", {})],
            lambda run: self.anchors(run, ends),
            cost=lambda costs, done: self.cost_of_descents(costs, done, ends),
        )
        shifts = Part(
            [("coordinated_shift_passes", {})],
            lambda run: self.shifts(run, layers),
            cost=lambda costs, done: self.cost_of_descents(costs, done, (), {layers: {}}),
        )
        return [anchors, shifts] if coordinated else [anchors]

    def targets(self, run: Run, schemes: Iterable[str]) -> Targets:
        """Targets of all kinds that some schemes need, from anchors and shifts that the run holds afterwards."""
        experiment, layers = self.experiment, self.experiment.layers
        anchors = self.anchors(run, experiment.anchor_layers)
        return make_targets(
            experiment.rows, layers, anchors, self.shifts(run, layers) if any_coordinated(schemes) else None
        )

    def aimed(self, run: Run, schemes: Iterable[str]) -> Aimed:
        """What methods edit with, and where their anchors lead."""
        schemes, layer = list(schemes), self.experiment.layers[-1]
        targets, setting = self.targets(run, schemes), self.setting if schemes else None
        return Aimed(setting, targets, Aim.of(self.experiment.rows, layer, targets.optimised[layer]))

    def anchors(
        self, run: Run, layers: Layers, name: str = "anchor", only: Sequence[int] | None = None
    ) -> dict[int, torch.Tensor]:
        """Anchors of the model as it is now; what the run lacks of them is optimised, batch by batch, and stored."""

        def descent(anchor_layer: int) -> Callable[..., Found]:
            return partial(_anchors, self.experiment.rows, self.experiment.anchor, anchor_layer)

        places: list[Labels] = [{"anchor_layer": layer} for layer in layers]
        return dict(zip(layers, self._descend(run, name, places, descent, only), strict=True))

    def shifts(self, run: Run, layers: Layers, **labels: Any) -> torch.Tensor:
        """Coordinated shifts of the unedited model; what the run lacks is optimised and stored."""
        experiment, coordination = self.experiment, self.experiment.config.coordination

        def descent(**_: Any) -> Callable[..., Found]:
            eases = self.setting.eases(layers).cpu() if coordination.needs_eases else None  # of the unedited model
            return partial(_shifts, experiment.rows, experiment.anchor, layers, coordination, eases)

        (shifts,) = self._descend(run, "coordinated_shift", [labels], descent)
        return shifts

    def _take_over(self, run: Run, name: str) -> None:
        """Copy what the run that ⟨anchors_from⟩ names has finished of a descent, if the same settings decide it."""
        donor, mark, what = self.experiment.config.anchors_from, f"{name}_passes", f"{name}s".replace("_", " ")
        if donor is None or name == "refit_anchor" or donor.resolve() == run.folder.resolve():
            return
        if self.experiment.gone is not None:
            raise self.experiment.gone
        if name == "coordinated_shift" and (changed := self._other_shifts(donor)):
            note(f"{what} are optimised anew: those of {donor} were made with another {changed}")
            return
        note(f"{run.take_over(donor, mark)} {what} are those of {donor}")

    def _other_shifts(self, donor: Path) -> str:
        """The setting by which another run's coordinated shifts are not those of this one; empty if they are."""
        deciding = ("layers", "coordination", *(("corpus",) if self.experiment.config.coordination.needs_eases else ()))
        ours, theirs = json.loads(json.dumps(self.experiment.settings())), read_config(donor)["settings"]
        return next((each for each in deciding if ours[each] != theirs.get(each)), "")  # an older run lacks some

    def _descend(
        self,
        run: Run,
        name: str,
        places: Sequence[Labels],
        descent: Callable[..., Callable[..., Found]],
        only: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """What descents give at each place; what the run lacks is optimised, batch by batch, and stored.

        A batch that lacks some is optimised as a whole, so that the numbers are the same to the last bit.
        """
        experiment, labels, mark = self.experiment, run.coordinates["fact"], f"{name}_passes"
        crew = experiment.crew
        chosen = list(range(len(labels)) if only is None else only)
        facts = [labels[index] for index in chosen]
        shared = experiment.shared if name != "refit_anchor" else frozenset()
        together = self._together()
        batches = [
            [some[index] for index in batch]
            for some in ([i for i in chosen if i in shared], [i for i in chosen if i not in shared])
            for batch in anchor_batches(experiment.rows.select(some), experiment.config.batch_size, **together)
        ]

        def within(variable: str, where: Labels) -> Labels:
            return {dim: each for dim, each in where.items() if dim in run.variables[variable].dims}

        def done() -> np.ndarray:
            cells = (run.done(mark, fact=facts, **within(mark, where)).reshape(len(facts)) for where in places)
            return np.stack(list(cells), axis=1)

        if not done().all():
            self._take_over(run, name)
        finished = done()
        by_fact = dict(zip(chosen, finished, strict=True))
        what = f"{name}s".replace("_", " ")
        with bar(finished.size, what, "anchor", done=int(finished.sum()), show=self.progress) as shown:

            def advance(finished: int, loss: float) -> None:
                shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
                shown.update(finished)

            def tell(failed: int, next_size: int) -> None:
                shown.n = int(done().sum())  # less what did not fit
                note(f"out of memory with the anchors of {failed} facts side by side: going on with {next_size}")

            for place, where in enumerate(places):
                left = [batch for batch in batches if not all(by_fact[index][place] for index in batch)]
                if not left:
                    continue
                work = descent(**where)
                work = partial(work, progress=advance) if crew.here else work
                for batch, (states, loss, passes) in crew.map(left, work, tell, partial(called, labels=labels)):
                    some = {"fact": [labels[index] for index in batch], **where}
                    run.write(name, states.double(), **within(name, some))
                    run.write(f"{name}_loss", loss, **within(f"{name}_loss", some))
                    run.seal(mark, passes, **within(mark, some))
                    if not crew.here:
                        advance(len(batch), float(loss.nanmean()))
        experiment.model.drop_casts()
        dtype, device = torch.promote_types(experiment.model.dtype, torch.float32), experiment.model.device
        stored = (run.read(name, fact=facts, **within(name, where)) for where in places)
        return [torch.tensor(values, dtype=dtype, device=device) for values in stored]


def any_coordinated(schemes: Iterable[str]) -> bool:
    """Whether some scheme needs coordinated shifts."""
    return any(SCHEMES[name].kind == COORDINATED for name in schemes)


def _anchors(
    rows: FactRows, settings: AnchorSettings, layer: int, batch: Sequence[int], progress: Progress | None = None
) -> Found:
    """The anchors of a batch, on the host."""
    found = optimise_anchors(rows.select(batch), layer, settings, progress)
    return found.states.cpu(), found.loss.cpu(), found.passes.cpu()


def _shifts(
    rows: FactRows,
    settings: AnchorSettings,
    layers: Layers,
    coordination: CoordinationSettings,
    eases: torch.Tensor | None,
    batch: Sequence[int],
    progress: Progress | None = None,
) -> Found:
    """The coordinated shifts of a batch, on the host."""
    known = None if eases is None else eases[list(batch)]
    found = coordinate_shifts(rows.select(batch), layers, settings, coordination, known, progress)
    return found.shifts.cpu(), found.loss.cpu(), found.passes.cpu()


def measured_edit(
    setting: Setting,
    scheme: Scheme,
    targets: Targets,
    look_on: Callable[[ObservedEdit], Any] = lambda _: None,
    examine: Callable[[], Mapping[str, torch.Tensor]] = dict,
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Edit, measure, and put the weights back."""
    edits = []
    with restored(setting.model, targets.layers):
        for edit in observed_edits(setting, scheme, targets):
            look_on(edit)
            edits.append(edit)
        asked = {"efficacy": efficacy(setting.model, setting.facts), **examine()}
    values = {name: value.cpu().numpy() for name, value in measure(edits, targets, scheme).items()}
    finite = targets.finite(scheme.kind)
    return scheme.edited(targets.layers), values | {name: where_finite(each, finite) for name, each in asked.items()}


def where_finite(values: torch.Tensor, finite: torch.Tensor) -> np.ndarray:
    """NaN for facts that took no part in the edit."""
    kept = finite.to(values.device).view(-1, *[1] * (values.dim() - 1))
    return torch.where(kept, values.double(), math.nan).cpu().numpy()
