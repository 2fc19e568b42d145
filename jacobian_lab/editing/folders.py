"""Folders that an edit leaves: new ones, ones that are replaced as a whole, and whole models for transformers."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from jacobian_lab.caching import written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.model.hub import CARD
from jacobian_lab.model.language_model import LanguageModel


def check_new_folder(folder: Path) -> None:
    """Check that a folder can be made, or is empty.

    Args:
        folder: The folder.

    Raises:
        InputError: If it holds anything, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = next(folder.iterdir(), None)
    except OSError as error:
        raise InputError(
            f"expected a folder that can be made, got {folder} ({error.strerror}): choose another"
        ) from error
    if held is not None:
        raise InputError(f"expected a new or empty folder, got {folder}, which holds {held.name!r}: choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"expected a folder that can be written, got {folder}: choose another or change its rights")


@contextmanager
def replaced_folder(folder: Path, what: str) -> Iterator[Path]:
    """Give a path for a folder that takes another's place when all went well.

    Args:
        folder: The folder; what an earlier edit left in it goes.
        what: What it holds, for messages.

    Yields:
        The path.

    Raises:
        InputError: If the folder holds something else, or cannot be given its name, as a mount point cannot.
    """
    folder = folder.resolve()
    with written_whole(folder) as partial:
        yield partial
        names = _names(partial)
        if foreign := _names(folder) - names - {CARD}:  # which is written after the rest
            raise InputError(
                f"expected a folder with {what} alone, which can be replaced, got {folder}, which holds "
                f"{min(foreign)!r}: move that elsewhere"
            )
        shutil.rmtree(folder, ignore_errors=True)
    if not names <= _names(folder):
        raise InputError(f"expected a folder that can be replaced, got {folder}: give one inside it")


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write a model as a folder that transformers loads, whole or not at all.

    Args:
        model: The model as it is now.
        folder: The folder; a model that it held is replaced.

    Raises:
        InputError: If a weight is not finite.
    """
    for name, weight in model.hf.named_parameters():
        check_finite(weight, name)
    with replaced_folder(folder, "a model") as partial:
        _save_weights(model.hf, partial)
        model.tokenizer.save_pretrained(partial)


def check_finite(tensor: Tensor, name: str) -> None:
    """Check that a weight, or its change, can be saved.

    Args:
        tensor: The weight.
        name: Its name, for the message.

    Raises:
        InputError: If it is not finite.
    """
    if not torch.isfinite(tensor).all():
        kind = "NaN" if tensor.isnan().any() else "infinity"
        raise InputError(
            f"expected finite weights to save, got {kind} in {name}: lower ⟨anchor.clamp⟩, or raise ⟨ridge⟩"
        )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _save_weights(hf: Any, folder: Path) -> None:
    """Save a model with its generation settings as they were read, which transformers may take and yet not write."""
    own = hf.generation_config
    hf.generation_config = GenerationConfig()
    try:
        hf.save_pretrained(folder)
    finally:
        hf.generation_config = own
    own.to_json_file(folder / "generation_config.json")
