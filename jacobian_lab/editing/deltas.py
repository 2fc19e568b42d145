"""Saved edits: a delta or an adapter, which goes on its own base model and on no other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from jacobian_lab.caching import written_whole
from jacobian_lab.editing import adapters
from jacobian_lab.editing.folders import check_finite, replaced_folder, save_model
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import listing
from jacobian_lab.model.chat import Chat, stored_chat
from jacobian_lab.model.families import KNOWN
from jacobian_lab.model.language_model import LanguageModel, matrix
from jacobian_lab.progress import note

FORMAT = "jacobian_lab delta 1"
DELTA_SUFFIX = ".safetensors"
DELTA, FOLDER, ADAPTER = "delta-{}" + DELTA_SUFFIX, "model-{}", "adapter-{}"
"""What a run calls a method's saved edit."""
_NAME, _MODULE = "layer.{}", "module.{}"

Deltas = Mapping[int, Float[Tensor, "out in"]] | Mapping[int | str, Float[Tensor, "out in"]]
"""ΔW of MLPs: of their output projections by layer, of the maps at their entrance by module."""


Form = Literal["delta", "folder", "lora"]
"""Forms of a saved edit."""


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
        check_finite(tensor, f"the change of {name.replace('.', ' ', 1)}")
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, **_about(model, config)})


def save_adapter(
    folder: Path,
    model: LanguageModel,
    deltas: Deltas,
    config: Mapping[str, Any],
    residuals: Mapping[int, Float[Tensor, "d_model fact"]] = MappingProxyType({}),
) -> None:
    """Write an adapter that PEFT loads onto the base model, whole or not at all.

    Args:
        folder: The folder; an adapter that it held is replaced.
        model: The base model.
        deltas: ΔW; the factors are written in `delta_dtype`.
        config: Everything that decided it, as JSON can hold it.
        residuals: R of each layer (`adapters.low_rank`), where a rule's ΔW is known to lie in its span.

    Raises:
        InputError: If it is not finite, or of so high a rank that the adapter would be no smaller than the weights.
    """
    factors = {}
    for place, delta in deltas.items():
        name, (rows, columns) = _module_name(model, place), delta.shape
        check_finite(delta, f"the change of {name}")
        factors[name] = adapters.low_rank(delta, residuals.get(place) if isinstance(place, int) else None)
        adapters.check_rank(factors[name].rank, (rows, columns), name)
    if cut := [name for name, parts in factors.items() if not parts.exact]:
        note(
            f"the adapter's factors come from an SVD at {listing(cut)}: ΔW leaves the span of the residuals there, and "
            f"singular values that are rounding in float32 are cut off (rank {max(factors[name].rank for name in cut)})"
        )
    entry = KNOWN.get(model.name.lower())
    with replaced_folder(folder, "an adapter") as partial:
        adapters.write_adapter(
            partial,
            factors,
            delta_dtype(model),
            base=entry.hub or model.name if entry else model.name,
            transposed=any(isinstance(model.hf.get_submodule(name), Conv1D) for name in factors),
            metadata=_about(model, config),
        )


def save_edit(
    form: Form,
    path: Path,
    model: LanguageModel,
    deltas: Deltas,
    config: Mapping[str, Any],
    residuals: Mapping[int, Float[Tensor, "d_model fact"]] = MappingProxyType({}),
) -> None:
    """Write an edit, while the model is edited.

    Args:
        form: A delta, the whole model, or an adapter.
        path: The file of a delta, else a folder.
        model: The model.
        deltas: ΔW.
        config: Everything that decided it, as JSON can hold it.
        residuals: As `save_adapter` takes them.

    Raises:
        InputError: If it is not finite, or cannot be saved in this form.
    """
    if form == "delta":
        save_delta(path, model, deltas, config)
    elif form == "lora":
        save_adapter(path, model, deltas, config, residuals)
    else:
        save_model(model, path)


def _about(model: LanguageModel, config: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a saved edit beside its format."""
    return {
        "model": model.fingerprint,
        "name": model.name,
        "dtype": _name(model.dtype),
        "config": json.dumps(config, ensure_ascii=False),
    }


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
        with safe_open(adapters.file_of(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(_not_whole(path, error)) from error
    if (
        not (metadata.get("format") == FORMAT or _is_adapter(metadata))
        or not {"model", "name", "dtype"} <= metadata.keys()
    ):
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
    """Read a delta, or an adapter, for its base model.

    Args:
        path: The file of a delta, or an adapter's folder.
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
    _, tensors = read_saved(adapters.file_of(path), "delta")
    layers, modules = range(model.n_layers), {module: name for name, module in model.hf.named_modules()}
    entrances = [modules[module] for layer in layers for module in model.inner(layer)]
    places: dict[str, int | str] = {_name_of(place): place for place in (*layers, *entrances)}
    if _is_adapter(metadata):
        by_module = {_module_name(model, place): name for name, place in places.items()}
        tensors = {by_module.get(name, name): delta for name, delta in adapters.changes(tensors, path).items()}
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


def _module_name(model: LanguageModel, place: int | str) -> str:
    return model.projection_name(place) if isinstance(place, int) else place


def _is_adapter(metadata: Mapping[str, str]) -> bool:
    return metadata.get("jacobian_lab") == adapters.FORMAT


def _name_of(place: int | str) -> str:
    return (_NAME if isinstance(place, int) else _MODULE).format(place)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_whole(path: Path | str, error: Exception, what: str = "delta") -> str:
    return f"expected a whole {what}, got {path} ({str(error).strip().splitlines()[0]:.120}): make it again"
