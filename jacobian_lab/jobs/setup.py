"""What a configuration names, loaded and checked."""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from jacobian_lab.caching import content_key
from jacobian_lab.crew.cluster import check_workers
from jacobian_lab.crew.crew import Alone, Crew
from jacobian_lab.crew.workers import hire
from jacobian_lab.editing.anchors import AnchorSettings
from jacobian_lab.editing.layers import Setting
from jacobian_lab.editing.published_moments import Published, check_moments
from jacobian_lab.editing.second_moments import SecondMoment
from jacobian_lab.editing.solving import REALISED
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.metrics import check_questions
from jacobian_lab.facts.fact import REFUSE, Fact, FactFile, describe
from jacobian_lab.facts.reading import read_facts, refusal
from jacobian_lab.jobs.config import ComputingConfig, EditingConfig, SubjectConfig, check
from jacobian_lab.jobs.origin import origin
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.chat import DATE, Chat, chat_of, chat_options, chat_settings
from jacobian_lab.model.corpus import TOKENS_PER_NEURON, Corpus, load_corpus
from jacobian_lab.model.devices import Places
from jacobian_lab.model.families import KNOWN
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.loading import check_layers, load_model, sketch_model
from jacobian_lab.model.rows import FactRows, check_contexts, check_fact, fact_rows, sorted_out
from jacobian_lab.model.templates import USUAL_TEMPLATES, Templates, read_templates, sample_templates
from jacobian_lab.progress import note
from jacobian_lab.store.arrays import exists, open_arrays, read_config
from jacobian_lab.store.run import check_same
from jacobian_lab.store.schema import KINDS, command_of

DIGITS = 3
"""Digits that the number of a layer has at the most."""

ANCHORS = ("model", "chat", "dtype", "facts", "templates", "anchor")
"""The settings that decide an anchor, but for rounding."""
ROUNDING = ("device", "versions")
"""Those that decide its rounding: anchors of a card may be edited with on a processor."""

OF_WEIGHTS = ("model", "templates")
"""Those of them that a model without weights does not tell."""

_PACKAGES = ("jacobian_lab", "torch", "transformers", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True, eq=False)
class Subject:
    """What a `SubjectConfig` names, loaded and checked.

    Attributes:
        config: The configuration.
        model: The model.
        file: The facts, with what else was found where they were read.
        layers: The decisive layers.
        device: Where the model is, or would be.
        crew: Who does the work that is divided by facts.
    """

    config: ComputingConfig
    model: LanguageModel
    file: FactFile
    layers: Layers
    device: torch.device
    crew: Crew

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts."""
        return self.file.facts

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        return chat_settings(self.model.chat) | {
            "model": self.model.fingerprint,
            "dtype": self.config.dtype,
            "device": self.device.type,
            "facts": content_key(describe(self.facts)),
            "layers": list(self.layers),
            "seed": self.config.seed,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }

    def provenance(self) -> dict[str, Any]:
        """What else is worth knowing of a run."""
        config = self.config
        return {
            "model": config.model,
            "protocol": config.protocol.lower() if config.protocol else self.model.known(),
            "facts": {"source": config.facts, "slice": config.slice, "count": len(self.facts)} | self.file.left_out(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            **({"tf32": torch.backends.cuda.matmul.allow_tf32} if self.model.device.type == "cuda" else {}),
            **origin(),
        }

    def labels(self) -> list[Any]:
        """The facts' ids as labels of one type: numbers if all are, else texts."""
        ids = [fact.id for fact in self.facts]
        return ids if all(isinstance(i, int) for i in ids) else [str(i) for i in ids]


