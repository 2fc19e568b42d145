"""Benches of a search: a window with descents of one kind, ready for edits that are observed or evaluated."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, REPLAYED, SCHEMES, method
from jacobian_lab.editing.measures import ObservedEdit, measure
from jacobian_lab.editing.schemes import Targets, make_targets
from jacobian_lab.evaluation.metrics import accuracy
from jacobian_lab.jobs.comparison import Aimed, Comparison
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment
from jacobian_lab.jobs.job import Labels
from jacobian_lab.jobs.measuring import where_finite
from jacobian_lab.jobs.recording import Recorded, work_of
from jacobian_lab.model.language_model import Layers
from jacobian_lab.parallel.executor import SERIAL
from jacobian_lab.planning.work import Stage, total
from jacobian_lab.progress import bar, counted
from jacobian_lab.session.descents import ANCHOR, SHIFT
from jacobian_lab.session.session import Session, any_coordinated
from jacobian_lab.store.run import Run


def disturbance(price: Float[Tensor, "fact layer"], edits: Sequence[ObservedEdit]) -> float:
    """Root mean square of what an edit changes of a typical token's states, over their norms, at the least.

    ‖δ‖²/(kᵀC⁻¹k) is the least mean square that a change of the weight with ΔW k = δ adds to the layer's output on the
    corpus. Facts add up, and so do layers.
    """
    sizes = torch.stack([(edit.before**2).sum(-1).nanmean() for edit in edits])
    return float((price.nansum(0) / sizes.to(price)).sum().sqrt())


@dataclass(frozen=True, eq=False)
class Bench:
    """A window with descents of one kind, ready for edits.

    Attributes:
        comparison: The methods at these layers.
        targets: Their targets.
    """

    comparison: Comparison
    targets: Targets

    @property
    def session(self) -> Session:
        """The session at these layers."""
        return self.comparison.experiment.session


@dataclass(frozen=True, eq=False)
class Benches:
    """Windows and descents at which methods are tried.

    Attributes:
        comparison: The methods, at the layers of all windows together.
        windows: Layers of each window.
        variants: Learning rate and passes of the descents; windows are compared at the first.
        absolute: Whether points are values of λ, instead of factors of what suits a window.
        progress: Whether to show progress bars.
    """

    comparison: Comparison
    windows: Mapping[str, Layers]
    variants: Mapping[str, tuple[float, int]]
    absolute: bool
    progress: bool

    @property
    def experiment(self) -> Experiment:
        """Model, facts and settings, with the layers of all windows."""
        return self.comparison.experiment

    @property
    def base(self) -> str:
        """The descents at which windows are compared."""
        return next(iter(self.variants))

    def at(self, window: str, variant: str) -> Comparison:
        """Narrow the methods to a window and some descents, to be counted."""
        (lr, steps), layers, whole = self.variants[variant], self.windows[window], self.experiment
        anchor = replace(whole.session.anchor, lr=lr, steps=steps)
        session = replace(whole.session, layers=layers, anchor=anchor)
        return replace(self.comparison, experiment=replace(whole, layers=layers, session=session))

    def bench(self, run: Run, window: str, variant: str, cells: Sequence[Labels]) -> Bench:
        """Make a window ready for edits: C, λ, anchors and the shifts that some cell needs, which go with it.

        Whoever shares the work is hired once, for the layers of all windows.
        """
        comparison, layers, executor = self.at(window, variant), self.windows[window], self.experiment.executor
        session = comparison.experiment.session
        stored = run.read("suited_ridge", window=window)[run.done("observed", window=window).reshape(-1)]
        ridge = float(stored[0]) if stored.size else session.fixed_ridge  # a run that goes on keeps its λ
        narrowed = replace(comparison.experiment, session=replace(session, fixed_ridge=ridge), executor=SERIAL)
        experiment = narrowed.with_layers(layers)
        session = replace(experiment.session, executor=executor)
        experiment = replace(experiment, session=session, executor=executor)
        recorder = Recorded(run, experiment, {"variant": variant})
        anchors = session.anchors(recorder, session.anchor_layers)
        where = {"window": window, "place": list(range(len(layers)))}
        shifts = session.shifts(recorder, None, where) if _coordinated(cells) else None
        targets = make_targets(experiment.rows, layers, anchors, shifts)
        return Bench(replace(comparison, experiment=experiment), targets)

    def _descended(self, run: Run, name: str, window: str, variant: str) -> tuple[float, float]:
        """Share of facts whose descent came below the loss that ends it, and mean passes, of what a method aims at."""
        scheme, layers = SCHEMES[method(name).scheme], self.windows[window]
        if scheme.kind == COORDINATED:
            losses, passes = (
                run.read(f"{SHIFT}_{what}", window=window, variant=variant) for what in ("loss", "passes")
            )
            losses, passes = losses[:, None], passes[:, None]
        else:
            read = layers[-1:] if scheme.reads == "last" else scheme.edited(layers)
            ends = list(layers[:1] if scheme.kind == REPLAYED else read)
            where: dict[str, Any] = {"variant": variant, "anchor_layer": ends}
            losses, passes = (run.read(f"{ANCHOR}_{what}", **where) for what in ("loss", "passes"))
        below = (losses < self.experiment.session.anchor.stop_loss).all(1)
        return float(below.mean()), float(passes.sum(1).mean())

    def observe(self, run: Run, cells: Sequence[Labels]) -> None:
        """Edit once at every window at the λ that suits it, and observe what that does; no question is asked."""
        with bar(len(cells), "windows", "edit", show=self.progress) as progress_bar:
            for (window,), group in grouped(cells, "window"):
                self._observe_at(run, window, group, progress_bar.update)

    def _observe_at(self, run: Run, window: str, cells: Sequence[Labels], advance: Callable[[], Any]) -> None:
        """Observe edits at one window."""
        bench = self.bench(run, window, self.base, cells)
        _ = bench.session.ridge  # which is no method's time
        for cell in cells:
            begin = time.perf_counter()
            for variable, values, further in self._observed(bench, cell["edit"]):
                run.write(variable, values, **cell, **further)
            reached, passes = self._descended(run, cell["edit"], window, self.base)
            values_by_name = {"reached": reached, "passes": passes, "seconds": time.perf_counter() - begin}
            for name, value in values_by_name.items():
                run.write(f"observed_{name}", value, **cell)
            run.commit("observed", **cell)
            advance()

    def _observed(self, bench: Bench, name: str) -> Iterator[tuple[str, Any, Labels]]:
        """Edit with a method and observe it."""
        session, scheme, edits = bench.session, SCHEMES[method(name).scheme], list[ObservedEdit]()
        with session.edited(name, bench.targets, look_on=edits.append):
            answered = accuracy(session.model, session.rows.answered)
        values = measure(edits, bench.targets, scheme)
        layers = {"layer": list(scheme.edited(session.layers))}
        yield "suited_ridge", session.ridge, {}
        for variable in ("realised", "residual_ratio"):
            yield variable, values[variable].cpu().numpy(), layers
        yield "disturbance", disturbance(values["price"], edits), {}
        yield "observed_efficacy", where_finite(answered, bench.targets.finite(scheme.kind)), {}

    def evaluate(self, run: Run, cells: Sequence[Labels]) -> None:
        """Edit and evaluate, window after window."""
        self.comparison.evaluator.remember(self.experiment.executor)
        with bar(len(cells), "tries", "edit", show=self.progress) as progress_bar:
            for (window, variant), group in grouped(cells, "window", "variant"):
                self._evaluate_at(run, window, variant, group, progress_bar.update)

    def _evaluate_at(
        self, run: Run, window: str, variant: str, cells: Sequence[Labels], advance: Callable[[], Any]
    ) -> None:
        """Evaluate edits at one window, with descents of one kind."""
        bench = self.bench(run, window, variant, cells)
        setting = bench.session.setting
        for cell in cells:
            begin = time.perf_counter()
            ridge = cell["point"] if self.absolute else float(f"{cell['point'] * setting.ridge:.3g}")
            aimed = Aimed(bench.targets, setting=replace(setting, ridge=ridge))
            for variable, values, further in bench.comparison.measure(cell["edit"], aimed):
                run.write(variable, values, **cell, **further)
            reached, passes = self._descended(run, cell["edit"], window, variant)
            seconds = time.perf_counter() - begin
            values_by_name = {"ridge": ridge, "reached": reached, "passes": passes, "seconds": seconds}
            for name, value in values_by_name.items():
                run.write(name, value, **cell)
            run.commit("measured", **cell)
            advance()

    def observing(self, counts: Counts, cells: Sequence[Labels]) -> Iterator[Stage]:
        """Count shifts, λ and observed edits."""
        rows = self.experiment.rows
        for (window,), group in grouped(cells, "window"):
            layers = self.windows[window]
            yield from self._shifting(counts, window, self.base, group)
            answers = counts.evaluation([rows.answered])
            work = counts.solves(len(layers), len(rows)) + counts.keys(rows, layers)
            work += total(
                counts.edit(rows, SCHEMES[method(cell["edit"]).scheme], layers, observed=True) + answers
                for cell in group
            )
            name = f"{counted(len(group), 'edit')} at layers {window}, observed"
            yield counts.editing(name, work, len(layers), rows, observed=True)

    def evaluating(self, counts: Counts, cells: Sequence[Labels]) -> Iterator[Stage]:
        """Count descents and evaluated edits."""
        for (window, variant), group in grouped(cells, "window", "variant"):
            if variant != self.base:
                experiment = self.at(window, variant).experiment
                everyone = tuple(range(len(experiment.facts)))
                for layer in experiment.session.anchor_layers:
                    yield from work_of(counts, experiment, (ANCHOR, {"anchor_layer": layer}, everyone))
                yield from self._shifting(counts, window, variant, group)
            for stage in self.at(window, variant).work(counts, [cell["edit"] for cell in group]):
                yield replace(stage, name=f"{stage.name}, at layers {window}")

    def _shifting(self, counts: Counts, window: str, variant: str, cells: Sequence[Labels]) -> Iterable[Stage]:
        """Count coordinated shifts, if some cell needs them."""
        if not _coordinated(cells):
            return []
        experiment = self.at(window, variant).experiment
        where = {"anchor_layer": list(experiment.layers)}
        return work_of(counts, experiment, (SHIFT, where, tuple(range(len(experiment.facts)))))


def grouped(cells: Sequence[Labels], *dims: str) -> Iterator[tuple[tuple[Any, ...], list[Labels]]]:
    """Cells by some of their labels, in the order in which these come first."""
    places = dict.fromkeys(tuple(cell[dim] for dim in dims) for cell in cells)
    for place in places:
        yield place, [cell for cell in cells if tuple(cell[dim] for dim in dims) == place]


def _coordinated(cells: Sequence[Labels]) -> bool:
    """Tell whether the method of some cell needs coordinated shifts."""
    return any_coordinated(method(cell["edit"]).scheme for cell in cells)
