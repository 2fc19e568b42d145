"""WISE's side memory: side matrices of an MLP, and the router that chooses the one to serve a row."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.activations import ACT2FN

from jacobian_lab.caching import written_whole
from jacobian_lab.editing.deltas import note_other_chat, read_saved
from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import batches, forward
from jacobian_lab.model.edited import sole_edit
from jacobian_lab.model.language_model import LanguageModel, cache_name, matrix
from jacobian_lab.model.tokens import PASSING, Prompt

FORMAT = "jacobian_lab memory 1"
ORIGINAL = -1
"""Route to the model's own matrix."""


@dataclass(frozen=True)
class Place:
    """Main matrix that a memory stands beside.

    Attributes:
        block: Its block.
        entrance: True for the map at the MLP's entrance, if there is exactly one, instead of the output projection.
    """

    block: int
    entrance: bool = False

    def module(self, model: LanguageModel) -> nn.Module:
        """Module that holds the matrix."""
        if not 0 <= self.block < model.n_layers:
            raise InputError(
                f"expected ⟨wise.block⟩ of 0 to {model.n_layers - 1}, got {self.block}: choose one of them"
            )
        if not self.entrance:
            return model.projection(self.block)
        inner = model.inner(self.block)
        maps = sum(len(matrix(module)) for module in inner) // model.d_mlp  # a fused module is several
        if maps > 1:
            raise InputError(
                f"expected an MLP with one map at its entrance, got {maps} in {model.name}: give "
                "⟨wise.entrance⟩ false, for its output projection"
            )
        return inner[0]


@dataclass(frozen=True, eq=False)
class Side:
    """Side matrix of a memory.

    Attributes:
        weight: W', in the place of the model's own.
        threshold: Least distance at which it may serve a row.
    """

    weight: Float[Tensor, "out in"]
    threshold: float


