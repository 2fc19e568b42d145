"""Saved edits: a delta that goes on its own base model and on no other, or a whole model for transformers."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from jacobian_lab.caching import written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.model.chat import Chat, stored_chat
from jacobian_lab.model.language_model import LanguageModel, matrix
from jacobian_lab.progress import note

FORMAT = "jacobian_lab delta 1"
DELTA_SUFFIX = ".safetensors"
DELTA, FOLDER = "delta-{}" + DELTA_SUFFIX, "model-{}"
"""What a run calls a method's saved edit."""
_NAME, _MODULE = "layer.{}", "module.{}"

Deltas = Mapping[int, Float[Tensor, "out in"]] | Mapping[int | str, Float[Tensor, "out in"]]
"""ΔW of MLPs: of their output projections by layer, of the maps at their entrance by module."""


def delta_dtype(model: LanguageModel) -> torch.dtype:
    """Dtype of a model's saved deltas.

    Args:
        model: The base model.

    Returns:
        float32, or float64 for a model in float64.
    """
    return torch.promote_types(model.dtype, torch.float32)


def save_delta(path: Path, model: LanguageModel, deltas: Deltas, config: Mapping[str, Any]) -> None:
    """Write a delta.

    Args:
        path: The file.
        model: The base model; its fingerprint, taken when it was loaded, goes into the file.
        deltas: ΔW; written in `delta_dtype`.
        config: Everything that decided it, as JSON can hold it.

    Raises:
        InputError: If it is not finite.
    """
    tensors = {_name_of(place): delta.to(delta_dtype(model)).cpu().contiguous() for place, delta in deltas.items()}
    for name, tensor in tensors.items():
        _check_finite(tensor, f"the change of {name.replace('.', ' ', 1)}")
    metadata = {
        "format": FORMAT,
        "model": model.fingerprint,
        "name": model.name,
        "dtype": _name(model.dtype),
        "config": json.dumps(config, ensure_ascii=False),
    }
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def read_metadata(path: Path | str) -> dict[str, str]:
    """Metadata of a saved delta.

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


def read_saved(path: Path | str, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """All of a file that an edit has left.

    Args:
        path: The file.
        what: What it is to be, for the message.

    Returns:
        What it says of itself, and its tensors.

    Raises:
        InputError: If it is not whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # it is no dictionary
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(_not_whole(path, error, what)) from error


def chat_in(metadata: Mapping[str, str], path: Path | str) -> Chat | None:
    """The chat template that an edit's prompts were put into.

    Args:
        metadata: What the saved edit says of itself.
        path: Its file, for the message.

    Returns:
        How it was filled in; `None` if prompts stood as they are.
    """
    return stored_chat(json.loads(metadata.get("config", "{}")), path)


def note_other_chat(metadata: Mapping[str, str], model: LanguageModel, path: Path | str) -> None:
    """Say so where an edit was made with other prompts than a model now asks.

    Args:
        metadata: What the saved edit says of itself.
        model: The model that it is to go on.
        path: Its file.
    """
    chat = chat_in(metadata, path)
    if chat != model.chat:
        saved, now = ("no chat template" if one is None else one for one in (chat, model.chat))
        note(
            f"{path} was made with {saved}, {model.name} is asked with {now}: "
            "replace(model, chat=training.saved.saved_chat(path)) asks as the edit was made"
        )


