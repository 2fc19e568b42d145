"""The methods that train by name: each made ready for some facts, and where its training is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from jacobian_lab.caching import cache_folder, content_key
from jacobian_lab.editing.methods import TRAINED
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.lessons import lessons, unrelated_rows
from jacobian_lab.training.rledit import RLEdit
from jacobian_lab.training.settings import RLEditConfig, TrainingConfig, WiseConfig
from jacobian_lab.training.trainers import Trainer, carry_on, save_training
from jacobian_lab.training.wise import Wise

WISE, RLEDIT = TRAINED


@dataclass(frozen=True, eq=False)
class Ready:
    """A method that trains, ready for some facts; it is made when it is first asked for, which takes memory.

    Attributes:
        make: Makes the method.
        about: What decides its training: the method, the model, and digests of settings and rows.
        facts: How many facts its training tells of.
        settings: How it trains.
    """

    make: Callable[[], Trainer]
    about: Mapping[str, str]
    facts: int
    settings: WiseConfig | RLEditConfig

    @property
    def decided_by(self) -> dict[str, Any]:
        """What decides its edit: what decides its training, and how many facts it edits at once."""
        at_once = self.settings.edited_at_once if isinstance(self.settings, RLEditConfig) else 1
        return {**self.about, "edited_at_once": at_once}

    @cached_property
    def trainer(self) -> Trainer:
        """The method at work."""
        return self.make()

    @property
    def path(self) -> Path:
        """Where its training is kept."""
        return cache_folder("training") / f"{self.about['method']}-{content_key(dict(self.about))}.safetensors"

    def train(self, advance: Callable[[int], Any] = lambda _: None) -> Trainer:
        """Train to the end, from what is there of an earlier start."""
        carry_on(self.trainer, self.path, self.about, advance)
        return self.trainer

    def save(self, path: Path) -> None:
        """Put away all that was trained."""
        save_training(self.trainer, path, self.about)

    def release(self) -> None:
        """Keep no matrices any more."""
        vars(self).pop("trainer", None)


ONE_DEVICE = "expected a model on one device for {}, got one over several: give one ⟨device⟩, such as cuda:0"


def ready(name: str, rows: FactRows, others: Sequence[Fact], settings: TrainingConfig) -> Ready:
    """Make a method ready for some facts."""
    model = rows.model
    if len(model.devices) > 1:
        raise InputError(ONE_DEVICE.format(name))
    if name == WISE:
        settings.wise.place.module(model)
        unrelated = unrelated_rows(model, len(rows), others)
        decisive = [list(map(_ids, each)) for each in (*rows.answered_contexts, *rows.contexts)]
        about = _about(name, model, settings.wise, [decisive, list(map(_ids, unrelated))])
        return Ready(partial(Wise, rows, unrelated, settings.wise), about, len(rows), settings.wise)
    chosen = settings.rledit
    chosen.modules(model)
    taught = lessons(model, others, chosen.seed, chosen.num_seq * chosen.n_edits)
    told = [[_ids(each.edit), _ids(each.other), _ids(each.unrelated)] for each in taught]
    about = _about(name, model, replace(chosen, edited_at_once=1), told)  # which no training depends on
    return Ready(partial(RLEdit, model, taught, rows.answered, chosen), about, chosen.n_epochs * len(taught), chosen)


def _about(name: str, model: LanguageModel, settings: WiseConfig | RLEditConfig, content: Any) -> dict[str, str]:
    """All that decides a training."""
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
