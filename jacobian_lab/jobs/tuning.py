"""A search over windows of layers, λ, learning rate and passes: cheap measures first, then edits of the few left."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jacobian_lab.catalogue import RIDGELESS, TRAINED, method, method_name
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.questions import neighborhood
from jacobian_lab.jobs.benches import Benches
from jacobian_lab.jobs.comparison import Comparison
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.job import Job, Labels, Part, Preparation, unfinished
from jacobian_lab.jobs.recording import descents
from jacobian_lab.jobs.setup import parse_layers
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.devices import Places
from jacobian_lab.model.footprint import DOUBLE
from jacobian_lab.model.language_model import Layers
from jacobian_lab.model.loading import check_layers
from jacobian_lab.model.protocols import Protocol, file_name
from jacobian_lab.planning.work import Stage
from jacobian_lab.progress import span
from jacobian_lab.session.descents import places_of
from jacobian_lab.session.session import kinds_of
from jacobian_lab.store.completion import Completion
from jacobian_lab.store.run import Run, config_of, open_run
from jacobian_lab.tries import Outcome, choices, criterion_of, evaluated_tries, finalists, observed_windows

FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Values of λ, over the one that suits a window."""
SPREAD = 5
"""Windows that are spread over the first two thirds of a model."""
SLOWER = 0.4
"""The other learning rate, over the model's own."""


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
        search.benches.experiment.provenance,
        search.coordinates(),
        search.parts(),
        before=search.preparation(),
        descents=search.benches.experiment.session.descent_dtype,
        executor=search.benches.experiment.executor,
    )


def _check(config: TuneConfig, methods: Sequence[str]) -> None:
    """Refuse what cannot be searched before anything is loaded."""
    for name in methods:
        if name in TRAINED or method(name).refit:
            raise InputError(f"expected pairs of a rule and a target scheme, got {name}: leave it out of ⟨methods⟩")
        if places_of(kinds_of([method(name).scheme]), (0, 1, 2)):
            raise InputError(f"expected schemes without descents of their own, got {name}: leave it out of ⟨methods⟩")
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


