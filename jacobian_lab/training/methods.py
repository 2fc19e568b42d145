"""The methods that train by name: each made ready for some facts, and where its training is kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jacobian_lab.caching import cache_folder, content_key
from jacobian_lab.editing.methods import TRAINED
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.lessons import lessons, unrelated_rows
from jacobian_lab.training.rledit import RLEdit
from jacobian_lab.training.settings import TrainingSettings
from jacobian_lab.training.trainers import Trainer
from jacobian_lab.training.wise import Wise

WISE, RLEDIT = TRAINED


@dataclass(frozen=True, eq=False)
class Ready:
    """A method that trains, ready for some facts.

    Attributes:
        trainer: The method at work.
        path: Where its state is kept, under the content of all that decides it.
        facts: How many facts its training tells of.
    """

    trainer: Trainer
    path: Path
    facts: int


def ready(name: str, rows: FactRows, others: Sequence[Fact], settings: TrainingSettings) -> Ready:
    """Make a method ready for some facts.

    Args:
        name: One of `TRAINED`.
        rows: The facts that it edits.
        others: Facts that are strangers to them.
        settings: How it trains.

    Returns:
        The method; what was trained under the same content goes on from there.

    Raises:
        InputError: If the others do not do, or the model has no such matrices.
    """
    model = rows.model
    if name == WISE:
        unrelated = unrelated_rows(model, len(rows), others)
        decisive = [list(map(_ids, each)) for each in (*rows.answered_contexts, *rows.contexts)]
        wise = Wise(rows, unrelated, settings.wise)
        return Ready(wise, _kept(name, rows, settings.wise, [decisive, list(map(_ids, unrelated))]), len(rows))
    taught = lessons(model, others, settings.rledit.seed)
    taught = taught[: settings.rledit.batches * settings.rledit.facts_at_once]
    rledit = RLEdit(model, taught, rows.answered, settings.rledit)
    told = [[_ids(each.edit), _ids(each.other), _ids(each.unrelated)] for each in taught]
    return Ready(rledit, _kept(name, rows, settings.rledit, told), settings.rledit.epochs * len(taught))


def _kept(name: str, rows: FactRows, settings: Any, content: Any) -> Path:
    """Under a name that says all that decides the training."""
    model = rows.model
    key = content_key([name, 1, model.fingerprint, str(model.dtype), asdict(settings), content])
    return cache_folder("training") / f"{name}-{key}.safetensors"


def _ids(row: Prompt) -> list[Any]:
    return [list(row.ids), list(row.answer)]
