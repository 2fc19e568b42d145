"""Hooks: capture or replace hidden states and MLP keys while the model runs as it is."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobian_lab.model.language_model import LanguageModel, block_output, cache_name
from jacobian_lab.model.tokens import Prompt, pad, passing

TOKENS_PER_BATCH = 4096
"""Padded tokens that one forward pass takes at the most."""


class _StopError(Exception):
    """Raised by a hook to end a forward pass that has served its purpose."""


@dataclass
class Captured:
    """Record of hooks, by layer.

    Attributes:
        hidden: Block outputs, ``[row, token, d_model]``.
        keys: Inputs of the MLP output projections, ``[row, token, d_mlp]``.
        writes: Outputs u of the MLP output projections, ``[row, token, d_model]``.
    """

    hidden: dict[int, Float[Tensor, "row token d_model"]] = field(default_factory=dict)
    keys: dict[int, Float[Tensor, "row token d_mlp"]] = field(default_factory=dict)
    writes: dict[int, Float[Tensor, "row token d_model"]] = field(default_factory=dict)


@contextmanager
def capture(
    model: LanguageModel, hidden: Sequence[int] = (), keys: Sequence[int] = (), writes: Sequence[int] = ()
) -> Iterator[Captured]:
    """Record block outputs, keys, and outputs of the MLP projections, of every forward pass within.

    Args:
        model: The model.
        hidden: Layers whose output to record.
        keys: Layers whose key to record.
        writes: Layers whose projection's output to record.

    Yields:
        The record, overwritten by every pass; its tensors are copies.
    """
    record = Captured()
    with ExitStack() as stack:
        for layer in hidden:
            stack.callback(model.blocks[layer].register_forward_hook(partial(_keep_output, record, layer)).remove)
        for layer in keys:
            keep = partial(_keep_input, record, layer, model.device)
            stack.callback(model.projection(layer).register_forward_pre_hook(keep).remove)
        for layer in writes:
            keep = partial(_keep_write, record, layer, model.device)
            stack.callback(model.projection(layer).register_forward_hook(keep).remove)
        yield record


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """List the outputs of a module's calls within, with their gradients.

    Args:
        module: The module; it returns a tensor.

    Yields:
        The list, which every call makes longer; copies, since some blocks add to an output in place.
    """
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.clone()))
    try:
        yield outputs
    finally:
        handle.remove()


def _keep_output(record: Captured, layer: int, _module: Any, _inputs: Any, output: Any) -> None:
    record.hidden[layer] = block_output(output).detach().clone()


def _keep_input(record: Captured, layer: int, home: torch.device, _module: Any, inputs: tuple[Tensor, ...]) -> None:
    record.keys[layer] = inputs[0].detach().to(home, copy=True)


def _keep_write(record: Captured, layer: int, home: torch.device, _module: Any, _inputs: Any, output: Tensor) -> None:
    record.writes[layer] = output.detach().to(home, copy=True)


def halt(*_: Any) -> None:
    """End the pass of `forward` that calls this hook."""
    raise _StopError


def forward(
    model: LanguageModel,
    rows: Sequence[Prompt],
    stop: int | None = None,
    cache: Any = None,
) -> Tensor | None:
    """Run rows through the model as it is, without its head.

    Args:
        model: The model.
        rows: The rows; padded on the right.
        stop: Block after which to stop; the last by default.
        cache: A transformers cache to be filled.

    Returns:
        The last block's output after the final norm, ``[row, token, d_model]``; `None` if stopped before.
    """
    ids = pad(rows).to(model.device)

    handle = None if stop is None else model.blocks[stop].register_forward_hook(halt)
    try:
        ones = torch.ones_like(ids)  # every position counts: rows are padded on the right
        caching = {cache_name(model.trunk): cache, "use_cache": cache is not None}
        with passing([row.prompt_length for row in rows]):
            output = model.trunk(input_ids=ids, attention_mask=ones, **caching)
        return output.last_hidden_state
    except _StopError:
        return None
    finally:
        if handle is not None:
            handle.remove()


def batches(rows: Sequence[Prompt], tokens: int = TOKENS_PER_BATCH) -> list[list[int]]:
    """Group rows of similar length.

    Args:
        rows: The rows.
        tokens: Padded tokens in a group at the most; a longer row stands alone.

    Returns:
        Indices of each group's rows; every index once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        width = len(rows[index].ids)
        if groups and (len(groups[-1]) + 1) * width <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.no_grad()
def decisive_states(
    model: LanguageModel, rows: Sequence[Prompt], layers: Sequence[int], *, cut: bool = True
) -> Float[Tensor, "row layer d_model"]:
    """Hidden states of the decisive tokens.

    Args:
        model: The model.
        rows: The rows.
        layers: Layers whose block output to read.
        cut: Whether what follows the decisive token is not run: it matters to a router alone.

    Returns:
        In the order of `rows` and `layers`, in the model's dtype.
    """
    return _captured_at_decisive(model, [row.cut() for row in rows] if cut else rows, layers, "hidden")


@torch.no_grad()
def decisive_writes(
    model: LanguageModel, rows: Sequence[Prompt], layers: Sequence[int]
) -> Float[Tensor, "row layer d_model"]:
    """Outputs u of the MLP projections at the decisive tokens.

    Args:
        model: The model.
        rows: The rows.
        layers: Layers whose projection to read.

    Returns:
        In the order of `rows` and `layers`, in the model's dtype.
    """
    return _captured_at_decisive(model, [row.cut() for row in rows], layers, "writes")


def _captured_at_decisive(
    model: LanguageModel, rows: Sequence[Prompt], layers: Sequence[int], site: Literal["hidden", "writes"]
) -> Float[Tensor, "row layer d_model"]:
    """One of the records of `capture` at the decisive token of each row."""
    values = torch.empty(len(rows), len(layers), model.d_model, dtype=model.dtype, device=model.device)
    for group in batches(rows):
        group_rows = [rows[i] for i in group]
        with capture(model, **{site: layers}) as record:
            forward(model, group_rows, stop=max(layers))
        for index, layer in enumerate(layers):
            values[group, index] = at_decisive(getattr(record, site)[layer], group_rows)
    return values


def at_decisive(values: Float[Tensor, "*token width"], rows: Sequence[Prompt]) -> Float[Tensor, "row width"]:
    """Values at the decisive token of each row."""
    positions = torch.tensor([row.decisive for row in rows], device=values.device)
    values = values.view(len(rows), -1, values.shape[-1])  # OPT's MLPs take all tokens of all rows one after another
    return values[torch.arange(len(rows), device=values.device), positions]
