"""The front door to editing: an editor of some facts, and edits that are looked at and put back."""

import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, OPTIMISED, REPLAYED, SCHEMES, TRAINED, method, method_name
from jacobian_lab.editing.layers import Setting
from jacobian_lab.editing.measures import ObservedEdit, measure
from jacobian_lab.editing.published_moments import Published
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import DAMPING, Targets
from jacobian_lab.editing.second_moments import second_moments
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings, ReplaySettings, recorded
from jacobian_lab.edits import Edit, PairEdit, TrainedEdit
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.facts.fact import Fact, describe
from jacobian_lab.facts.reading import GIVEN, check_facts, load_facts, refusal
from jacobian_lab.jobs.config import check
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.chat import chat_settings
from jacobian_lab.model.corpus import PYTHON_DOCS, Corpus, load_corpus
from jacobian_lab.model.edited import check_editable, check_unedited
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.loading import check_layers
from jacobian_lab.model.protocols import note_other_model
from jacobian_lab.model.rows import FactRows, check_fact, fact_rows, sorted_out
from jacobian_lab.model.templates import Templates, sample_templates
from jacobian_lab.progress import bar, span
from jacobian_lab.session.descents import ANCHOR, REFIT_ANCHOR, InMemory
from jacobian_lab.session.session import Session
from jacobian_lab.training.examples import disjoint_facts
from jacobian_lab.training.methods import ready
from jacobian_lab.training.settings import TrainingConfig


