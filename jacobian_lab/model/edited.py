"""Models that can be edited, and models that are edited now, so that no edit is made on top of another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn

from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel

_EDITED: WeakSet[nn.Module] = WeakSet()


@contextmanager
def sole_edit(model: LanguageModel) -> Iterator[None]:
    """Say that a model is edited within, once."""
    check_unedited(model, "edit")
    _EDITED.add(model.hf)
    try:
        yield
    finally:
        _EDITED.discard(model.hf)


def check_unedited(model: LanguageModel, what: str) -> None:
    """Refuse what is to be done with the model as it was loaded, while it is edited."""
    if model.hf in _EDITED:
        raise InputError(f"expected the unedited model to {what}, got {model.name!r} edited: leave that with first")


def check_editable(model: LanguageModel) -> None:
    """Refuse a model whose architecture nothing edits, before anything is computed for it."""
    if reason := model.family.uneditable:
        raise InputError(
            f"expected a model whose MLPs have one output projection that adds to the residual stream, got "
            f"{model.name!r}, a {model.hf.config.model_type}, {reason}: choose another, or only look at this one "
            "(check, jacobians, locate)"
        )