def load_delta(path: Path | str, model: LanguageModel) -> dict[int | str, Float[Tensor, "out in"]]:
    """Read a delta for its base model.

    Args:
        path: The file.
        model: The model that it is to go on.

    Returns:
        ΔW of output projections by layer and of other maps by module, in `delta_dtype`.

    Raises:
        InputError: If it is not whole, was made for another model, or has other shapes.

    Examples:
        >>> import jacobian_lab as jl
        >>> model = jl.load_model()
        >>> try:
        ...     jl.load_delta("nothing.safetensors", model)
        ... except jl.InputError as error:
        ...     print(str(error)[:46])
        expected a whole delta, got nothing.safetensor
    """
    metadata = read_metadata(path)
    if metadata["model"] != model.fingerprint:
        raise InputError(
            f"expected a delta for {model.name} ({model.fingerprint[:12]}), got one for {metadata['name']} "
            f"({metadata['model'][:12]}) in {path}: apply it to its own base model, in one command with all other "
            "deltas that are to go on it"
        )
    note_other_chat(metadata, model, path)
    _, tensors = read_saved(path, "delta")
    layers, modules = range(model.n_layers), {module: name for name, module in model.hf.named_modules()}
    entrances = [modules[module] for layer in layers for module in model.inner(layer)]
    places: dict[str, int | str] = {_name_of(place): place for place in (*layers, *entrances)}
    dtype = delta_dtype(model)
    if not tensors:
        raise InputError(f"expected changes of layers, got none in {path}: give another delta")
    for name, tensor in tensors.items():
        if name not in places:
            raise InputError(
                f"expected changes of layers 0 to {model.n_layers - 1}, or of maps at their MLPs' entrance, got "
                f"{name!r} in {path}: give another"
            )
        shape = tuple(_weight(model, places[name]).shape)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise InputError(
                f"expected {shape} in {_name(dtype)} as {name}, got {tuple(tensor.shape)} in "
                f"{_name(tensor.dtype)} in {path}: give another delta"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"expected finite numbers as {name}, got NaN or infinity in {path}: give another delta")
    return {places[name]: tensor for name, tensor in tensors.items()}


def common_dtype(paths: Sequence[Path]) -> str:
    """Dtype to load a model in for some deltas to be added up on it.

    Args:
        paths: The files.

    Returns:
        The dtype of the model that all of them were made with.

    Raises:
        InputError: If there is none, one is named twice, one is not a whole delta, or their dtypes differ.
    """
    if len({path.resolve() for path in paths}) != len(paths) or not paths:
        raise InputError(f"expected deltas that differ, got {', '.join(map(str, paths)) or 'none'}: name each once")
    dtypes = [read_metadata(path)["dtype"] for path in paths]
    if len(set(dtypes)) > 1:
        raise InputError(f"expected deltas of one dtype, got {', '.join(dtypes)}: make them with the same ⟨dtype⟩")
    return dtypes[0]


def summed(deltas: Sequence[Deltas]) -> dict[int | str, Float[Tensor, "out in"]]:
    """Add up deltas of the same base model.

    Args:
        deltas: ΔW of each.

    Returns:
        ΔW, in float64.
    """
    total: dict[int | str, Tensor] = {}
    for delta in deltas:
        for place, change in delta.items():
            total[place] = total[place] + change.double() if place in total else change.double()
    return total


@torch.no_grad()
def add_delta(model: LanguageModel, deltas: Deltas) -> None:
    """Put a delta on a model; the weights stay changed.

    Args:
        model: The base model.
        deltas: ΔW.
    """
    for place, delta in deltas.items():
        weight = _weight(model, place)
        weight.copy_((weight.double() + delta.to(weight.device).double()).to(weight.dtype))


def _weight(model: LanguageModel, place: int | str) -> Float[Tensor, "out in"]:
    return model.weight(place) if isinstance(place, int) else matrix(model.hf.get_submodule(place))


def _name_of(place: int | str) -> str:
    return (_NAME if isinstance(place, int) else _MODULE).format(place)


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
        folder: The folder; a model that it held is replaced.

    Raises:
        InputError: If a weight is not finite, the folder holds something beside a model, or it cannot be given its
            name, as a mount point cannot.
    """
    for name, weight in model.hf.named_parameters():
        _check_finite(weight, name)
    folder = folder.resolve()
    with written_whole(folder) as partial:
        _save_weights(model.hf, partial)
        model.tokenizer.save_pretrained(partial)
        if foreign := _names(folder) - _names(partial):
            raise InputError(
                f"expected a folder with a model alone, which can be replaced, got {folder}, which holds "
                f"{min(foreign)!r}: move that elsewhere"
            )
        shutil.rmtree(folder, ignore_errors=True)
    if not (folder / "config.json").is_file():
        raise InputError(f"expected a folder that can be replaced, got {folder}: give one inside it")


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


def _check_finite(tensor: Tensor, name: str) -> None:
    if not torch.isfinite(tensor).all():
        kind = "NaN" if tensor.isnan().any() else "infinity"
        raise InputError(
            f"expected finite weights to save, got {kind} in {name}: lower ⟨anchor.clamp⟩, or raise ⟨ridge⟩"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_whole(path: Path | str, error: Exception, what: str = "delta") -> str:
    return f"expected a whole {what}, got {path} ({str(error).strip().splitlines()[0]:.120}): make it again"
