"""Every method under the same anchors, keys and seeds, evaluated by the paper's metrics: Tables 3, 4, 6 and 7."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jacobian_lab.crew.crew import ALONE, Crew
from jacobian_lab.editing.deltas import DELTA, FOLDER
from jacobian_lab.editing.layers import restored
from jacobian_lab.editing.methods import (
    METHODS,
    PAIRS,
    TRAINED,
    UNEDITED,
    Method,
    Refit,
    edit_with,
    method,
    method_name,
)
from jacobian_lab.editing.schemes import SCHEMES
from jacobian_lab.editing.solving import Eigh, null_space, remembered_eigh
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.examination import Examination
from jacobian_lab.evaluation.metrics import perplexity
from jacobian_lab.evaluation.questions import neighborhood, style_of
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import read_facts
from jacobian_lab.facts.sampling import sample
from jacobian_lab.jobs.bench import Aimed, Bench, any_coordinated
from jacobian_lab.jobs.config import EditConfig, EditTableConfig, EvaluationConfig, MethodsConfig, check
from jacobian_lab.jobs.job import Job, Labels, Part
from jacobian_lab.jobs.setup import Experiment, prepare
from jacobian_lab.model.corpus import Corpus, load_corpus, token_rows
from jacobian_lab.model.devices import Places
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.planning.costs import Costs, Stage
from jacobian_lab.progress import bar, counted, note
from jacobian_lab.store.finished import Finished
from jacobian_lab.store.run import Run
from jacobian_lab.store.schema import KINDS
from jacobian_lab.training.lessons import strangers
from jacobian_lab.training.methods import ONE_DEVICE, RLEDIT, WISE, Ready, ready
from jacobian_lab.training.settings import UNTUNED

Save = Callable[[Path, Mapping[str, Any]], Any]
"""Saves an edit, as a file or as a folder, with everything that decided it."""

TRAINING = "training-{}.safetensors"
"""What a run calls all that a method was trained to."""

NO_PROBES = "none"
"""What the dimension of further questions holds where there are none: one group that stays empty."""


def run_edit_table(config: EditTableConfig, *, progress: bool = True) -> Path:
    """Edit with each method and evaluate it; an interrupted run goes on, a finished one computes nothing.

    Anchors are optimised once for each anchor layer and shared; the weights are put back after every method.
    """
    return edit_table_job(config, progress=progress).carry_out()


def edit_table_job(config: EditTableConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """The job of `run_edit_table`."""
    return _job(config, tuple(dict.fromkeys(map(_edited, config.methods))), None, progress, sketch)


def run_edit(config: EditConfig, *, progress: bool = True) -> Path:
    """Edit with one method, evaluate it, and save the edited model into the run's folder."""
    return edit_job(config, progress=progress).carry_out()


def edit_job(config: EditConfig, *, progress: bool = True, sketch: Places | None = None) -> Job:
    """The job of `run_edit`."""
    name = _edited(config.method)
    if name == WISE and config.save != "delta":
        raise InputError(
            f"expected ⟨save⟩ delta for {name}, got {config.save}: no plain model asks which matrix serves"
        )
    return _job(config, (name,), config.save, progress, sketch)


def saved_paths(folder: Path, name: str, save: str) -> list[Path]:
    """Where a method's saved edit is."""
    name, kinds = method_name(name), {"delta": (DELTA,), "folder": (FOLDER,), "both": (DELTA, FOLDER)}[save]
    trained = (TRAINING,) if name in TRAINED else ()
    return [folder / kind.format(name) for kind in (*kinds, *trained)]


def _edited(name: str) -> str:
    if name.lower() == UNEDITED:
        raise InputError(f"expected a method that edits, got {name!r}: the unedited model is the first row anyway")
    return method_name(name)