@dataclass(frozen=True, eq=False)
class Memory:
    """Side matrices; one of them serves a row if the router finds it far enough from the model's own matrix.

    The router judges a row once, by its prompt, and the rest of the row goes the same way. So logits never depend on
    later tokens. In the published code they do: it judges prompt, answer and padding together.

    Attributes:
        place: The main matrix.
        sides: The side matrices; of two at the same distance the first serves.
    """

    place: Place
    sides: tuple[Side, ...]

    @contextmanager
    def serving(self, model: LanguageModel) -> Iterator[None]:
        """Serve every pass within."""
        activation, bare = activation_of(model), _BarePasses(model)

        def serve(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            passed = PASSING.get()
            routes = bare.routes if passed is None else passed.routes
            sided = [beside(module, inputs[0], side.weight) for side in self.sides]
            if self not in routes:
                counted = bare.counted(output) if passed is None else first_tokens(passed.prompts, output)
                routes[self] = self.route(torch.stack([distances(activation, output, o, counted) for o in sided]))
            for number, other in enumerate(sided):
                output = torch.where((routes[self] == number)[:, None, None], other, output)
            return output

        with sole_edit(model):
            handles = [
                model.trunk.register_forward_pre_hook(bare.begin, with_kwargs=True),
                self.place.module(model).register_forward_hook(serve),
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def route(self, apart: Float[Tensor, "side row"]) -> Int[Tensor, " row"]:
        """Route each row to the farthest of the sides whose distance reaches their threshold."""
        apart = apart.double()
        far = apart >= self._thresholds(apart)
        return torch.where(far.any(0), torch.where(far, apart, -torch.inf).argmax(0), ORIGINAL)

    def reach(self, apart: Float[Tensor, "row side"]) -> Float[Tensor, " row"]:
        """Routing ratio: largest distance over threshold; from 1 on a side serves."""
        if not self.sides:
            return apart.new_zeros(len(apart)).double()
        thresholds = self._thresholds(apart)[:, 0]
        return torch.where(thresholds > 0, apart.double() / thresholds, torch.inf).amax(1)

    def _thresholds(self, apart: Tensor) -> Float[Tensor, "side 1"]:
        thresholds = [side.threshold for side in self.sides]
        return torch.tensor(thresholds, dtype=torch.float64, device=apart.device)[:, None]

    @torch.no_grad()
    def judge(self, model: LanguageModel, rows: Sequence[Prompt]) -> Float[Tensor, "row side"]:
        """Distance of each side from the model's own matrix, on the prompts of rows."""
        activation, module = activation_of(model), self.place.module(model)
        apart = torch.empty(len(rows), len(self.sides), dtype=torch.float64)
        for group, entering, output, counted in prompt_passes(model, self.place, rows):
            for number, side in enumerate(self.sides):
                other = beside(module, entering, side.weight)
                apart[group, number] = distances(activation, output, other, counted).double().cpu()
        return apart


class _BarePasses:
    """Prompts of passes outside `passing`: a pass with an empty cache is the prompt.

    Tokens that follow with a filled cache, as in `generate`, go the way of their prompt.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.cache = cache_name(model.trunk)
        self.mask: Tensor | None = None
        self.routes: dict[Any, Any] = {}

    def begin(self, _module: Any, _args: Any, kwargs: Mapping[str, Any]) -> None:
        """Note the padding of a pass that begins a prompt."""
        cache = kwargs.get(self.cache)
        if cache is None or not cache.get_seq_length():
            mask = kwargs.get("attention_mask")
            self.mask, self.routes = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None, {}

    def counted(self, output: Float[Tensor, "row token out"]) -> Bool[Tensor, "row token"]:
        """True at tokens that are not padding."""
        if self.mask is None or self.mask.shape != output.shape[:2]:
            return torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
        return self.mask.bool().to(output.device)


_ACTIVATIONS = ("activation_function", "hidden_activation", "activation", "hidden_act")
"""Names of the activation function in configurations."""


def activation_of(model: LanguageModel) -> nn.Module:
    """Activation function of a model's MLPs."""
    config = model.hf.config
    return ACT2FN[next(getattr(config, name) for name in _ACTIVATIONS if getattr(config, name, None))]


def beside(
    module: nn.Module, entering: Float[Tensor, "row token in"], weight: Float[Tensor, "out in"]
) -> Float[Tensor, "row token out"]:
    """Output of a linear module with another matrix and its own bias."""
    bias: Any = module.bias
    return nn.functional.linear(entering, weight.to(entering.dtype), bias)


def first_tokens(lengths: Sequence[int], output: Float[Tensor, "row token out"]) -> Bool[Tensor, "row token"]:
    """True at the first tokens of each row, as many as its length."""
    positions = torch.arange(output.shape[1], device=output.device)
    return positions < torch.tensor(list(lengths), device=output.device)[:, None]


def distances(
    activation: nn.Module,
    own: Float[Tensor, "row token out"],
    other: Float[Tensor, "row token out"],
    counted: Bool[Tensor, "row token"],
) -> Float[Tensor, " row"]:
    """Distance of two matrices' outputs: ‖σ(Wa + b) − σ(W'a + b)‖, the mean over the tokens that count."""
    wide = torch.promote_types(own.dtype, torch.float32)
    apart = torch.linalg.vector_norm(activation(own).to(wide) - activation(other).to(wide), dim=-1)
    return (apart * counted).sum(1) / counted.sum(1)


def prompt_passes(
    model: LanguageModel, place: Place, rows: Sequence[Prompt]
) -> Iterator[tuple[list[int], Tensor, Tensor, Bool[Tensor, "row token"]]]:
    """Run the prompts of rows, and yield each batch: its rows, the module's input and output, the tokens that count."""
    prompts = [Prompt(row.ids[: row.prompt_length], row.prompt_length - 1) for row in rows]
    passes: list[tuple[Tensor, Tensor]] = []
    handle = place.module(model).register_forward_hook(  # before one that serves
        lambda _m, inputs, output: passes.append((inputs[0], output)), prepend=True
    )
    try:
        for group in batches(prompts):
            passes.clear()
            forward(model, [prompts[i] for i in group], stop=place.block)
            ((entering, output),) = passes
            yield group, entering, output, first_tokens([len(prompts[i].ids) for i in group], output)
    finally:
        handle.remove()


def save_memory(path: Path, model: LanguageModel, memory: Memory, config: Mapping[str, Any]) -> None:
    """Write a memory."""
    metadata = {
        "format": FORMAT,
        "model": model.fingerprint,
        "name": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "block": str(memory.place.block),
        "entrance": json.dumps(memory.place.entrance),
        "thresholds": json.dumps([side.threshold for side in memory.sides]),
        "config": json.dumps(config, ensure_ascii=False),
    }
    if not all(torch.isfinite(side.weight).all() for side in memory.sides):
        raise InputError("expected finite weights to save, got NaN or infinity in WISE's memory: lower ⟨wise.edit_lr⟩")
    tensors = {f"side.{n}": side.weight.cpu().contiguous() for n, side in enumerate(memory.sides)}
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def memory_metadata(path: Path | str) -> dict[str, str] | None:
    """Metadata of a saved memory; `None` for another file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return dict(metadata) if metadata.get("format") == FORMAT else None


def load_wise(path: Path | str, model: LanguageModel) -> Memory:
    """Read a memory for its base model; ``with memory.serving(model):`` is the model with it.

    Args:
        path: The file.
        model: The model that it is to stand beside.

    Returns:
        The memory, on the model's device.

    Raises:
        InputError: If it is not whole, was made for another model, or has other shapes.

    Examples:
        >>> import jacobian_lab as jl
        >>> model = jl.load_model()
        >>> try:
        ...     jl.load_wise("nothing.safetensors", model)
        ... except jl.InputError as error:
        ...     print(str(error)[:47])
        expected a whole memory, got nothing.safetensor
    """
    metadata, tensors = read_saved(path, "memory")
    if metadata.get("format") != FORMAT:
        raise InputError(f"expected a memory that jacobian-lab edit saved, got another file, {path}: give its path")
    if metadata["model"] != model.fingerprint:
        raise InputError(
            f"expected a memory for {model.name} ({model.fingerprint[:12]}), got one for {metadata['name']} "
            f"({metadata['model'][:12]}) in {path}: put it beside its own base model"
        )
    note_other_chat(metadata, model, path)
    place = Place(int(metadata["block"]), json.loads(metadata["entrance"]))
    own, thresholds = matrix(place.module(model)), json.loads(metadata["thresholds"])
    names = [f"side.{number}" for number in range(len(thresholds))]
    for name in names:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != own.shape or not torch.isfinite(tensor).all():
            raise InputError(f"expected {tuple(own.shape)} finite numbers as {name} in {path}: make it again")
    return Memory(place, tuple(Side(tensors[n].to(own.device), t) for n, t in zip(names, thresholds, strict=True)))
