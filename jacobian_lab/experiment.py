"""What an experiment with edits is made of: its configuration, and all that it names, loaded and checked."""

import importlib.metadata
import math
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jacobian_lab.caching import content_key
from jacobian_lab.chat import chat_of
from jacobian_lab.checks import check_lengths, check_replay, editable
from jacobian_lab.covariance import PYTHON_DOCS, Corpus, load_corpus
from jacobian_lab.errors import InputError
from jacobian_lab.facts import BUILTIN, REFUSE, Fact, FactFile, check_choices, describe, read_facts, refusal
from jacobian_lab.families import KNOWN
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.models import check_layers, load_model
from jacobian_lab.progress import note
from jacobian_lab.sources import DEFAULT_MODEL
from jacobian_lab.targets import DAMPING, SCHEMES, AnchorSettings, Layers, Scheme
from jacobian_lab.templates import Templates, read_templates, sample_templates

DENSE, LANCZOS = "dense", "lanczos"
METHODS = (DENSE, LANCZOS)
"""How a Jacobian is surveyed; Lanczos for models whose J is too large to hold."""
SURVEYS = (*METHODS, "none")

DIGITS = 3
"""Digits that the number of a layer has at the most."""

_PACKAGES = ("jacobian_lab", "torch", "transformers", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class SubjectConfig:
    """A model, and the facts and layers that are looked at.

    Attributes:
        model: An embedded model's name (smollm2-135m), a folder, a .gguf file, or a name on the hub.
        facts: "builtin", or a JSON or JSON Lines file of facts.
        slice: Which of the facts, as A:B; all of them by default.
        on_bad_record: refuse the facts if a record cannot be used, or skip it.
        on_repeat: refuse facts that come more than once, or edit each once, as the first or last record says.
        layers: Decisive layers, the last of them L, as 4-8 or 4,6,8.
        chat: Whether prompts are put into the model's own chat template, as the user's turn that the answer follows.
        protocol: Known model whose settings of the literature to use, such as gpt2-xl; the model's own by default.
        seed: Seed of all that is sampled: templates, the bootstrap, random directions.
        device: auto, cpu, cuda or cuda:N.
        dtype: float32, float64, bfloat16 or float16.
        out: Folder of the run; runs/<hash of the settings> by default.
    """

    model: str = DEFAULT_MODEL
    facts: str = BUILTIN
    slice: str | None = None
    on_bad_record: str = "refuse"
    on_repeat: str = "refuse"
    layers: str | None = None
    chat: bool = False
    protocol: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    out: Path | None = None


@dataclass(frozen=True)
class EditingConfig(SubjectConfig):
    """What edits of facts are made with.

    Whatever is not given suits the model at hand.

    Attributes:
        templates: File of context templates, [["{}"], ["... {}", ...]]; sampled from the seed by default.
        corpus: Text for the second moment: "python-docs", a file with one document a line, or a data set's name.
        corpus_length: Tokens of a document at the most.
        corpus_tokens: Tokens in all; the whole corpus by default.
        ridge: Weight of the second moment in the solve.
        pullback_damping: Weight μ of the shift's norm in the scheme jacobian-pullback.
        anchor_lr: Adam's learning rate for the anchors.
        anchor_steps: Passes of the anchors' optimisation.
        anchor_weight_decay: Weight of the anchor's norm in the loss.
        anchor_kl_factor: Weight of the KL divergence in the loss.
        anchor_clamp: Largest norm of the anchor's shift, as a share of the state's.
        batch_size: Facts optimised side by side at the most; changes no number beyond rounding.
    """

    templates: Path | None = None
    corpus: str = PYTHON_DOCS
    corpus_length: int = 256
    corpus_tokens: int | None = None
    ridge: float | None = None
    pullback_damping: float = DAMPING
    anchor_lr: float | None = None
    anchor_steps: int | None = None
    anchor_weight_decay: float = AnchorSettings.weight_decay
    anchor_kl_factor: float = AnchorSettings.kl_factor
    anchor_clamp: float = AnchorSettings.clamp
    batch_size: int = 16


@dataclass(frozen=True)
class ExperimentConfig(EditingConfig):
    """Edits of facts under target schemes.

    Whatever is not given suits the model at hand.

    Attributes:
        schemes: Target schemes to measure.
        survey: How J is surveyed: dense, lanczos (extreme eigenvalues only, for wide models) or none.
    """

    schemes: tuple[str, ...] = tuple(SCHEMES)
    survey: str = DENSE


@dataclass(frozen=True, eq=False)
class Subject:
    """What a `SubjectConfig` names, loaded and checked.

    Attributes:
        config: The configuration.
        model: The model.
        file: The facts, with what else was found where they were read.
        layers: The decisive layers.
    """

    config: SubjectConfig
    model: LanguageModel
    file: FactFile
    layers: Layers

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts."""
        return self.file.facts

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        chat = {} if self.model.chat is None else {"chat": asdict(self.model.chat)}
        return chat | {
            "model": self.model.fingerprint,
            "dtype": self.config.dtype,
            "device": self.model.device.type,
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
        anchor: How anchors are optimised.
        ridge: λ.
        corpus: The corpus of the second moment.
    """

    config: EditingConfig
    templates: Templates
    anchor: AnchorSettings
    ridge: float
    corpus: Corpus

    @property
    def anchor_layers(self) -> Layers:
        """The layers that anchors are optimised at."""
        return tuple(sorted({self.layers[0], self.layers[-1]}))

    def scheme(self, name: str) -> Scheme:
        """A scheme with the configuration's damping.

        Args:
            name: Its name in `SCHEMES`.

        Returns:
            The scheme.
        """
        scheme = SCHEMES[name]
        return scheme if scheme.damping is None else replace(scheme, damping=self.config.pullback_damping)

    def settings(self) -> dict[str, Any]:
        """Everything that decides a number, as it stands in ``config.json``."""
        config = self.config
        return super().settings() | {
            "templates": [list(group) for group in self.templates],
            "corpus": {
                "digest": self.corpus.digest,
                "length": config.corpus_length,
                "tokens": config.corpus_tokens,
            },
            "ridge": self.ridge,
            "pullback_damping": config.pullback_damping,
            "anchor": asdict(self.anchor),
        }

    def provenance(self) -> dict[str, Any]:
        """What else is worth knowing of a run."""
        return super().provenance() | {
            "templates": str(self.config.templates or f"sampled with seed {self.config.seed}"),
            "corpus": self.corpus.name,
        }


def open_model(config: SubjectConfig) -> tuple[LanguageModel, Layers]:
    """Load and check a model and the layers to be edited.

    Args:
        config: Which.

    Returns:
        Both; the layers that suit the model if none are named.

    Raises:
        InputError: If either cannot be used.
    """
    if not 0 <= config.seed < 2**63:
        raise InputError(f"expected a seed from 0 to 2^63 - 1, got --seed {config.seed}: give another")
    if config.protocol is not None and config.protocol.lower() not in KNOWN:
        raise InputError(f"expected a protocol of {', '.join(KNOWN)}, got {config.protocol!r}: choose one of them")
    layers = None if config.layers is None else parse_layers(config.layers)
    model = load_model(config.model, config.dtype, config.device)
    if config.chat:
        model = replace(model, chat=chat_of(model.tokenizer, config.model))
    layers = layers or model.defaults(config.protocol).layers
    check_layers(layers, model)
    return model, layers


def load_subject(config: SubjectConfig) -> tuple[LanguageModel, FactFile, Layers]:
    """Load and check model, facts and layers, and say on stderr what was found beside the facts.

    Args:
        config: Which.

    Returns:
        All three; the layers that suit the model if none are named.

    Raises:
        InputError: If anything cannot be used.
    """
    check_choices(config.on_bad_record, config.on_repeat)
    file = read_facts(config.facts, config.slice, on_bad_record=config.on_bad_record, on_repeat=config.on_repeat)
    model, layers = open_model(config)
    taken, refused = editable(model, file.facts)
    if refused and (config.on_bad_record == REFUSE or not taken):
        raise InputError(refusal(refused, config.facts, bool(taken)))
    file = replace(file, facts=taken, refused=file.refused + refused)
    for line in file.notes():
        note(line)
    check_replay(model, taken, layers)
    return model, file, layers


def prepare(config: EditingConfig) -> Experiment:
    """Load and check everything that a configuration names.

    Args:
        config: The configuration.

    Returns:
        The experiment.

    Raises:
        InputError: If anything cannot be used.
    """
    _check_config(config)
    templates = read_templates(config.templates) if config.templates else None
    corpus = load_corpus(config.corpus, seed=config.seed)
    model, file, layers = load_subject(config)
    defaults = model.defaults(config.protocol)
    if config.corpus_length > model.max_tokens:
        raise InputError(
            f"expected documents of at most {model.max_tokens} tokens, got --corpus-length {config.corpus_length}: "
            f"{config.model} takes no longer ones"
        )
    anchor = AnchorSettings(
        lr=config.anchor_lr or defaults.anchor_lr,
        steps=config.anchor_steps or defaults.anchor_steps,
        weight_decay=config.anchor_weight_decay,
        kl_factor=config.anchor_kl_factor,
        clamp=config.anchor_clamp,
    )
    ridge = defaults.ridge if config.ridge is None else config.ridge
    templates = templates or sample_templates(model, config.seed)
    check_lengths(model, file.facts, templates)
    return Experiment(config, model, file, layers, templates, anchor, ridge, corpus)


def parse_layers(text: str) -> Layers:
    """Read decisive layers.

    Args:
        text: ``"4-8"``, ``"4,6,8"`` or ``"8"``.

    Returns:
        The layers.

    Raises:
        InputError: If it is not of this form or does not ascend.
    """
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


def _check_config(config: EditingConfig) -> None:
    """What can be refused before anything is loaded."""
    if isinstance(config, ExperimentConfig):
        _check_schemes(config)
    if config.anchor_steps == 1:
        raise InputError("expected at least 2 passes, got --anchor-steps 1: the first one makes no update")
    positive = (
        "corpus_length",
        "corpus_tokens",
        "anchor_lr",
        "anchor_steps",
        "anchor_clamp",
        "batch_size",
        "pullback_damping",
        "held_out_tokens",
        "edits_per_batch",
    )
    for name, value in asdict(config).items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise InputError(f"expected a number that is not negative, got {option} {value}: give another")
        if name in positive and value is not None and not value > 0:
            raise InputError(f"expected a number above zero, got {option} {value}: give another")


def _check_schemes(config: ExperimentConfig) -> None:
    if not config.schemes:
        raise InputError(f"expected at least one scheme of {', '.join(SCHEMES)}, got none: name one after --schemes")
    for name in config.schemes:
        if name not in SCHEMES:
            raise InputError(f"expected schemes among {', '.join(SCHEMES)}, got {name!r}: choose among them")
    if config.survey not in SURVEYS:
        raise InputError(f"expected a survey of {', '.join(SURVEYS)}, got {config.survey!r}: choose one of them")
