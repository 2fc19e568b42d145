"""Saved edits: a delta that goes on its own base model and on no other, or a whole model for transformers."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.caching import written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.language_model import LanguageModel

FORMAT = "jacobian_lab delta 1"
DELTA, FOLDER = "delta-{}.safetensors", "model-{}"
"""What a run calls a method's saved edit."""
_NAME = "layer.{}"

Deltas = Mapping[int, Float[Tensor, "d_model d_mlp"]]
"""ΔW by layer."""


def save_delta(path: Path, model: LanguageModel, deltas: Deltas, config: Mapping[str, Any]) -> None:
    """Write a delta.

    Args:
        path: The file.
        model: The base model; its fingerprint, taken when it was loaded, goes into the file.
        deltas: ΔW by layer; written in float32.
        config: Everything that decided it, as JSON can hold it.
    """
    tensors = {_NAME.format(layer): delta.float().cpu().contiguous() for layer, delta in deltas.items()}
    metadata = {
        "format": FORMAT,
        "model": model.fingerprint,
        "name": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": json.dumps(config, ensure_ascii=False),
    }
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """What a delta says of itself.

    Args:
        path: The file.

    Returns:
        ``model`` (the base model's fingerprint), ``name``, ``dtype`` and ``config``.

    Raises:
        InputError: If it is not a whole delta.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(_not_whole(path, error)) from error
    if metadata.get("format") != FORMAT or not {"model", "name", "dtype"} <= metadata.keys():
        raise InputError(f"expected a delta that jacobian-lab edit saved, got another file, {path}: give its path")
    return dict(metadata)


def read_delta(path: Path, model: LanguageModel) -> dict[int, Float[Tensor, "d_model d_mlp"]]:
    """Read a delta for its base model.

    Args:
        path: The file.
        model: The model that it is to go on.

    Returns:
        ΔW by layer, in float32.

    Raises:
        InputError: If it is not whole, was made for another model, or has other shapes.
    """
    metadata = read_metadata(path)
    if metadata["model"] != model.fingerprint:
        raise InputError(
            f"expected a delta for {model.name} ({model.fingerprint[:12]}), got one for {metadata['name']} "
            f"({metadata['model'][:12]}) in {path}: apply it to its own base model"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except (OSError, SafetensorError) as error:
        raise InputError(_not_whole(path, error)) from error
    names = {_NAME.format(layer): layer for layer in range(model.n_layers)}
    shape = (model.d_model, model.d_mlp)
    if not tensors:
        raise InputError(f"expected changes of layers, got none in {path}: give another delta")
    for name, tensor in tensors.items():
        if name not in names:
            raise InputError(
                f"expected changes of layers 0 to {model.n_layers - 1}, got {name!r} in {path}: give another"
            )
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise InputError(
                f"expected {shape} in float32 as {name}, got {tuple(tensor.shape)} in "
                f"{str(tensor.dtype).removeprefix('torch.')} in {path}: give another delta"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"expected finite numbers as {name}, got NaN or infinity in {path}: give another delta")
    return {names[name]: tensor for name, tensor in tensors.items()}


@torch.no_grad()
def add_delta(model: LanguageModel, deltas: Deltas) -> None:
    """Put a delta on a model; the weights stay changed.

    Args:
        model: The base model.
        deltas: ΔW by layer.
    """
    for layer, delta in deltas.items():
        weight = model.weight(layer)
        weight.copy_((weight.double() + delta.to(weight.device).double()).to(weight.dtype))


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


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write a model as a folder that transformers loads, whole or not at all.

    Args:
        model: The model as it is now.
        folder: The folder; what it held is replaced.

    Raises:
        InputError: If it cannot be given its name, as a mount point cannot.
    """
    folder = folder.resolve()
    with written_whole(folder) as partial:
        model.hf.save_pretrained(partial)
        model.tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
    if not (folder / "config.json").is_file():
        raise InputError(f"expected a folder that can be replaced, got {folder}: give one inside it")


def _not_whole(path: Path, error: Exception) -> str:
    return f"expected a whole delta, got {path} ({str(error).strip().splitlines()[0]:.120}): make it again"