class Editor:
    """Edits of some facts, each made, looked at and undone.

    What is not given suits the model at hand. What takes long (second moments, anchors) is made when it is first
    needed, and kept.

    Args:
        model: The model.
        facts: The facts; they are edited jointly.
        layers: Decisive layers, ascending, the last of them L.
        ridge: λ, the weight of the second moment in the solve.
        protocol: Where layers, λ and the anchors' lr and passes come from if they are not given: a known model, a
            measured one's method, or a file of ``jacobian-lab tune``.
        anchor: How anchors are optimised.
        coordination: How coordinated replay shares the effort over the layers.
        replay: How the controls of forward replay are made.
        anchors: Anchors that are there already, by layer, such as a run's; ``[fact, d_model]``.
        templates: Context templates, groups of texts with one ``{}``; sampled with the seed by default.
        corpus: Text for the second moment, as `load_corpus` takes it, or a corpus that has been loaded.
        corpus_tokens: Tokens of it, of documents drawn by the seed; all by default.
        moments: Folder of published second moments that take the corpus's place (guide, Command line).
        rules: What the update rules leave open.
        training: How the methods train that do.
        train_facts: What they are taught with; those of other subjects than what is edited are taken. The facts that
            the package ships by default.
        damping: μ of the scheme jacobian-pullback.
        batch_size: Facts optimized side by side at the most; 16 on a processor by default, and what memory holds on a
            card. A batch that does not fit is halved.
        seed: Seed of what is sampled.
        progress: Whether to show progress bars.

    Raises:
        InputError: If the model cannot be edited at these layers, or not these facts.

    Examples:
        >>> import jacobian_lab as jl
        >>> editor = jl.Editor(jl.load_model(), jl.load_facts("builtin", "0:2"), progress=False)
        >>> editor
        Editor of 2 facts in smollm2-135m: layers 4-8, λ by what is realised, anchors in up to 25 passes at lr 0.5
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        *,
        layers: Sequence[int] | None = None,
        ridge: float | None = None,
        protocol: str | None = None,
        anchor: AnchorSettings | None = None,
        coordination: CoordinationSettings | None = None,
        replay: ReplaySettings | None = None,
        anchors: Mapping[int, np.ndarray | Tensor] | None = None,
        templates: Templates | None = None,
        corpus: str | Corpus = PYTHON_DOCS,
        corpus_tokens: int | None = None,
        moments: str | Path | None = None,
        rules: RuleSettings | None = None,
        training: TrainingConfig | None = None,
        train_facts: Sequence[Fact] | None = None,
        damping: float = DAMPING,
        batch_size: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        check_editable(model)
        defaults = model.defaults(protocol)
        note_other_model(protocol, model.name, model.fingerprint)
        self.model, self.facts, self.seed, self.progress = model, tuple(facts), seed, progress
        if not self.facts:
            raise InputError("expected at least one fact, got none: see load_facts")
        self.layers: Layers = defaults.layers if layers is None else tuple(layers)
        self.anchor = anchor or AnchorSettings(lr=defaults.anchor_lr, steps=defaults.anchor_steps)
        self.coordination, self.rules = coordination or CoordinationSettings(), rules or RuleSettings()
        self.replay = replay or ReplaySettings()
        self.damping, self._batch_size = damping, batch_size
        self._ridge = defaults.ridge if ridge is None else ridge
        check(training or TrainingConfig())
        self.training, self._train_facts = (training or TrainingConfig()).resolved(model, protocol, seed), train_facts
        self._templates, self._corpus, self._corpus_tokens = templates, corpus, corpus_tokens
        check_layers(self.layers, model)
        check_unedited(model, "make an editor of")
        check_facts(self.facts)
        places = {fact.id: f"fact {place}" for place, fact in enumerate(self.facts)}
        _, refused = sorted_out(self.facts, partial(check_fact, model), places)
        if refused:
            raise InputError(refusal(refused, GIVEN, others=False))
        self._published = None if moments is None else Published.of(model, Path(moments), self.layers)
        self.evaluator = Evaluator.of(model, self.facts, greedy=True)
        check_replay(model, self.facts, self.layers)
        self._recorder = InMemory()
        for layer, states in (anchors or {}).items():
            self._take(layer, states)

    def __repr__(self) -> str:
        ridge = vars(vars(self).get("session", self)).get("ridge", self._ridge)  # not to be made for this
        weight = "λ by what is realised" if ridge is None else f"λ = {ridge:g}"
        settings = f"{weight}, anchors in up to {self.anchor.steps} passes at lr {self.anchor.lr:g}"
        return f"Editor of {_count(self.facts)} in {self.model.name}: layers {span(self.layers)}, {settings}"

    def _repr_html_(self) -> str:
        rows = [(fact.text, fact.target_true, fact.target_new) for fact in self.facts]
        table = pd.DataFrame(rows, columns=["prompt", "true answer", "new answer"]).to_html(index=False, max_rows=10)
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @cached_property
    def templates(self) -> Templates:
        """The context templates."""
        if self._templates is not None:
            return self._templates
        check_unedited(self.model, "sample templates of")
        return sample_templates(self.model, self.seed)

    @cached_property
    def session(self) -> Session:
        """All that the facts are edited with."""
        return Session(
            rows=self.rows,
            layers=self.layers,
            anchor=self.anchor,
            take_moments=self._take_moments,
            coordination=self.coordination,
            replay=self.replay,
            seed=self.seed,
            rules=self.rules,
            fixed_ridge=self._ridge,
            damping=self.damping,
            batch_size=self._batch_size,
            progress=self.progress,
        )

    @cached_property
    def rows(self) -> FactRows:
        """The facts as the model reads them."""
        return fact_rows(self.model, self.facts, self.templates)

    @cached_property
    def corpus(self) -> Corpus:
        """The text of the second moment."""
        return self._corpus if isinstance(self._corpus, Corpus) else load_corpus(self._corpus, seed=self.seed)

    @property
    def moments(self) -> Mapping[int, Tensor]:
        """C of the decisive layers, computed when it is first needed, or found in the cache."""
        return self.session.moments

    def _take_moments(self) -> Mapping[int, Tensor]:
        if self._published is not None:
            return self._published.read(self.model).matrices
        check_unedited(self.model, "take second moments of")
        tokens = self._corpus_tokens
        return second_moments(self.model, self.corpus, self.layers, tokens=tokens, progress=self.progress).matrices

    @property
    def ridge(self) -> float:
        """λ: what was given, the literature's, or what suits the model at hand by what is realised."""
        if self._ridge is None and "ridge" not in vars(self.session):
            check_unedited(self.model, "find λ on")
        return self.session.ridge

    @property
    def setting(self) -> Setting:
        """Rows, C, λ and μ of every edit."""
        _ = self.ridge
        return self.session.setting

    @cached_property
    def targets(self) -> Targets:
        """Optimized and replayed targets; anchors are optimized at the first and at the last layer."""
        check_unedited(self.model, "make targets on")
        return self.session.targets(self._recorder, ())

    @cached_property
    def coordinated(self) -> Targets:
        """Targets of the tables' kinds; shifts are optimized at all decisive layers.

        Raises:
            InputError: If the model is edited now.
        """
        check_unedited(self.model, "optimise shifts on")
        return self.session.targets(self._recorder, ("coordinated-replay",))

    def targets_of(self, scheme: str) -> Targets:
        """Targets that a scheme needs.

        Args:
            scheme: Its name.

        Returns:
            The targets.
        """
        kind = SCHEMES[scheme].kind
        if kind in {OPTIMISED, REPLAYED, COORDINATED}:
            return self.coordinated if kind == COORDINATED else self.targets
        check_unedited(self.model, "make targets on")
        return self.session.targets(self._recorder, (scheme,))

    def anchors(self, layer: int) -> Tensor:
        """Anchors of the unedited model.

        Args:
            layer: The anchor layer.

        Returns:
            h_0 + δ of every fact, ``[fact, d_model]``; NaN where the loss was not finite.

        Raises:
            InputError: If they are not there yet and the model is edited now.
        """
        if self._recorder.missing(ANCHOR, {"anchor_layer": layer}, range(len(self.facts))):
            check_unedited(self.model, "optimise anchors on")
        return self.session.anchors(self._recorder, (layer,))[layer]

    def _take(self, layer: int, states: np.ndarray | Tensor) -> None:
        """Record anchors from elsewhere."""
        expected, shape = (len(self.facts), self.model.d_model), tuple(states.shape)
        if shape != expected:
            raise InputError(f"expected anchors of the shape {expected}, got {shape} at layer {layer}: give one a fact")
        unknown = torch.full((len(self.facts),), torch.nan)
        optimized = (torch.as_tensor(states), unknown, unknown, unknown, unknown)
        self._recorder.put(ANCHOR, {"anchor_layer": layer}, range(len(self.facts)), optimized)

    @contextmanager
    def edit(self, name: str = "memit+fe") -> Iterator[Any]:
        """Edit with a method; on leaving, the weights are back bit for bit, whatever happened within.

        Args:
            name: A method in `METHODS`, a pair ``rule@scheme``, ``wise`` or ``rledit``.

        Yields:
            The edit: a `PairEdit`, or a `TrainedEdit` of a method that trains.

        Raises:
            InputError: If there is no such method, the model is edited already, no fact has a finite anchor, a solve is
                singular, or nothing can be trained with.
        """
        name = method_name(name)
        check_unedited(self.model, "edit")
        if name in TRAINED:
            with self._trained_edit(name) as edit:
                yield edit
            return
        pair, _ = method(name), self.setting
        targets = self.targets_of(pair.scheme)
        _ = self.evaluator.before  # of the unedited model
        edits: list[ObservedEdit] = []

        def refit(layer: int, facts: Sequence[int]) -> Tensor:
            return self.session.anchors(InMemory(), (layer,), REFIT_ANCHOR, facts)[layer]

        def measured() -> dict[str, Tensor]:
            if pair.refit:
                raise InputError(f"expected a method with one target, got {name!r}: its measures are not defined")
            return measure(edits, targets, SCHEMES[pair.scheme])

        with ExitStack() as stack:
            edited = self.session.edited(name, targets, refit=refit, look_on=edits.append)
            weights = stack.enter_context(edited)
            edit = PairEdit(name, self.evaluator, partial(self._settings, name), weights, measured)
            stack.callback(edit.leave)
            yield edit

    @contextmanager
    def _trained_edit(self, name: str) -> Iterator[Edit]:
        others = disjoint_facts(self.facts, load_facts() if self._train_facts is None else self._train_facts)
        trained = ready(name, self.rows, others, self.training)
        _ = self.evaluator.before  # of the unedited model
        with bar(trained.facts, f"{name}: training", "fact", show=self.progress) as progress_bar:
            trainer = trained.train(progress_bar.update)
        with ExitStack() as stack:
            stack.enter_context(trainer.edited())
            settings = partial(self._settings_of_training, name, trained.about)
            edit = TrainedEdit(name, self.evaluator, settings, trainer)
            stack.callback(edit.leave)
            yield edit

    def _settings(self, name: str) -> dict[str, Any]:
        published = self._published
        return chat_settings(self.model.chat) | {
            "method": name,
            "facts": describe(self.facts),
            "layers": list(self.layers),
            "ridge": self.ridge,
            "anchor": recorded(self.anchor),
            "coordination": recorded(self.coordination),
            "replay": recorded(self.replay),
            "rules": asdict(self.rules),
            "pullback_damping": self.damping,
            "templates": [list(group) for group in self.templates],
            "corpus": {"digest": self.corpus.digest, "tokens": self._corpus_tokens}
            if published is None
            else {"published": published.digest},
            "seed": self.seed,
        }

    def _settings_of_training(self, name: str, about: Mapping[str, str]) -> dict[str, Any]:
        return chat_settings(self.model.chat) | {
            "method": name,
            "facts": describe(self.facts),
            "training": dict(about),
            "templates": [list(group) for group in self.templates],
            "seed": self.seed,
        }


def _count(facts: Sequence[Fact]) -> str:
    return f"{len(facts)} fact{'s' if len(facts) > 1 else ''}"