@dataclass(frozen=True, eq=False)
class Search:
    """A search: windows, descents and values of λ, tried with every method.

    Attributes:
        config: The configuration.
        benches: Windows and descents at which methods are tried.
    """

    config: TuneConfig
    benches: Benches

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
        anchor = experiment.session.anchor
        lrs = config.lrs or (anchor.lr, float(f"{SLOWER * anchor.lr:.1g}"))
        passes = config.passes or (anchor.steps, 2 * anchor.steps)
        variants = {f"lr {rate:g}, {most} passes": (rate, most) for rate in lrs for most in passes}
        every = tuple(sorted({layer for layers in windows for layer in layers}))
        if sketch is None:
            check_replay(model, experiment.facts, every)
        anchor = replace(anchor, lr=lrs[0], steps=passes[0])
        session = replace(experiment.session, anchor=anchor, fixed_ridge=config.ridge)  # else each window has its own
        experiment = replace(experiment, session=session, ridge=config.ridge).with_layers(every)
        whole = replace(comparison, experiment=experiment)
        named = {span(layers): layers for layers in windows}
        return cls(config, Benches(whole, named, variants, config.ridges is not None, progress))

    @property
    def methods(self) -> list[str]:
        """The methods."""
        return list(self.benches.comparison.methods)

    @property
    def points(self) -> list[float]:
        """Places on the grid of λ."""
        return sorted(set(self.config.ridges or FACTORS))

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config = self.config
        search = {
            "methods": self.methods,
            "windows": {name: list(layers) for name, layers in self.benches.windows.items()},
            "variants": {name: list(variant) for name, variant in self.benches.variants.items()},
            "points": self.points,
            "criterion": config.criterion,
            "kl_bound": config.kl_bound,
            "finalists": config.finalists,
        }
        return self.benches.comparison.settings() | {"tune": search}

    def coordinates(self) -> dict[str, Sequence[Any]]:
        """Labels of every dimension."""
        return self.benches.comparison.coordinates | {
            "edit": self.methods,
            "window": list(self.benches.windows),
            "variant": list(self.benches.variants),
            "point": self.points,
            "place": range(max(map(len, self.benches.windows.values()))),
            "anchor_layer": list(self._ends),
        }

    @cached_property
    def _ends(self) -> Layers:
        """The layers that anchors are optimized at, of all windows."""
        return tuple(sorted({layer for layers in self.benches.windows.values() for layer in (layers[0], layers[-1])}))

    def preparation(self) -> Preparation:
        """Take C of all layers in one pass; a window reads its own from the cache, and lets them go when it is done."""
        whole, widest = self.benches.experiment, max(map(len, self.benches.windows.values()))
        count, size = len(whole.layers), DOUBLE * whole.model.d_mlp**2

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
        benches = self.benches
        *_, neighbors = benches.comparison.parts()
        observed = [{"edit": name, "window": window} for window in benches.windows for name in self.methods]
        return [
            descents(benches.experiment, self._ends, [], {"variant": benches.base}),
            Part(lambda done: unfinished(done, "observed", observed), benches.observe, benches.observing),
            neighbors,
            Part(lambda done: unfinished(done, "measured", self._along(done)), benches.evaluate, benches.evaluating),
            Part(lambda done: unfinished(done, "measured", self._others(done)), benches.evaluate, benches.evaluating),
            Part(self._unwritten, self._write),
        ]

    def _along(self, done: Completion) -> list[Labels]:
        """The finalists of every method along λ; as many windows while these are not known."""
        scores = {name: dict.fromkeys(self.benches.windows, 0.0) for name in self.methods}
        if done.folder is not None and done.all("observed"):
            for row in observed_windows(open_run(done.folder, part="observed")).to_dict("records"):
                scores[row["method"]][row["window"]] = row["score"]
        ahead = {name: finalists(own, self.config.finalists) for name, own in scores.items()}
        return [cell for window in self.benches.windows for cell in self._cells(window, self.benches.base, ahead)]

    def _others(self, done: Completion) -> list[Labels]:
        """The other descents on the best window of every method; on any while that is not known."""
        best = {name: [next(iter(self.benches.windows))] for name in self.methods}
        if done.folder is not None and not unfinished(done, "measured", self._along(done)):
            tries = evaluated_tries(open_run(done.folder, part="measured"))
            tries = tries[tries["variant"] == self.benches.base]
            labels = choices(tries, criterion_of(self.settings(), tries))
            best = {name: [str(tries.loc[label, "window"])] for name, label in labels.items()}
        others = list(self.benches.variants)[1:]
        return [cell for window in self.benches.windows for v in others for cell in self._cells(window, v, best)]

    def _cells(self, window: str, variant: str, windows_of: Mapping[str, Sequence[str]]) -> Iterator[Labels]:
        """The tries of the methods that come to a window, with some descents."""
        for name in self.methods:
            if window in windows_of[name]:
                middle = min(self.points, key=lambda point: abs(point - 1))
                for point in [middle] if method(name).rule in RIDGELESS else self.points:
                    yield {"edit": name, "window": window, "variant": variant, "point": point}

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
    outcome, protocols = Outcome.of(dataset, settings), {}
    for name, label in outcome.choices.items():
        choice = outcome.tries.loc[label]
        lr, steps = variants[choice["variant"]]
        protocols[name] = Protocol(
            model=Path(provenance["model"]).name,
            fingerprint=settings["model"],
            method=name,
            layers=tuple(windows[choice["window"]]),
            ridge=float(choice["ridge"]),
            anchor_lr=lr,
            anchor_steps=steps,
            criterion=outcome.rule,
            because=outcome.because(name),
            run=folder.resolve().name,
            facts=settings["facts"],
            version=settings["versions"]["jacobian_lab"],
        )
    return protocols
