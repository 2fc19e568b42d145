"""A search over windows of layers, λ, learning rate and passes: cheap measures first, then edits of the few left."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, REPLAYED, SCHEMES, TRAINED, method, method_name
from jacobian_lab.editing.measures import ObservedEdit, measure
from jacobian_lab.editing.schemes import Targets, make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.metrics import accuracy
from jacobian_lab.evaluation.questions import neighborhood
from jacobian_lab.jobs.comparison import Aimed, Comparison
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment
from jacobian_lab.jobs.job import Job, Labels, Part, Preparation, unfinished
from jacobian_lab.jobs.measuring import where_finite
from jacobian_lab.jobs.recording import Recorded, descents, work_of
from jacobian_lab.jobs.setup import parse_layers
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.devices import Places
from jacobian_lab.model.footprint import DOUBLE
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.loading import check_layers
from jacobian_lab.model.protocols import Protocol, file_name
from jacobian_lab.planning.work import Stage, total
from jacobian_lab.progress import bar, counted, span
from jacobian_lab.session.descents import ANCHOR, SHIFT
from jacobian_lab.session.session import any_coordinated
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run, config_of, open_run
from jacobian_lab.tries import (
    LABELS,
    choices,
    criterion_of,
    evaluated_tries,
    finalists,
    gain_of,
    observed_windows,
    reasons,
)

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of λ, over the one that suits a window."""
SPREAD = 6
"""Windows that are spread over the first two thirds of a model."""
SLOWER = 0.4
"""The other learning rate, over the model's own."""
WITHOUT_RIDGE = "alphaedit"
"""The rule that has no λ."""