def _job(
    config: MethodsConfig, methods: tuple[str, ...], save: str | None, progress: bool, sketch: Places | None
) -> Job:
    at_work = Comparison.of(config, methods, progress, sketch=sketch)
    experiment, asked, bench = at_work.experiment, at_work.examination, at_work.bench
    settings = at_work.settings()

    def saved(folder: Path) -> list[Path]:
        return saved_paths(folder, methods[0], save) if save else []

    def again(folder: Path) -> list[str]:
        """Methods that have been measured, but without what they left."""
        if not all(path.exists() for path in saved(folder)):
            return list(methods)
        refitted = not Finished.of(folder).lost("refit_anchor_passes")
        return [name for name, each in at_work.methods.items() if each.refit and not refitted]

    def measured(run: Run) -> None:
        anchored = at_work.methods or run.done("anchor_passes").all()
        aimed = bench.aimed(run, at_work.schemes) if anchored else None
        redone = again(run.folder)
        todo = [n for n in (UNEDITED, *methods) if n in redone or not run.done("measured", edit=n).all()]
        asked.remember(at_work.crew)

        def refit(layer: int, batch: Sequence[int]) -> Tensor:
            return bench.anchors(run, (layer,), "refit_anchor", batch)[layer]

        def keep(name: str, save: Save) -> None:
            for path in saved(run.folder):
                if path.name == TRAINING.format(name):
                    at_work.trained[name].save(path)
                else:
                    save(path, {**settings, "method": name})

        for place, name in enumerate(todo, 1):
            what = f"{name} ({place} of {len(todo)})"
            trained = at_work.trained[name].facts if name in at_work.trained else 0
            with bar(trained + len(experiment.facts) + len(asked.facts), what, "fact", show=progress) as shown:
                found = at_work.measure(name, aimed, shown.update, refit, partial(keep, name))
                for variable, values, labels in found:
                    run.write(variable, values, edit=name, **labels)
            run.seal("measured", edit=name)

    wanted = [("measured", {"edit": [UNEDITED, *methods]})]
    return Job(
        "edit_table",
        experiment.model,
        config.out,
        settings,
        at_work.provenance,
        at_work.coordinates,
        [
            *at_work.parts(),
            Part(wanted, measured, lambda f: {"edit": names} if (names := again(f)) else {}, at_work.cost),
        ],
        before=at_work.begin,
        before_cost=at_work.cost_before,
        kept=bench.kept if at_work.methods else 0,
        descents=bench.descents,
        crew=bench.experiment.crew,
    )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods beside one another, at work: under the same anchors, asked the same.

    Attributes:
        config: The configuration.
        methods: The methods that are pairs, by name.
        trained: Those that train, ready for the facts.
        experiment: What the configuration names.
        examination: What is asked.
        asked: Places of the facts that are asked about.
        held_out: The held-out text.
        text: Its rows.
        bench: The experiment at work.
    """

    config: EvaluationConfig
    methods: Mapping[str, Method]
    trained: Mapping[str, Ready]
    experiment: Experiment
    examination: Examination
    asked: Sequence[int]
    held_out: Corpus
    text: Sequence[Prompt]
    bench: Bench

    @classmethod
    def of(
        cls, config: EvaluationConfig, methods: Sequence[str], progress: bool, *, sketch: Places | None = None
    ) -> "Comparison":
        """Load and check everything, before any long work."""
        check(config)
        held_out = load_corpus(config.held_out, "held_out", config.seed)
        experiment = prepare(config, asked=lambda fact: fact, sketch=sketch)
        style = style_of(experiment.facts, config.metrics)
        everyone = len(experiment.facts)
        asked = sample(experiment.facts, config.evaluation_facts or everyone, config.seed)
        if len(asked) < everyone:
            note(f"edited models are evaluated on {len(asked)} of {everyone} facts (evaluation_facts)")
        examined = [experiment.facts[place] for place in asked]
        examination = Examination(experiment.model, examined, style, config.greedy)
        text = _held_out_rows(config, experiment, held_out)
        chosen, count = {name: method(name) for name in methods if name not in TRAINED}, len(experiment.facts)
        without_keys = any(each.rule == "emmet" for each in chosen.values())
        bench = Bench(experiment, progress, 0 if without_keys else min(config.edits_per_batch or count, count))
        trained = dict[str, Ready]()
        if isinstance(config, MethodsConfig):
            names = [name for name in methods if name in TRAINED]
            if names and experiment.crew.load.cards > 1:  # of a plan too, whose model is nowhere
                raise InputError(ONE_DEVICE.format(names[0]))
            others = _others(config, experiment) if names else []
            if RLEDIT in names and (known := config.protocol or experiment.model.known()).lower() in UNTUNED:
                note(f"the paper has no rledit on {known}, for which no stable setting was found: the first published")
            training = config.training.suited(experiment.model, config.protocol, config.seed)
            trained = {name: ready(name, experiment.rows, others, training) for name in names}
        return cls(config, chosen, trained, experiment, examination, asked, held_out, text, bench)

    @property
    def crew(self) -> Crew:
        """Who asks the models: this process where some edits are no change of decisive layers, which alone are sent."""
        return ALONE if self.trained else self.experiment.crew

    @property
    def schemes(self) -> list[str]:
        """The methods' schemes."""
        return [each.scheme for each in self.methods.values()]

    @cached_property
    def eigh(self) -> Eigh:
        """Eigendecomposition that remembers each C's."""
        return remembered_eigh(self.experiment.model.device)

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config = self.config
        length = {"length": config.corpus_length} if self.experiment.corpus is None else {}  # else the corpus has it
        return self.experiment.settings() | {
            "rules": asdict(config.rules),
            "edits_per_batch": config.edits_per_batch,
            "metrics": self.examination.style,
            "greedy": config.greedy,
            "held_out": {"digest": self.held_out.digest, "tokens": config.held_out_tokens} | length,
            **({"evaluation_facts": len(self.asked)} if len(self.asked) < len(self.experiment.facts) else {}),
            **({"training": {name: each.decided_by for name, each in self.trained.items()}} if self.trained else {}),
        }

    def provenance(self) -> dict[str, Any]:
        """What is worth knowing of a run: λ among it where something is solved."""
        return self.bench.provenance() if self.methods else self.experiment.provenance()

    @cached_property
    def coordinates(self) -> dict[str, Sequence[Any]]:
        """Labels of every dimension of a run of edit-table."""
        experiment = self.experiment
        return {
            "fact": experiment.labels(),
            "edit": [UNEDITED, *METHODS, *PAIRS, *TRAINED],
            "layer": list(experiment.layers),
            "block": range(experiment.model.n_layers),
            "anchor_layer": list(experiment.anchor_layers),
            "paraphrase": range(max(1, *(len(fact.paraphrase_prompts) for fact in experiment.facts))),
            "probe": self.examination.groups or [NO_PROBES],
            "neighbor": range(max(1, *(len(neighborhood(fact)) for fact in experiment.facts))),
            "d_model": range(experiment.model.d_model),
        }

    def parts(self) -> list[Part]:
        """What a run holds before any method has been measured."""
        neighbors = Part([("neighbors_compared", {})], self._store_edited_neighbors)
        targets = self.bench.parts(any_coordinated(self.schemes)) if self.methods else []
        return [*targets, neighbors]

    def cost(self, costs: Costs, done: Finished, ridges: Sequence[float] | None = None) -> list[Stage]:
        """What editing with the methods and evaluating is going to take."""
        experiment, asked, size = self.experiment, self.examination, self.config.edits_per_batch
        rows, layers = experiment.rows, experiment.layers
        names = [*self.methods, *self.trained, *([UNEDITED] if ridges is None else [])]
        points: list[Labels] = [{}] if ridges is None else [{"ridge": ridge} for ridge in ridges]
        times = {name: sum(not done.all("measured", edit=name, **point) for point in points) for name in names}
        left = {name: each for name, each in self.methods.items() if times[name]}
        edits = sum(
            (
                times[name] * costs.edit(rows, SCHEMES[each.scheme], layers, size, observed=False)
                for name, each in left.items()
            ),
            0.0,
        )
        told = [Prompt(row.ids[:-1], 0, row.ids[1:]) for row in self.text if len(row.ids) > 1]
        parts = asked.rows()
        asking = costs.evaluation(parts, asked.decoded(), shared=not self.trained)
        refits = (
            self.bench.cost_of_descents(costs, done, [layers[-1]], name="refit_anchor")
            if len(layers) > 1 and any(each.refit for each in left.values())
            else []
        )
        count, evaluated = sum(times[name] for name in names if name != UNEDITED), sum(times.values())
        seconds = edits + evaluated * (asking + costs.evaluation([told])) + asking  # what was before is asked for too
        projected, name = len(self._projected()), f"{counted(count, 'edit')}, evaluated"
        trained = [each for method, each in self.trained.items() if times[method]]
        edited = costs.editing(
            name,
            seconds,
            len(layers),
            rows=rows,
            projected=projected,
            asked=max(map(len, [*parts, told])) if evaluated else 0,
            longest=max((len(row.ids) for row in told), default=0),
            solved=bool(left),
            trained=[each.settings for each in trained],
        )
        taught = [costs.training(rows, each.facts, each.settings) for each in trained]
        return [*refits, *taught, edited]

    def begin(self, folder: Path) -> None:
        """Make it clear before the long work that the rules can use every C."""
        if not self.methods:
            return
        self.bench.begin(folder)
        moments, rules = self.bench.moments.matrices, self.config.rules
        for layer in self._projected():
            threshold, relative = rules.alphaedit_threshold, rules.alphaedit_relative
            null_space(moments[layer], threshold, relative=relative, eigh=self.eigh, name=f"C at layer {layer}")

    def cost_before(self, costs: Costs, folder: Path | None) -> list[Stage]:
        """What `begin` is going to take."""
        if not self.methods:
            return []
        count = len(self._projected())
        spaces = (
            [costs.editing(f"null spaces of {count} C", costs.eigenvectors(count), 0, projected=count)] if count else []
        )
        return [*self.bench.cost_before(costs, folder), *spaces]

    def _projected(self) -> list[int]:
        """The layers at which a rule needs the null space of C."""
        layers = self.experiment.layers
        some = (SCHEMES[each.scheme].edited(layers) for each in self.methods.values() if each.rule == "alphaedit")
        return sorted({layer for each in some for layer in each})

    def measure(
        self,
        name: str,
        aimed: Aimed | None,
        done: Callable[[int], Any] = lambda _: None,
        refit: Refit | None = None,
        keep: Callable[[Save], Any] = lambda _: None,
    ) -> list[tuple[str, Any, Labels]]:
        """Edit with a method, evaluate, and put the weights back."""
        experiment, found = self.experiment, list[tuple[str, Any, Labels]]()
        with ExitStack() as stack:
            if name == UNEDITED:
                done(len(experiment.facts))
            elif name in self.trained:
                trained = self.trained[name]
                stack.callback(trained.release)
                trainer = trained.train(done)
                stack.enter_context(trainer.edited(done))
                keep(trainer.save)
                found += self._told(trainer.diagnostics())
            else:
                assert aimed is not None
                assert aimed.setting is not None
                stack.enter_context(restored(experiment.model, experiment.layers))
                made = edit_with(
                    self.methods[name],
                    aimed.setting,
                    aimed.targets,
                    self.config.rules,
                    eigh=self.eigh,
                    size=self.config.edits_per_batch,
                    refit=refit,
                    done=done,
                )
                found += [(variable, values, {"layer": list(made.deltas)}) for variable, values in made.values.items()]
                keep(lambda path, config: made.save(path, experiment.model, config))
            if aimed is not None and aimed.aim is not None and name != UNEDITED:
                found += [(variable, values, {}) for variable, values in aimed.aim.reached().items()]
            found += self._answers(done)
            found.append(("perplexity", perplexity(experiment.model, self.text), {}))
        return found

    def _told(self, told: Mapping[str, Any]) -> Iterator[tuple[str, Any, Labels]]:
        """What a method that trains says of itself, as a run stores it."""
        for variable, values in told.items():
            dims = KINDS["edit_table"][variable].dims
            yield variable, _padded(values, len(self.coordinates[dims[2]])) if len(dims) > 2 else values, {}

    def _answers(self, done: Callable[[int], Any]) -> Iterator[tuple[str, Any, Labels]]:
        """Examine the model as it is."""
        every, coordinates = self.experiment.labels(), self.coordinates
        labels = [every[place] for place in self.asked]
        for part, found in self.examination.answers(self.crew):
            for variable in sorted({variable for values in found for variable in values}):
                lists = [values.get(variable, []) for values in found]
                dims = KINDS["edit_table"][variable].dims[2:]
                width = [len(coordinates[dim]) for dim in dims]
                yield variable, _padded(lists, math.prod(width)).reshape(len(found), *width), {"fact": labels[part]}
            done(len(found))

    def _store_edited_neighbors(self, run: Run) -> None:
        """Which neighbourhood prompts are edited themselves, so that no method should leave them alone."""
        facts = self.experiment.facts
        edited = {fact.text for fact in facts}
        found = [[float(text in edited) for text, _ in neighborhood(fact)] for fact in facts]
        run.write("neighbor_edited", _padded(found, len(run.coordinates["neighbor"])))
        run.seal("neighbors_compared")


def _held_out_rows(config: EvaluationConfig, experiment: Experiment, text: Corpus) -> list[Prompt]:
    if experiment.corpus is not None and text.digest == experiment.corpus.digest:
        raise InputError(f"expected a held-out text, got the corpus {config.corpus!r} itself: give another ⟨held_out⟩")
    length = min(config.corpus_length, experiment.model.max_tokens)
    rows = token_rows(experiment.model, text, length, config.held_out_tokens)
    if not any(len(row.ids) > 1 for row in rows):
        raise InputError(f"expected a held-out text of some tokens, got {config.held_out!r}: raise ⟨held_out_tokens⟩")
    return rows


def _others(config: MethodsConfig, experiment: Experiment) -> list[Fact]:
    """What methods that train may be taught with; records that cannot be used are left out, and told."""
    file = read_facts(config.train_facts or config.facts, config.train_slice, on_bad_record="skip", on_repeat="first")
    for line in file.notes():
        note(f"of the facts to train with, {line}")
    return strangers(experiment.facts, file.facts)


def _padded(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """Rows of different lengths as one array, NaN where a row has ended."""
    return np.array([[*row, *[math.nan] * (width - len(row))] for row in rows])
