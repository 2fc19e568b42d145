"""What several jobs need of an experiment: its second moments, its anchors and targets, an edit measured and undone."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jacobian_lab.editing.anchors import Progress, anchor_batches, coordinate_shifts, optimise_anchors
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import ObservedEdit, measure, observed_edits
from jacobian_lab.editing.schemes import COORDINATED, SCHEMES, Scheme, Targets, make_targets
from jacobian_lab.editing.second_moments import SecondMoment, second_moments
from jacobian_lab.editing.solving import advice, factored, suited_ridge
from jacobian_lab.evaluation.aims import Aim
from jacobian_lab.evaluation.metrics import efficacy
from jacobian_lab.jobs.job import Labels
from jacobian_lab.jobs.setup import Experiment
from jacobian_lab.memory import halving
from jacobian_lab.model.language_model import Layers
from jacobian_lab.progress import bar, note
from jacobian_lab.store.arrays import exists, read_config
from jacobian_lab.store.run import Run

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a descent gives: states or shifts, losses and passes, fact by fact."""


@dataclass(frozen=True, eq=False)
class Aimed:
    """What methods that are pairs edit with.

    Attributes:
        setting: What the edit is made with.
        targets: The targets.
        aim: Where the anchors at the last decisive layer lead, if that is asked.
    """

    setting: Setting
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
            config.corpus_tokens,
            progress=self.progress,
        )

    @cached_property
    def ridge(self) -> float:
        """λ: what was given, or suits the model at hand."""
        experiment = self.experiment
        if experiment.ridge is not None:
            return experiment.ridge
        for layer, matrix in self.moments.matrices.items():
            factored(matrix, f"λC at layer {layer}", advice(matrix, 1.0))
        return suited_ridge(experiment.setting(self.moments, 0.0).eases(experiment.layers))

    def begin(self, folder: Path) -> None:
        """Read or make the moments; refuse a singular λC at once where it is solved with fewer keys than it is wide.

        A run that is resumed keeps its λ, lest another machine's rounding choose another.

        Args:
            folder: The run's folder.

        Raises:
            InputError: If one is singular.
        """
        if self.experiment.ridge is None and exists(folder) and "ridge" in (told := read_config(folder)["provenance"]):
            vars(self)["ridge"] = float(told["ridge"])
        count = len(self.experiment.facts) if self.columns is None else self.columns
        if self.experiment.published is not None:
            _ = self.moments  # files that cannot be used are refused before the long work
        matrices = self.moments.matrices if count < self.experiment.model.d_mlp else {}
        for layer, matrix in matrices.items():
            factored(self.ridge * matrix, f"λC at layer {layer}", advice(matrix, self.ridge))

    def provenance(self) -> dict[str, Any]:
        """What is worth knowing of a run of this experiment, λ among it."""
        return self.experiment.provenance() | {"ridge": self.ridge}

    @cached_property
    def setting(self) -> Setting:
        """What its edits are made with."""
        return self.experiment.setting(self.moments, self.ridge)

    def targets(self, run: Run, schemes: Iterable[str]) -> Targets:
        """Targets of all kinds that some schemes need, from anchors and shifts that the run holds afterwards.

        Args:
            run: The run.
            schemes: The schemes.

        Returns:
            The targets.
        """
        experiment, layers = self.experiment, self.experiment.layers
        anchors = self.anchors(run, experiment.anchor_layers)
        return make_targets(
            experiment.rows, layers, anchors, self.shifts(run, layers) if any_coordinated(schemes) else None
        )

    def aimed(self, run: Run, schemes: Iterable[str]) -> Aimed:
        """What methods edit with, and where their anchors lead.

        Args:
            run: The run.
            schemes: The methods' schemes.

        Returns:
            All of it.
        """
        targets, layer = self.targets(run, schemes), self.experiment.layers[-1]
        return Aimed(self.setting, targets, Aim.of(self.experiment.rows, layer, targets.optimised[layer]))

    def anchors(
        self, run: Run, layers: Layers, name: str = "anchor", only: Sequence[int] | None = None
    ) -> dict[int, torch.Tensor]:
        """Anchors of the model as it is now; what the run lacks of them is optimised, batch by batch, and stored.

        Args:
            run: The run.
            layers: Layers among the run's anchor layers.
            name: Under which name they are stored.
            only: Indices of the facts; all of them by default.

        Returns:
            Anchors of these facts by layer, ``[fact, d_model]``, in float32 or better.
        """

        def optimise(batch: Sequence[int], progress: Progress, anchor_layer: int) -> Found:
            experiment = self.experiment
            found = optimise_anchors(experiment.rows.select(batch), anchor_layer, experiment.anchor, progress)
            return found.states, found.loss, found.passes

        places: list[Labels] = [{"anchor_layer": layer} for layer in layers]
        return dict(zip(layers, self._descend(run, name, places, optimise, only), strict=True))

    def shifts(self, run: Run, layers: Layers, **labels: Any) -> torch.Tensor:
        """Coordinated shifts at some layers of the unedited model; what the run lacks of them is optimised and stored.

        Args:
            run: The run.
            layers: The layers.
            **labels: Where they are stored, beside the facts.

        Returns:
            δ_l, ``[fact, layer, d_model]``, in float32 or better.
        """
        experiment, coordination = self.experiment, self.experiment.config.coordination
        eases = cache(lambda: self.setting.eases(layers))  # of the unedited model, if a batch is to be made

        def optimise(batch: Sequence[int], progress: Progress, **_: Any) -> Found:
            known = eases()[list(batch)] if coordination.needs_eases else None
            rows = experiment.rows.select(batch)
            found = coordinate_shifts(rows, layers, experiment.anchor, coordination, known, progress)
            return found.shifts, found.loss, found.passes

        (shifts,) = self._descend(run, "coordinated_shift", [labels], optimise)
        return shifts

    def _take_over(self, run: Run, name: str) -> None:
        """Copy what the run that ⟨anchors_from⟩ names has finished of a descent, if the same settings decide it."""
        donor, mark, what = self.experiment.config.anchors_from, f"{name}_passes", f"{name}s".replace("_", " ")
        if donor is None or name == "refit_anchor" or run.done(mark).all() or donor.resolve() == run.folder.resolve():
            return
        if name == "coordinated_shift":
            eased = self.experiment.config.coordination.needs_eases
            deciding = ("layers", "coordination", *(("corpus",) if eased else ()))
            ours, theirs = json.loads(json.dumps(self.experiment.settings())), read_config(donor)["settings"]
            if changed := [each for each in deciding if ours[each] != theirs[each]]:
                note(f"{what} are optimised anew: those of {donor} were made with another {changed[0]}")
                return
        note(f"{run.take_over(donor, mark)} {what} are those of {donor}")

    def _descend(
        self,
        run: Run,
        name: str,
        places: Sequence[Labels],
        optimise: Callable[..., Found],
        only: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """What descents give at each place; what the run lacks is optimised, batch by batch, and stored.

        A batch that lacks some is optimised as a whole, so that the numbers are the same to the last bit.

        Args:
            run: The run.
            name: Under which name they are stored.
            places: Where, beside the facts.
            optimise: The descent, given a batch, whom to tell of its passes, and the place.
            only: Indices of the facts; all of them by default.

        Returns:
            What is stored at each place, in float32 or better.
        """
        self._take_over(run, name)
        experiment, labels, mark = self.experiment, run.coordinates["fact"], f"{name}_passes"
        chosen = list(range(len(labels)) if only is None else only)
        facts = [labels[index] for index in chosen]
        shared = experiment.shared if name != "refit_anchor" else frozenset()
        batches = [
            [some[index] for index in batch]
            for some in ([i for i in chosen if i in shared], [i for i in chosen if i not in shared])
            for batch in anchor_batches(experiment.rows.select(some), experiment.config.batch_size)
        ]

        def within(variable: str, where: Labels) -> Labels:
            return {dim: each for dim, each in where.items() if dim in run.variables[variable].dims}

        def done() -> np.ndarray:
            cells = (run.done(mark, fact=facts, **within(mark, where)).reshape(len(facts)) for where in places)
            return np.stack(list(cells), axis=1)

        finished = done()
        by_fact = dict(zip(chosen, finished, strict=True))
        what = f"{name}s".replace("_", " ")
        with bar(finished.size, what, "anchor", done=int(finished.sum()), show=self.progress) as shown:

            def advance(finished: int, loss: float) -> None:
                shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
                shown.update(finished)

            def descend(batch: Sequence[int], where: Labels) -> Found:
                shown.n = int(done().sum())  # less what did not fit
                return optimise(batch, advance, **where)

            for place, where in enumerate(places):
                left = [batch for batch in batches if not all(by_fact[index][place] for index in batch)]
                for batch, (states, loss, passes) in halving(left, partial(descend, where=where), _tell):
                    some = {"fact": [labels[index] for index in batch], **where}
                    run.write(name, states.cpu().double(), **within(name, some))
                    run.write(f"{name}_loss", loss.cpu(), **within(f"{name}_loss", some))
                    run.seal(mark, passes.cpu(), **within(mark, some))
        dtype, device = torch.promote_types(experiment.model.dtype, torch.float32), experiment.model.device
        stored = (run.read(name, fact=facts, **within(name, where)) for where in places)
        return [torch.tensor(values, dtype=dtype, device=device) for values in stored]


def any_coordinated(schemes: Iterable[str]) -> bool:
    """Whether some scheme needs coordinated shifts.

    Args:
        schemes: Names of schemes.

    Returns:
        Whether one does.
    """
    return any(SCHEMES[name].kind == COORDINATED for name in schemes)


def _tell(failed: int, next_size: int) -> None:
    note(f"out of memory with the anchors of {failed} facts side by side: going on with {next_size}")


def measured_edit(
    setting: Setting,
    scheme: Scheme,
    targets: Targets,
    look_on: Callable[[ObservedEdit], Any] = lambda _: None,
    examine: Callable[[], Mapping[str, torch.Tensor]] = dict,
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Edit, measure, and put the weights back.

    Args:
        setting: What the edit is made with.
        scheme: The target scheme.
        targets: The targets; they say which layers are decisive.
        look_on: Shown every layer's edit just after it.
        examine: Asks the edited model further things, ``[fact]`` each.

    Returns:
        The edited layers, and what `measure` says of them with the efficacy and what was asked, ``[fact]``.
    """
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
    """NaN for facts that took no part in the edit.

    Args:
        values: One or several for each fact, ``[fact, ...]``.
        finite: Which facts did, `Targets.finite`.

    Returns:
        The same in float64.
    """
    kept = finite.to(values.device).view(-1, *[1] * (values.dim() - 1))
    return torch.where(kept, values.double(), math.nan).cpu().numpy()