def tune_job(config: TuneConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """Search layers, λ, learning rate and passes for methods, each of which gets the same tries."""
    methods = list(dict.fromkeys(map(method_name, config.methods)))
    _check(config, methods)
    comparison = Comparison.of(config, methods, progress, sketch=sketch)
    search = Search.of(config, comparison, progress, sketch=sketch)
    return Job(
        "tune",
        comparison.experiment.model,
        config.out,
        search.settings(),
        search.experiment.provenance,
        search.coordinates(),
        search.parts(),
        before=search.preparation(),
        descents=search.experiment.session.descent_dtype,
        executor=search.experiment.executor,
    )


def _check(config: TuneConfig, methods: Sequence[str]) -> None:
    """Refuse what cannot be searched before anything is loaded."""
    for name in methods:
        if name in TRAINED or method(name).refit:
            raise InputError(f"expected pairs of a rule and a target scheme, got {name}: leave it out of ⟨methods⟩")
    for field, instead in (("layers", "⟨windows⟩ as 3-7 5-9"), ("anchors_from", "a folder of ⟨out⟩ that goes on")):
        if getattr(config, field) is not None:
            raise InputError(f"expected {instead}, got ⟨{field}⟩: a search makes descents at several windows")


def spread_windows(blocks: int, width: int, count: int = SPREAD) -> list[Layers]:
    """Spread windows evenly over the first two thirds of a model."""
    if width > blocks:
        raise InputError(f"expected at most {blocks} layers, as the model has, got ⟨width⟩ {width}: lower it")
    last = max(0, -(-2 * blocks // 3) - width)
    starts = sorted({round(place * last / (count - 1)) for place in range(count)})
    return [tuple(range(start, start + width)) for start in starts]


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


@dataclass(frozen=True, eq=False)
class Search:
    """A search: windows, descents and values of λ, tried with every method.

    Attributes:
        config: The configuration.
        comparison: The methods, at the layers of all windows together.
        windows: Layers of each window.
        variants: Learning rate and passes of the descents; windows are compared at the first.
        progress: Whether to show progress bars.
    """

    config: TuneConfig
    comparison: Comparison
    windows: Mapping[str, Layers]
    variants: Mapping[str, tuple[float, int]]
    progress: bool

    @classmethod
    def of(cls, config: TuneConfig, comparison: Comparison, progress: bool, *, sketch: Places | None) -> "Search":
        """Fill in what suits the model, and check it."""
        experiment = comparison.experiment
        model, own = experiment.model, experiment.layers
        if not any(neighborhood(fact) for fact in experiment.facts):
            raise InputError(
                "expected facts with neighbourhood prompts, after which D_KL is taken, got none: give other ⟨facts⟩"
            )
        if config.windows is None:
            spread = spread_windows(model.n_layers, config.width or len(own))
            windows = sorted({*spread, own} if config.width is None else spread)
        else:
            windows = list(dict.fromkeys(map(parse_layers, config.windows)))
        for layers in windows:
            check_layers(layers, model)
        lr, steps = experiment.session.anchor.lr, experiment.session.anchor.steps
        lrs, passes = config.lrs or (lr, float(f"{SLOWER * lr:.1g}")), config.passes or (steps, 2 * steps)
        variants = {f"lr {rate:g}, {most} passes": (rate, most) for rate in lrs for most in passes}
        every = tuple(sorted({layer for layers in windows for layer in layers}))
        if sketch is None:
            check_replay(model, experiment.facts, every)
        session = replace(experiment.session, fixed_ridge=config.ridge)  # else each window has its own
        experiment = replace(experiment, session=session, ridge=config.ridge).with_layers(every)
        whole = replace(comparison, experiment=experiment)
        return cls(config, whole, {span(layers): layers for layers in windows}, variants, progress)

    @property
    def experiment(self) -> Experiment:
        """Model, facts and settings, with the layers of all windows."""
        return self.comparison.experiment

    @property
    def base(self) -> str:
        """The descents at which windows are compared."""
        return next(iter(self.variants))

    @property
    def methods(self) -> list[str]:
        """The methods."""
        return list(self.comparison.methods)

    @property
    def coordinated(self) -> bool:
        """Tells whether some method needs coordinated shifts."""
        return any_coordinated(self.comparison.schemes)

    @property
    def points(self) -> list[float]:
        """Places on the grid of λ."""
        return sorted(set(self.config.ridges or FACTORS))

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config = self.config
        search = {
            "methods": self.methods,
            "windows": {name: list(layers) for name, layers in self.windows.items()},
            "variants": {name: list(variant) for name, variant in self.variants.items()},
            "points": self.points,
            "criterion": config.criterion,
            "kl_bound": config.kl_bound,
            "finalists": config.finalists,
        }
        return self.comparison.settings() | {"tune": search}

    def coordinates(self) -> dict[str, Sequence[Any]]:
        """Labels of every dimension."""
        return self.comparison.coordinates | {
            "edit": self.methods,
            "window": list(self.windows),
            "variant": list(self.variants),
            "point": self.points,
            "place": range(max(map(len, self.windows.values()))),
            "anchor_layer": list(self._ends),
        }

    @cached_property
    def _ends(self) -> Layers:
        """The layers that anchors are optimized at, of all windows."""
        return tuple(sorted({layer for layers in self.windows.values() for layer in (layers[0], layers[-1])}))

    def preparation(self) -> Preparation:
        """Take C of all layers in one pass; a window reads its own from the cache, and lets them go when it is done."""
        whole, count = self.experiment, len(self.experiment.layers)
        widest, size = max(map(len, self.windows.values())), DOUBLE * self.experiment.model.d_mlp**2

        def compute(_folder: Path) -> None:
            if whole.published is not None or whole.moment_lengths:
                _ = whole.with_layers(whole.layers).session.moments

        def work(counts: Counts, _folder: Path | None) -> Iterator[Stage]:
            if lengths := whole.moment_lengths:
                stage = counts.moments(lengths, whole.layers)
                yield replace(stage, host=stage.host + max(0, count - 2 * widest) * size)

        return Preparation(compute, work, 2 * widest * size)

    def parts(self) -> list[Part]:
        """The parts of the run."""
        *_, neighbors = self.comparison.parts()
        observed = [{"edit": name, "window": window} for window in self.windows for name in self.methods]
        return [
            descents(self.experiment, self._ends, [], {"variant": self.base}),
            Part(lambda done: unfinished(done, "observed", observed), self._observe, self._observing),
            neighbors,
            Part(lambda done: unfinished(done, "measured", self._along(done)), self._try, self._trying),
            Part(lambda done: unfinished(done, "measured", self._others(done)), self._try, self._trying),
            Part(self._unwritten, self._write),
        ]

    def _along(self, done: Completion) -> list[Labels]:
        """The finalists of every method along λ; as many windows while these are not known."""
        if done.all("observed"):
            rows = observed_windows(open_run(done.folder, part="observed")).set_index("window")
            scores = {name: group["score"].to_dict() for name, group in rows.groupby("method")}
        else:
            scores = {name: dict.fromkeys(self.windows, 0.0) for name in self.methods}
        ahead = {name: finalists(own, self.config.finalists) for name, own in scores.items()}
        return [cell for window in self.windows for cell in self._cells(window, self.base, ahead)]

    def _others(self, done: Completion) -> list[Labels]:
        """The other descents on the best window of every method; on any while that is not known."""
        along = self._along(done)
        best = {name: [next(iter(self.windows))] for name in self.methods}
        if not unfinished(done, "measured", along):
            tries = evaluated_tries(open_run(done.folder, part="measured"))
            tries = tries[tries["variant"] == self.base]
            labels = choices(tries, criterion_of(self.settings(), tries))
            best = {name: [tries.loc[label, "window"]] for name, label in labels.items()}
        others = list(self.variants)[1:]
        return [cell for window in self.windows for v in others for cell in self._cells(window, v, best)]

    def _cells(self, window: str, variant: str, windows_of: Mapping[str, Sequence[str]]) -> Iterator[Labels]:
        """The tries of the methods that come to a window, with some descents."""
        for name in self.methods:
            if window in windows_of[name]:
                middle = min(self.points, key=lambda point: abs(point - 1))
                for point in [middle] if method(name).rule == WITHOUT_RIDGE else self.points:
                    yield {"edit": name, "window": window, "variant": variant, "point": point}

    def at(self, window: str, variant: str) -> Comparison:
        """Narrow the methods to a window and some descents, to be counted."""
        (lr, steps), layers, whole = self.variants[variant], self.windows[window], self.experiment
        anchor = replace(whole.session.anchor, lr=lr, steps=steps)
        session = replace(whole.session, layers=layers, anchor=anchor)
        return replace(self.comparison, experiment=replace(whole, layers=layers, session=session))

    @contextmanager
    def bench(self, run: Run, window: str, variant: str) -> Iterator[Bench]:
        """Make a window ready for edits: C, λ, anchors and shifts, which are let go at the end."""
        comparison, layers = self.at(window, variant), self.windows[window]
        session = comparison.experiment.session
        stored = run.read("suited_ridge", window=window)[run.done("observed", window=window).reshape(-1)]
        ridge = float(stored[0]) if stored.size else session.fixed_ridge  # a run that goes on keeps its λ
        narrowed = replace(comparison.experiment, session=replace(session, fixed_ridge=ridge))
        experiment = narrowed.with_layers(layers)
        session, recorder = experiment.session, Recorded(run, experiment, {"variant": variant})
        try:
            anchors = session.anchors(recorder, session.anchor_layers)
            where = {"window": window, "place": list(range(len(layers)))}
            shifts = session.shifts(recorder, None, where) if self.coordinated else None
            targets = make_targets(experiment.rows, layers, anchors, shifts)
            yield Bench(replace(comparison, experiment=experiment), targets)
        finally:
            if experiment.executor is not self.experiment.executor:
                experiment.executor.release()

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

    def _observe(self, run: Run, cells: Sequence[Labels]) -> None:
        """Edit once at every window at the λ that suits it, and observe what that does; no question is asked."""
        with bar(len(cells), "windows", "edit", show=self.progress) as progress_bar:
            for window, names in _grouped(cells, "window"):
                with self.bench(run, *window, self.base) as bench:
                    for cell in names:
                        begin = time.perf_counter()
                        for variable, values, further in self._observed(bench, cell["edit"]):
                            run.write(variable, values, **cell, **further)
                        run.write("observed_seconds", time.perf_counter() - begin, **cell)
                        reached, passes = self._descended(run, cell["edit"], cell["window"], self.base)
                        run.write("observed_reached", reached, **cell)
                        run.write("observed_passes", passes, **cell)
                        run.commit("observed", **cell)
                        progress_bar.update()

    def _observed(self, bench: Bench, name: str) -> Iterator[tuple[str, Any, Labels]]:
        """Edit with a method and observe it."""
        experiment = bench.comparison.experiment
        session, scheme, edits = experiment.session, SCHEMES[method(name).scheme], list[ObservedEdit]()
        with session.edited(name, bench.targets, look_on=edits.append):
            answered = accuracy(experiment.model, experiment.rows.answered)
        values = measure(edits, bench.targets, scheme)
        layers = {"layer": list(scheme.edited(session.layers))}
        yield "suited_ridge", session.ridge, {}
        for variable in ("realised", "residual_ratio"):
            yield variable, values[variable].cpu().numpy(), layers
        yield "disturbance", disturbance(values["price"], edits), {}
        yield "observed_efficacy", where_finite(answered, bench.targets.finite(scheme.kind)), {}

    def _try(self, run: Run, cells: Sequence[Labels]) -> None:
        """Edit and evaluate, window after window."""
        self.comparison.evaluator.remember(self.experiment.executor)
        with bar(len(cells), "tries", "edit", show=self.progress) as progress_bar:
            for place, group in _grouped(cells, "window", "variant"):
                with self.bench(run, *place) as bench:
                    session = bench.comparison.experiment.session
                    for cell in group:
                        begin = time.perf_counter()
                        ridge = cell["point"] if self.config.ridges else float(f"{cell['point'] * session.ridge:.3g}")
                        aimed = Aimed(bench.targets, setting=replace(session.setting, ridge=ridge))
                        for variable, values, further in bench.comparison.measure(cell["edit"], aimed):
                            run.write(variable, values, **cell, **further)
                        reached, passes = self._descended(run, cell["edit"], *place)
                        rest = {"ridge": ridge, "reached": reached, "passes": passes}
                        for variable, value in (rest | {"seconds": time.perf_counter() - begin}).items():
                            run.write(variable, value, **cell)
                        run.commit("measured", **cell)
                        progress_bar.update()

    def _observing(self, counts: Counts, cells: Sequence[Labels]) -> Iterator[Stage]:
        """Count shifts, λ and observed edits."""
        rows = self.experiment.rows
        for (window,), group in _grouped(cells, "window"):
            layers = self.windows[window]
            yield from self._shifting(counts, window, self.base)
            answers = counts.evaluation([rows.answered])
            work = counts.solves(len(layers), len(rows)) + counts.keys(rows, layers)
            work += total(
                counts.edit(rows, SCHEMES[method(cell["edit"]).scheme], layers, observed=True) + answers
                for cell in group
            )
            name = f"{counted(len(group), 'edit')} at layers {window}, observed"
            yield counts.editing(name, work, len(layers), rows, observed=True)

    def _trying(self, counts: Counts, cells: Sequence[Labels]) -> Iterator[Stage]:
        """Count descents and evaluated edits."""
        for (window, variant), group in _grouped(cells, "window", "variant"):
            if variant != self.base:
                experiment = self.at(window, variant).experiment
                everyone = tuple(range(len(experiment.facts)))
                for layer in experiment.session.anchor_layers:
                    yield from work_of(counts, experiment, (ANCHOR, {"anchor_layer": layer}, everyone))
                yield from self._shifting(counts, window, variant)
            for stage in self.at(window, variant).work(counts, [cell["edit"] for cell in group]):
                yield replace(stage, name=f"{stage.name}, at layers {window}")

    def _shifting(self, counts: Counts, window: str, variant: str) -> Iterable[Stage]:
        """Count coordinated shifts, if some method needs them."""
        if not self.coordinated:
            return []
        experiment = self.at(window, variant).experiment
        where = {"anchor_layer": list(experiment.layers)}
        return work_of(counts, experiment, (SHIFT, where, tuple(range(len(experiment.facts)))))

    def _unwritten(self, done: Completion) -> list[str]:
        """Methods whose protocol has not been written."""
        folder = done.folder
        return [name for name in self.methods if folder is None or not (folder / file_name(name)).is_file()]

    def _write(self, run: Run, names: Sequence[str]) -> None:
        """Write the protocols of some methods."""
        protocols = protocols_of(run.folder)
        for name in names:
            protocols[name].write(run.folder / file_name(name))


def protocols_of(folder: Path) -> dict[str, Protocol]:
    """Choose the best try of each method of a finished search."""
    dataset = open_run(folder, "tune")
    config = config_of(dataset)
    settings, provenance = config["settings"], config["provenance"]
    windows, variants = settings["tune"]["windows"], settings["tune"]["variants"]
    observed, tries = observed_windows(dataset), evaluated_tries(dataset)
    criterion = criterion_of(settings, tries)
    protocols = {}
    for name, label in choices(tries, criterion).items():
        choice = tries.loc[label]
        lr, steps = variants[choice["variant"]]
        protocols[name] = Protocol(
            model=Path(provenance["model"]).name,
            fingerprint=settings["model"],
            method=name,
            layers=tuple(windows[choice["window"]]),
            ridge=float(choice["ridge"]),
            anchor_lr=lr,
            anchor_steps=steps,
            criterion=criterion.words(LABELS[gain_of(tries)]),
            because=reasons(observed, tries, name, criterion),
            run=str(folder),
            facts=settings["facts"],
            version=settings["versions"]["jacobian_lab"],
        )
    return protocols


def _grouped(cells: Sequence[Labels], *dims: str) -> Iterator[tuple[tuple[Any, ...], list[Labels]]]:
    """Cells by some of their labels, in the order in which these come first."""
    places = dict.fromkeys(tuple(cell[dim] for dim in dims) for cell in cells)
    for place in places:
        yield place, [cell for cell in cells if tuple(cell[dim] for dim in dims) == place]
