"""Saved edits on a model that is loaded, within a ``with``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from jacobian_lab.editing.adapters import CONFIG
from jacobian_lab.editing.deltas import Deltas, add_delta, load_delta
from jacobian_lab.errors import InputError
from jacobian_lab.model.edited import check_unedited, sole_edit
from jacobian_lab.model.language_model import LanguageModel, matrix
from jacobian_lab.training.wise_memory import load_wise, memory_metadata


@contextmanager
def apply(model: LanguageModel, path: str | Path) -> Iterator[LanguageModel]:
    """Put a saved edit of any kind on its base model; on leaving, the weights are back bit for bit.

    Args:
        model: The model.
        path: What `Editor.edit` or ``jacobian-lab edit`` saved: the file of a delta or of WISE's memory, or the folder
            of an adapter.

    Yields:
        The model, edited.

    Raises:
        InputError: If the model is edited already, or the file is not a whole edit of this model.

    Examples:
        >>> import jacobian_lab as jl
        >>> model = jl.load_model()
        >>> try:
        ...     with jl.apply(model, "nothing.safetensors"):
        ...         pass
        ... except jl.InputError as error:
        ...     print(str(error)[:46])
        expected a whole delta, got nothing.safetensor
    """
    check_unedited(model, "put an edit on")
    if Path(path).is_dir() and not (Path(path) / CONFIG).is_file():
        raise InputError(
            f"expected the file of a saved edit, got the folder {path}: load a whole model with load_model"
        )
    if memory_metadata(path) is not None:
        with load_wise(path, model).serving(model):
            yield model
        return
    deltas = load_delta(path, model)
    with sole_edit(model), _restored(model, deltas):
        add_delta(model, deltas)
        yield model


@contextmanager
def _restored(model: LanguageModel, deltas: Deltas) -> Iterator[None]:
    """Put the weights that deltas change back on leaving."""
    weights = [
        model.weight(place) if isinstance(place, int) else matrix(model.hf.get_submodule(place)) for place in deltas
    ]
    before = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
