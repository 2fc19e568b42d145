"""Methods that train, by name: each prepared for facts, with the file that caches its training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.caching import cache_folder, content_key
from jacobian_lab.catalogue import TRAINED
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.examples import training_examples, unrelated_rows
from jacobian_lab.training.rledit import RLEdit
from jacobian_lab.training.settings import RLEditConfig, TrainingConfig, WiseConfig
from jacobian_lab.training.trainers import Trainer, carry_on, save_training
from jacobian_lab.training.wise import Wise

WISE, RLEDIT = TRAINED


@dataclass(frozen=True, eq=False)
class Ready:
    """A method that trains, prepared for facts; it is made on first use, since it takes memory.

    Attributes:
        make: Makes the method.
        about: Everything that determines the training: the method, the model, the settings, a digest of the rows.
        facts: Number of facts in its training.
        settings: Its settings.
    """

    make: Callable[[], Trainer]
    about: Mapping[str, str]
    facts: int
    settings: WiseConfig | RLEditConfig

    @property
    def decided_by(self) -> dict[str, Any]:
        """Everything that determines the edit: `about`, and the number of facts that are edited at once."""
        at_once = self.settings.edited_at_once if isinstance(self.settings, RLEditConfig) else 1
        return {**self.about, "edited_at_once": at_once}

    @cached_property
    def trainer(self) -> Trainer:
        """The method at work."""
        return self.make()

    @property
    def path(self) -> Path:
        """File that caches its training."""
        return cache_folder("training") / f"{self.about['method']}-{content_key(dict(self.about))}.safetensors"

    def train(self, advance: Callable[[int], Any] = lambda _: None) -> Trainer:
        """Train to the end, from the state that an earlier start left."""
        carry_on(self.trainer, self.path, self.about, advance)
        return self.trainer

    def save(self, path: Path) -> None:
        """Save everything that was trained."""
        save_training(self.trainer, path, self.about)

    def release(self) -> None:
        """Free its matrices."""
        vars(self).pop("trainer", None)


ONE_DEVICE = "expected a model on one device for {}, got one over several: give one ⟨device⟩, such as cuda:0"


def ready(name: str, rows: FactRows, others: Sequence[Fact], settings: TrainingConfig) -> Ready:
    """Prepare a method for facts."""
    model = rows.model
    if len(model.devices) > 1:
        raise InputError(ONE_DEVICE.format(name))
    if name == WISE:
        settings.wise.place.module(model)
        unrelated = unrelated_rows(model, len(rows), others)
        decisive = [list(map(_ids, group)) for group in (*rows.answered_contexts, *rows.contexts)]
        about = _about(name, model, settings.wise, [decisive, list(map(_ids, unrelated))])
        return Ready(partial(Wise, rows, unrelated, settings.wise), about, len(rows), settings.wise)
    rledit = settings.rledit
    rledit.modules(model)
    examples = training_examples(model, others, rledit.seed, rledit.num_seq * rledit.n_edits)
    content = [[_ids(example.edit), _ids(example.other), _ids(example.unrelated)] for example in examples]
    about = _about(name, model, replace(rledit, edited_at_once=1), content)  # which no training depends on
    return Ready(
        partial(RLEdit, model, examples, rows.answered, rledit), about, rledit.n_epochs * len(examples), rledit
    )


def _about(name: str, model: LanguageModel, settings: WiseConfig | RLEditConfig, content: Any) -> dict[str, str]:
    """Everything that determines a training; its names and values are stored."""
    return {
        "method": name,
        "model": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "torch": torch.__version__,
        "settings": settings.stored(),
        "rows": content_key(content),
    }


def _ids(row: Prompt) -> list[Any]:
    return [list(row.ids), list(row.answer)]