@dataclass(frozen=True, eq=False)
class Experiment(Subject):
    """An `EditingConfig` with everything that it names loaded and checked.

    Attributes:
        templates: The context templates.
        rows: The facts as the model reads them.
        anchor: How anchors are optimised.
        ridge: λ; none if it follows from what is realised (`Bench.ridge`).
        corpus: The corpus of the second moment, unless published ones take its place.
        shared: Places of the facts that the run of ⟨anchors_from⟩ has too; descents put these, and the others, into
            batches of their own.
        gone: Why that run cannot be read, where it may not be needed any more.
    """

    config: EditingConfig
    templates: Templates
    rows: FactRows
    anchor: AnchorSettings
    ridge: float | None
    corpus: Corpus | None
    shared: frozenset[int] = frozenset()
    gone: InputError | None = None

    @cached_property
    def published(self) -> Published | None:
        """Second moments that take the corpus's place, if there are any."""
        folder = self.config.moments
        return None if folder is None else Published.of(self.model, folder, self.layers)

    @property
    def corpus_tokens(self) -> int | None:
        """Tokens that the second moment is taken over; none: the whole corpus."""
        given = self.config.corpus_tokens
        return TOKENS_PER_NEURON * self.model.d_mlp if given == "auto" else given

    @property
    def anchor_layers(self) -> Layers:
        """The layers that anchors are optimised at."""
        return tuple(sorted({self.layers[0], self.layers[-1]}))

    def setting(self, moments: SecondMoment, ridge: float) -> Setting:
        """What an edit of these facts is made with."""
        return Setting(self.rows, moments.matrices, ridge, self.config.pullback_damping, self.crew)

    def of_anchors(self) -> dict[str, Any]:
        """The settings that decide an anchor, and those of every subject."""
        return super().settings() | {
            "templates": [list(group) for group in self.templates],
            "anchor": {name: value for name, value in asdict(self.anchor).items() if value is not None},
        }

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config = self.config
        return self.of_anchors() | {
            "corpus": self._corpus_settings(),
            "ridge": f"realises {REALISED:g}" if self.ridge is None else self.ridge,
            "pullback_damping": config.pullback_damping,
            "coordination": asdict(config.coordination),
        }

    def _corpus_settings(self) -> dict[str, Any]:
        if self.published is not None:
            return {"published": self.published.digest}
        assert self.corpus is not None
        drawn = {} if self.corpus_tokens is None else {"tokens_seed": self.config.seed}
        length, tokens = self.config.corpus_length, self.corpus_tokens
        return {"digest": self.corpus.digest, "length": length, "tokens": tokens} | drawn

    def provenance(self) -> dict[str, Any]:
        """What else is worth knowing of a run."""
        return (
            super().provenance()
            | {
                "templates": str(self.config.templates or f"sampled with seed {self.config.seed}"),
                "corpus": str(self.config.moments) if self.corpus is None else self.corpus.name,
                "splits": _splits(self.model, self.facts),
            }
            | ({} if self.config.anchors_from is None else {"anchors_from": str(self.config.anchors_from)})
        )


def open_model(config: SubjectConfig, *, sketch: Places | None = None) -> tuple[LanguageModel, Layers]:
    """Load and check a model and the layers to be edited."""
    layers = check_options(config)
    if sketch is None:
        model = load_model(config.model, config.dtype, config.device)
    else:
        model = sketch_model(config.model, config.dtype)
    model = replace(model, chat=_chat(config, model))
    layers = layers or model.defaults(config.protocol).layers
    check_layers(layers, model)
    return model, layers


def _chat(config: SubjectConfig, model: LanguageModel) -> Chat | None:
    """How the chat template is to be filled in, if prompts are to be put into it."""
    if not config.chat:
        return None
    return chat_of(
        model.tokenizer, config.model, chat_options(config.chat_option), config.chat_system, config.chat_date
    )


def check_options(config: SubjectConfig) -> Layers | None:
    """Refuse what no model could be opened with."""
    filled_in = config.chat_option or config.chat_system is not None or config.chat_date != DATE
    if filled_in and not config.chat:
        raise InputError(
            "expected ⟨chat⟩ with ⟨chat_option⟩, ⟨chat_system⟩ and ⟨chat_date⟩, got these alone: they say how the chat "
            "template is filled in"
        )
    chat_options(config.chat_option)
    if config.protocol is not None and config.protocol.lower() not in KNOWN:
        raise InputError(f"expected a protocol of {', '.join(KNOWN)}, got {config.protocol!r}: choose one of them")
    return None if config.layers is None else parse_layers(config.layers)


def load_subject(
    config: ComputingConfig,
    further: Callable[[LanguageModel], Callable[[Fact], Any]] | None = None,
    *,
    sketch: Places | None = None,
) -> Subject:
    """Load and check model, facts and layers, and say on stderr what was found beside the facts."""
    check(config)
    if sketch is None:
        check_workers(config.crew)
    file = read_facts(config.facts, config.slice, on_bad_record=config.on_bad_record, on_repeat=config.on_repeat)
    model, layers = open_model(config, sketch=sketch)
    file = _sorted_out(config, file, partial(check_fact, model))
    if further is not None:
        file = _sorted_out(config, file, further(model))
    for line in file.notes():
        note(line)
    if sketch is not None:
        cards = len(sketch) if sketch[0].type == "cuda" else 0
        return Subject(config, model, file, layers, sketch[0], Alone(config.crew.load(cards)))
    check_replay(model, file.facts, layers)
    crew = hire(config.crew, model, layers, config.dtype)
    return Subject(config, model, file, layers, model.device, crew)


def _sorted_out(config: SubjectConfig, file: FactFile, check: Callable[[Fact], Any]) -> FactFile:
    """A file without the facts that do not pass a check, if it is to be used without them."""
    taken, refused = sorted_out(file.facts, check, file.places)
    if refused and (config.on_bad_record == REFUSE or not taken):
        raise InputError(refusal(refused, config.facts, bool(taken)))
    return replace(file, facts=taken, refused=file.refused + refused)


