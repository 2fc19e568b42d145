"""Methods beside one another: under the same anchors, keys and seeds, asked the same."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jacobian_lab.catalogue import (
    KEYLESS,
    METHODS,
    PAIRS,
    PROJECTING,
    SCHEMES,
    TRAINED,
    UNEDITED,
    Method,
    method,
)
from jacobian_lab.editing.deltas import Form
from jacobian_lab.editing.layers import Setting
from jacobian_lab.editing.methods import MethodEdit, Refit
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.alignment import TargetAlignment
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.evaluation.questions import neighborhood, style_of
from jacobian_lab.evaluation.text import perplexity
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import read_facts
from jacobian_lab.facts.sampling import sample
from jacobian_lab.jobs.config import EvaluationConfig, MethodsConfig, check
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.experiment import Experiment, prepare
from jacobian_lab.jobs.job import Labels, Part, Preparation
from jacobian_lab.jobs.recording import Recorded, descents, work_of
from jacobian_lab.model.corpus import Corpus, load_corpus, token_rows
from jacobian_lab.model.devices import Places
from jacobian_lab.model.protocols import literature
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.parallel.executor import SERIAL, Executor
from jacobian_lab.planning.work import Stage, Work, total
from jacobian_lab.progress import counted, note
from jacobian_lab.session.descents import REFIT_ANCHOR
from jacobian_lab.session.session import any_coordinated
from jacobian_lab.store.run import Run
from jacobian_lab.store.schema import KINDS
from jacobian_lab.training.examples import disjoint_facts
from jacobian_lab.training.methods import ONE_DEVICE, RLEDIT, Ready, ready
from jacobian_lab.training.settings import UNTUNED, WiseConfig

Save = Callable[[Form, Path, Mapping[str, Any]], Any]
"""Saves an edit in one of its forms, with everything that decided it."""

NO_PROBES = "none"
"""Label of the dimension of further questions where there are none: one group that stays empty."""

Measured = list[tuple[str, Any, Labels]]
"""Variables with their values and labels, as a run stores them."""


@dataclass(frozen=True, eq=False)
class Aimed:
    """Targets of methods that are pairs, and where their anchors lead.

    Attributes:
        targets: The targets.
        aim: Where the anchors at the last decisive layer lead, if that is asked.
        setting: What the edit is made with, if it is not the session's own.
        rules: What the rules leave open, likewise.
    """

    targets: Targets
    aim: TargetAlignment | None = None
    setting: Setting | None = None
    rules: RuleSettings | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods under the same anchors, and what edited models are asked.

    Attributes:
        config: The configuration.
        methods: The methods that are pairs, by name.
        trained: Those that train, ready for the facts.
        experiment: What the configuration names.
        evaluator: The questions.
        asked_facts: Indices of the facts that are asked about.
        held_out: The held-out text.
        text: Its rows.
    """

    config: EvaluationConfig
    methods: Mapping[str, Method]
    trained: Mapping[str, Ready]
    experiment: Experiment
    evaluator: Evaluator
    asked_facts: Sequence[int]
    held_out: Corpus
    text: Sequence[Prompt]

    @classmethod
    def of(
        cls, config: EvaluationConfig, methods: Sequence[str], progress: bool, *, sketch: Places | None = None
    ) -> "Comparison":
        """Load and check everything, before any long work."""
        check(config)
        held_out = load_corpus(config.held_out, config.seed)
        experiment = prepare(config, questions=lambda fact: fact, progress=progress, sketch=sketch)
        style = style_of(experiment.facts, config.success)
        everyone = len(experiment.facts)
        asked_facts = sample(experiment.facts, config.evaluation_facts or everyone, config.seed)
        if len(asked_facts) < everyone:
            note(f"edited models are evaluated on {len(asked_facts)} of {everyone} facts (evaluation_facts)")
        examined = [experiment.facts[fact] for fact in asked_facts]
        evaluator = Evaluator(experiment.model, examined, style, config.greedy)
        text = _held_out_rows(config, experiment, held_out)
        pairs = {name: method(name) for name in methods if name not in TRAINED}
        trained = _trained(config, experiment, [name for name in methods if name in TRAINED], sketch)
        return cls(config, pairs, trained, experiment, evaluator, asked_facts, held_out, text)

    @property
    def executor(self) -> Executor:
        """Executor for evaluation: this process if a method edits more than decisive layers, which alone are sent."""
        return SERIAL if self.trained else self.experiment.executor

    @property
    def schemes(self) -> list[str]:
        """The methods' schemes."""
        return [pair.scheme for pair in self.methods.values()]

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config, everyone = self.config, len(self.experiment.facts)
        length = {"length": config.corpus_length} if self.experiment.corpus is None else {}  # else the corpus has it
        return self.experiment.settings() | {
            "rules": config.rules.stored(),
            "edits_per_batch": config.edits_per_batch,
            "metrics": self.evaluator.style,
            "greedy": config.greedy,
            "held_out": {"digest": self.held_out.digest, "tokens": config.held_out_tokens} | length,
            **({"evaluation_facts": len(self.asked_facts)} if len(self.asked_facts) < everyone else {}),
            **(
                {"training": {name: ready_method.decided_by for name, ready_method in self.trained.items()}}
                if self.trained
                else {}
            ),
        }

    def provenance(self) -> dict[str, Any]:
        """Facts worth knowing of a run: λ among them where something is solved."""
        return self.experiment.solved() if self.methods else self.experiment.provenance()

    @cached_property
    def coordinates(self) -> dict[str, Sequence[Any]]:
        """Labels of every dimension of a run of edit-table."""
        experiment = self.experiment
        return {
            "fact": experiment.labels(),
            "edit": [UNEDITED, *METHODS, *PAIRS, *TRAINED],
            "layer": list(experiment.layers),
            "block": range(experiment.model.n_layers),
            "anchor_layer": list(experiment.session.anchor_layers),
            "paraphrase": range(max(1, *(len(fact.paraphrase_prompts) for fact in experiment.facts))),
            "probe": self.evaluator.groups or [NO_PROBES],
            "neighbor": range(max(1, *(len(neighborhood(fact)) for fact in experiment.facts))),
            "d_model": range(experiment.model.d_model),
        }

    def parts(self, facts: Sequence[int] | None = None) -> list[Part]:
        """The parts of a run that are there before any method has been measured; descents of some facts or all."""
        neighbors = Part(
            lambda done: [] if done.all("neighbors_compared") else ["neighbors"],
            lambda run, _cells: self._store_edited_neighbors(run),
        )
        shifted = list[Labels]([{}]) if any_coordinated(self.schemes) else list[Labels]()
        layers = self.experiment.session.anchor_layers
        own = descents(self.experiment, layers, shifted, schemes=self.schemes, facts=facts)
        return [*([own] if self.methods else []), neighbors]

    def preparation(self, threshold: float | None = None) -> Preparation:
        """Make it clear before the long work that the rules can use every C, with another threshold if there is one."""
        if not self.methods:
            return Preparation()
        count, session = len(self.experiment.facts), self.experiment.session
        projected = self.projected()
        without_keys = any(pair.rule in KEYLESS for pair in self.methods.values())
        spaces = Preparation(
            lambda _folder: session.check_null_spaces(projected, threshold),
            lambda counts, _folder: [counts.null_spaces(len(projected))] if projected else [],
        )
        columns = 0 if without_keys else min(self.config.edits_per_batch or count, count)
        return self.experiment.preparation(columns, spaces)

    def projected(self) -> list[int]:
        """The layers at which a rule needs the null space of C."""
        layers = self.experiment.layers
        edited = (SCHEMES[pair.scheme].edited(layers) for pair in self.methods.values() if pair.rule in PROJECTING)
        return sorted({layer for scheme_layers in edited for layer in scheme_layers})

    def work(self, counts: Counts, names: Sequence[str]) -> Iterable[Stage]:
        """Count editing with methods, a name for each edit, and evaluating the models."""
        experiment, size = self.experiment, self.config.edits_per_batch
        rows, layers = experiment.rows, experiment.layers
        pairs = [self.methods[name] for name in names if name in self.methods]
        if len(layers) > 1 and any(pair.refit for pair in pairs):
            where = {"anchor_layer": layers[-1]}
            yield from work_of(counts, experiment, (REFIT_ANCHOR, where, tuple(range(len(experiment.facts)))))
        beside = 0
        for name in (name for name in names if name in self.trained):
            stage = self._training(counts, name)
            beside = max(beside, stage.held)
            yield stage
        edits: Work = total(counts.edit(rows, SCHEMES[pair.scheme], layers, size, observed=False) for pair in pairs)
        text, parts = self.predicted_text, self.evaluator.rows()
        asking = counts.evaluation(parts, self.evaluator.decoded())
        before = asking  # of the unedited model, which every other is held against
        work = edits + (asking + counts.evaluation([text])) * len(names) + before
        stage_name = f"{counted(len([name for name in names if name != UNEDITED]), 'edit')}, evaluated"
        projected, count = len(self.projected()), len(layers) if pairs else 0
        yield counts.editing(stage_name, work, count, rows, projected=projected, parts=[*parts, text], beside=beside)

    def _training(self, counts: Counts, name: str) -> Stage:
        """Count the training of a method."""
        trained, rows, stage = self.trained[name], self.experiment.rows, f"training of {name}"
        settings = trained.settings
        if isinstance(settings, WiseConfig):
            return counts.training(stage, rows, settings.block, settings.n_iter, settings.shards + 4)
        matrices = len(settings.blocks) * (1 if settings.projections else counts.shape.inner)
        steps = -(-trained.facts * (2 * settings.back_depth + 1) // (len(rows) * len(rows.weights)))
        return counts.training(stage, rows, min(settings.blocks), steps, 5 * matrices)

    @property
    def predicted_text(self) -> list[Prompt]:
        """Rows of the held-out text, each token but the first an answer."""
        return [Prompt(row.ids[:-1], 0, row.ids[1:]) for row in self.text if len(row.ids) > 1]

    def aimed(self, run: Run) -> Aimed:
        """Make the targets of all pairs, and where their anchors lead."""
        experiment, layer = self.experiment, self.experiment.layers[-1]
        targets = experiment.session.targets(Recorded(run, experiment), self.schemes)
        return Aimed(targets, TargetAlignment.of(experiment.rows, layer, targets.optimised[layer]))

    def measure(
        self,
        name: str,
        aimed: Aimed | None,
        done: Callable[[int], Any] = lambda _: None,
        refit: Refit | None = None,
        keep: Callable[[Save], Any] = lambda _: None,
    ) -> Measured:
        """Edit with a method, evaluate, and put the weights back."""
        experiment, measured = self.experiment, Measured()
        with ExitStack() as stack:
            if name == UNEDITED:
                done(len(experiment.facts))
            elif name in self.trained:
                trained = self.trained[name]
                stack.callback(trained.release)
                trainer = trained.train(done)
                stack.enter_context(trainer.edited(done))
                keep(trainer.save)
                measured += self._training_values(trainer.diagnostics())
            else:
                assert aimed is not None
                size = self.config.edits_per_batch
                edited = experiment.session.edited(
                    name,
                    aimed.targets,
                    setting=aimed.setting,
                    rules=aimed.rules,
                    size=size,
                    refit=refit,
                    done=done,
                )
                edit = stack.enter_context(edited)
                measured += weight_values(edit)
                keep(lambda form, path, config: edit.save(form, path, experiment.model, config))
            if aimed is not None and aimed.aim is not None and name != UNEDITED:
                measured += [(variable, values, {}) for variable, values in aimed.aim.reached().items()]
            measured += self.answers(done)
            measured.append(("perplexity", self.perplexity(), {}))
        return measured

    def perplexity(self) -> float:
        """Perplexity of the held-out text."""
        return perplexity(self.experiment.model, self.text)

    def _training_values(self, values_by_name: Mapping[str, Any]) -> Iterator[tuple[str, Any, Labels]]:
        """Store what a method that trains says of itself."""
        for variable, values in values_by_name.items():
            dims = KINDS["edit_table"][variable].dims
            yield variable, _padded(values, len(self.coordinates[dims[2]])) if len(dims) > 2 else values, {}

    def answers(
        self, done: Callable[[int], Any] = lambda _: None, first: int | None = None
    ) -> Iterator[tuple[str, Any, Labels]]:
        """Examine the model as it is on the facts, or on those among some from the beginning."""
        every, coordinates = self.experiment.labels(), self.coordinates
        labels = [every[fact] for fact in self.asked_facts if first is None or fact < first]
        for part, examined in self.evaluator.answers(self.executor, len(labels)):
            answers = examined[: len(labels[part])]
            for variable in sorted({variable for values in answers for variable in values}):
                lists = [values.get(variable, []) for values in answers]
                dims = KINDS["edit_table"][variable].dims[2:]
                width = [len(coordinates[dim]) for dim in dims]
                yield variable, _padded(lists, math.prod(width)).reshape(len(answers), *width), {"fact": labels[part]}
            done(len(answers))

    def _store_edited_neighbors(self, run: Run) -> None:
        """Mark neighbourhood prompts that are edited themselves, so that no method should leave them alone."""
        facts = self.experiment.facts
        edited = {fact.text for fact in facts}
        marks = [[float(text in edited) for text, _ in neighborhood(fact)] for fact in facts]
        run.write("neighbor_edited", _padded(marks, len(run.coordinates["neighbor"])))
        run.commit("neighbors_compared")


def weight_values(edit: MethodEdit) -> Measured:
    """Values of an edit by layer, as a run stores them."""
    return [(variable, values, {"layer": list(edit.deltas)}) for variable, values in edit.values.items()]


def _trained(
    config: EvaluationConfig, experiment: Experiment, names: Sequence[str], sketch: Places | None
) -> dict[str, Ready]:
    """Make the methods that train ready for the facts."""
    if not names or not isinstance(config, MethodsConfig):
        return {}
    if len(experiment.model.devices if sketch is None else sketch) > 1:
        raise InputError(ONE_DEVICE.format(names[0]))
    others = _others(config, experiment)
    if RLEDIT in names and (family := literature(config.protocol) or experiment.model.known_as()) in UNTUNED:
        note(f"the paper has no rledit on {family}, for which no stable setting was found: the first published")
    training = config.training.resolved(experiment.model, config.protocol, config.seed)
    return {name: ready(name, experiment.rows, others, training) for name in names}


def _held_out_rows(config: EvaluationConfig, experiment: Experiment, text: Corpus) -> list[Prompt]:
    if experiment.corpus is not None and text.digest == experiment.corpus.digest:
        raise InputError(f"expected a held-out text, got the corpus {config.corpus!r} itself: give another ⟨held_out⟩")
    length = min(config.corpus_length, experiment.model.max_tokens)
    rows = token_rows(experiment.model, text, length, config.held_out_tokens)
    if not any(len(row.ids) > 1 for row in rows):
        raise InputError(f"expected a held-out text of some tokens, got {config.held_out!r}: raise ⟨held_out_tokens⟩")
    return rows


def _others(config: MethodsConfig, experiment: Experiment) -> list[Fact]:
    """Facts that methods may train with; records that cannot be used are left out, and named."""
    file = read_facts(config.train_facts or config.facts, config.train_slice, on_bad_record="skip", on_repeat="first")
    for line in file.notes():
        note(f"of the facts to train with, {line}")
    return disjoint_facts(experiment.facts, file.facts)


def _padded(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """Rows of different lengths as one array, NaN where a row has ended."""
    return np.array([[*row, *[math.nan] * (width - len(row))] for row in rows])
