"""The subject of a run: a model, facts and layers, loaded and checked."""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from jacobian_lab.caching import content_key
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.metrics import check_questions
from jacobian_lab.facts.fact import REFUSE, Fact, FactFile, Refused, describe
from jacobian_lab.facts.reading import read_facts, refusal
from jacobian_lab.jobs.config import ComputingConfig, EditingConfig, SubjectConfig, check
from jacobian_lab.jobs.options import options_of
from jacobian_lab.jobs.origin import origin
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.chat import DATE, Chat, chat_of, chat_options, chat_settings
from jacobian_lab.model.devices import Places
from jacobian_lab.model.edited import check_editable
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.loading import check_layers, load_model, sketch_model
from jacobian_lab.model.protocols import literature, measured_protocol, note_other_model
from jacobian_lab.model.rows import FactRows, checked_rows, sorted_out
from jacobian_lab.model.templates import Templates
from jacobian_lab.model.tokens import BARE
from jacobian_lab.parallel.cluster import check_workers
from jacobian_lab.parallel.executor import Executor, SerialExecutor
from jacobian_lab.parallel.ray_workers import start_executor
from jacobian_lab.progress import note

DIGITS = 3
"""Digits that the number of a layer has at the most."""

_PACKAGES = ("jacobian_lab", "torch", "transformers", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True, eq=False)
class Subject:
    """Model, facts and layers of a `SubjectConfig`, loaded and checked.

    Attributes:
        config: The configuration.
        model: The model.
        file: The facts, with what else was found where they were read.
        layers: The decisive layers.
        templates: The context templates; the bare prompt alone where none are needed.
        rows: The facts as the model reads them.
        device: Where the model is, or would be.
        executor: Who does the work that is divided by facts.
    """

    config: ComputingConfig
    model: LanguageModel
    file: FactFile
    layers: Layers
    templates: Templates
    rows: FactRows
    device: torch.device
    executor: Executor

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
        """Facts worth knowing of a run that decide no number."""
        config = self.config
        return {
            "model": config.model,
            "protocol": literature(config.protocol) or self.model.known_as(),
            "facts": {"source": config.facts, "slice": config.slice, "count": len(self.facts)} | self.file.left_out(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            **({"tf32": torch.backends.cuda.matmul.allow_tf32} if self.model.device.type == "cuda" else {}),
            **origin(),
            "options": options_of(config),
            "decisive": [self.model.tokenizer.decode([row.ids[row.decisive]]) for row in self.rows.bare],
        }

    def labels(self) -> list[Any]:
        """The facts' ids as labels of one type: numbers if all are, else texts."""
        ids = [fact.id for fact in self.facts]
        return ids if all(isinstance(i, int) for i in ids) else [str(i) for i in ids]


def open_model(config: SubjectConfig, *, sketch: Places | None = None) -> tuple[LanguageModel, Layers]:
    """Load and check a model and the layers to be edited."""
    layers = check_options(config)
    if sketch is None:
        model = load_model(config.model, config.dtype, config.device)
        note_other_model(config.protocol, model.name, model.fingerprint)
    else:
        model = sketch_model(config.model, config.dtype)
    model = replace(model, chat=_chat(config, model))
    layers = layers or model.defaults(config.protocol).layers
    check_layers(layers, model)
    return model, layers


def _chat(config: SubjectConfig, model: LanguageModel) -> Chat | None:
    """Fill in the chat template, if prompts are to be put into it."""
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
    measured_protocol(config.protocol)
    return None if config.layers is None else parse_layers(config.layers)


def load_subject(
    config: ComputingConfig,
    templates: Callable[[LanguageModel], Templates] = lambda _: ((BARE,),),
    questions: Callable[[Fact], Fact] | None = None,
    *,
    sketch: Places | None = None,
    opened: tuple[LanguageModel, Layers] | None = None,
) -> Subject:
    """Load and check model, facts and layers, and say on stderr what was found beside the facts.

    A model that `open_model` has opened already is not loaded again.
    """
    check(config)
    if sketch is None:
        check_workers(config.executor)
    file = read_facts(config.facts, config.slice, on_bad_record=config.on_bad_record, on_repeat=config.on_repeat)
    model, layers = opened or open_model(config, sketch=sketch)
    if isinstance(config, EditingConfig):
        check_editable(model)
    contexts = templates(model)
    rows, refused = checked_rows(model, file.facts, contexts, file.places)
    if questions is not None:
        usable, unanswerable = sorted_out(rows.facts, lambda fact: check_questions(model, questions(fact)), file.places)
        rows, refused = rows.select([rows.facts.index(fact) for fact in usable]), refused + unanswerable
    file = _without(config, file, rows.facts, refused)
    for line in file.notes():
        note(line)
    if sketch is not None:
        alone = SerialExecutor(config.executor.load(len(sketch) if sketch[0].type == "cuda" else 0))
        return Subject(config, model, file, layers, contexts, rows, sketch[0], alone)
    check_replay(model, file.facts, layers)
    executor = start_executor(config.executor, model, layers, config.dtype)
    return Subject(config, model, file, layers, contexts, rows, model.device, executor)


def _without(config: SubjectConfig, file: FactFile, usable: tuple[Fact, ...], refused: tuple[Refused, ...]) -> FactFile:
    """Leave refused facts out of a file, if it is to be used without them; they are listed in its order."""
    order = list(file.places.values())
    refused = tuple(sorted(refused, key=lambda record: order.index(record.place)))
    if refused and (config.on_bad_record == REFUSE or not usable):
        raise InputError(refusal(refused, config.facts, bool(usable)))
    return replace(file, facts=usable, refused=file.refused + refused)


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