def prepare(
    config: EditingConfig, asked: Callable[[Fact], Fact] | None = None, *, sketch: Places | None = None
) -> Experiment:
    """Load and check everything that a configuration names."""
    check(config)
    templates = read_templates(config.templates) if config.templates else None
    corpus = load_corpus(config.corpus, seed=config.seed) if config.moments is None else None
    if config.moments is not None:
        check_moments(config.moments)
        if config.corpus != EditingConfig.corpus or config.corpus_tokens is not None:
            raise InputError(
                "expected ⟨moments⟩, or ⟨corpus⟩ and ⟨corpus_tokens⟩, got both: they take each other's place"
            )
    donated, gone = _donated(config, planned=sketch is not None)

    def further(model: LanguageModel) -> Callable[[Fact], None]:
        """What an edit needs of a fact beside its own prompt: every context, and every question of the evaluation."""
        nonlocal templates
        sampled = sample_templates(model, config.seed) if templates is None and sketch is None else USUAL_TEMPLATES
        contexts = templates = templates or sampled

        def whole(fact: Fact) -> None:
            check_contexts(model, contexts, fact)
            if asked is not None:
                check_questions(model, asked(fact))

        return whole

    subject = load_subject(config, further, sketch=sketch)
    assert templates is not None
    model = subject.model
    defaults = model.defaults(config.protocol)
    if corpus is not None and config.corpus_length > model.max_tokens:
        raise InputError(
            f"expected documents of at most {model.max_tokens} tokens, got ⟨corpus_length⟩ {config.corpus_length}: "
            f"{config.model} takes no longer ones"
        )
    given = {name: value for name, value in asdict(config.anchor).items() if value is not None}
    anchor = AnchorSettings(**{"lr": defaults.anchor_lr, "steps": defaults.anchor_steps} | given)
    ridge = defaults.ridge if config.ridge is None else config.ridge
    rows = fact_rows(model, subject.facts, templates)
    experiment = Experiment(
        **vars(subject), templates=templates, rows=rows, anchor=anchor, ridge=ridge, corpus=corpus, gone=gone
    )
    if donated is None or config.anchors_from is None:
        return experiment
    settings, provenance, facts = donated
    places = {label: place for place, label in enumerate(experiment.labels())}
    shared = [places[label] for label in facts if label in places]
    theirs_here = _named(facts, subject)
    ours = experiment.of_anchors() | {"facts": content_key(describe(theirs_here))}
    known = [name for name in ANCHORS if sketch is None or name not in OF_WEIGHTS]
    theirs, ours = ({name: each[name] for name in known if name in each} for each in (settings, ours))
    check_same(theirs, ours, config.anchors_from, "anchors_from")
    if provenance.get("splits") not in {None, _splits(model, theirs_here)}:  # none in runs of earlier versions
        raise InputError(
            f"expected facts that are split into the same tokens as in {config.anchors_from}, got others: this version "
            f"of transformers or tokenizers reads the tokenizer otherwise; take transformers "
            f"{settings['versions']['transformers']} and tokenizers {settings['versions']['tokenizers']}, or another "
            "⟨anchors_from⟩"
        )
    made, here = ({name: each[name] for name in ROUNDING} for each in (settings, experiment.of_anchors()))
    if made != here:
        where = f"{made['device']} with torch {made['versions']['torch']}"
        note(f"anchors of {config.anchors_from} were made on {where}: they round otherwise")
    return replace(experiment, shared=frozenset(shared))


def _named(labels: Sequence[Any], subject: Subject) -> list[Fact]:
    """The facts that another run names, as far as there are such among ours, or else in the same file."""
    known = {str(fact.id): fact for fact in subject.facts}
    if any(str(label) not in known for label in labels):
        whole = read_facts(subject.config.facts, on_bad_record="skip", on_repeat="first")
        known = {str(fact.id): fact for fact in whole.facts} | known
    return [known[str(label)] for label in labels if str(label) in known]


def _splits(model: LanguageModel, facts: Sequence[Fact]) -> str:
    """Digest of the tokens that facts are split into, which the model's fingerprint tells of one sample text alone."""
    rows = [model.fact_prompt(fact, answer=True) for fact in facts]
    return content_key([[row.ids, row.decisive, row.answer] for row in rows])


def _donated(
    config: EditingConfig, *, planned: bool
) -> tuple[tuple[dict[str, Any], dict[str, Any], list[Any]] | None, InputError | None]:
    """Settings, provenance and facts of the run whose anchors are wanted, or why it cannot be read."""
    folder = config.anchors_from
    if folder is None:
        return None, None
    try:
        donor = read_config(folder)
    except InputError as error:
        gone = InputError(f"{error}, or give another ⟨anchors_from⟩")
        # refused at once only where nothing can have been taken from it yet
        if planned or (config.out is not None and not exists(config.out)):
            raise gone from error
        return None, gone
    if "anchor" not in KINDS[donor["kind"]]:
        kind = command_of(donor["kind"])
        raise InputError(f"expected a run with anchors, got one of {kind} in {folder}: give another ⟨anchors_from⟩")
    return (donor["settings"], donor["provenance"], open_arrays(folder, "r").labels["fact"]), None


def parse_layers(text: str) -> Layers:
    """Read decisive layers."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > DIGITS:
            raise InputError(f"expected layers as 4-8 or 4,6,8, got {text!r}: give whole numbers")
        span = range(int(first), int(last or first) + 1)
        layers.extend(span or [int(first), int(last)])
    if layers != sorted(set(layers)):
        raise InputError(f"expected ascending layers, got {text!r}: give them from the lowest to the highest, as 4-8")
    return tuple(layers)
