"""Replay: F_{l→L} and on to the logits, everything before the decisive token frozen.

By causality the tokens before the decisive one never change when its hidden state does. Their keys
and values are computed once; after that only the tail is run, from the decisive token to the last
position whose output is asked for, and only through the blocks above the start. Rows that share
nothing run side by side: prefixes are padded and masked, tails are aligned at the decisive token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from jacobian_lab.maps.hooks import at_decisive, batches, capture, forward, outputs_of
from jacobian_lab.maps.tails import answers_of, gather
from jacobian_lab.maps.writes import moved
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt

Site = Literal["residual", "mlp"]
"""The residual stream behind a block, or what its MLP adds to it (methods.md §0), a norm behind the MLP included."""
RESIDUAL: Site = "residual"
MLP: Site = "mlp"
Shifts = Mapping[int, Float[Tensor, "row d_model"]]
"""By layer, the write shifts of the decisive tokens, as the replay passes (`jacobian_lab.maps.writes`): without a norm
behind the MLP they are added to the hidden states."""
NO_SHIFTS: Shifts = {}


@dataclass(frozen=True, eq=False)
class Frozen:
    """Rows made ready for replay.

    Attributes:
        model: The model that they were frozen with.
        prefix: For each block, keys and values of the tokens before the decisive one, ``[row, head,
            prefix, head_dim]``.
        tails: For each start layer, its block output over the tail, ``[row, tail, d_model]``.
        start: Position of the decisive token in each row.
        answer_at: Place in the tail of each output that predicts an answer token; 0 where there is none.
        answer: The answer tokens themselves, ``[row, answer]``; -1 where a row has fewer.
        writes: For each start layer the writes u of the decisive tokens, ``[row, d_model]``, where a norm follows them.
    """

    model: LanguageModel
    prefix: dict[int, tuple[Tensor, Tensor]]
    tails: dict[int, Float[Tensor, "row tail d_model"]]
    start: Int[Tensor, " row"]
    answer_at: Int[Tensor, "row answer"]
    answer: Int[Tensor, "row answer"]
    writes: dict[int, Float[Tensor, "row d_model"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def states(self, layer: int) -> Float[Tensor, "row d_model"]:
        """Unmodified hidden states of the decisive tokens.

        Args:
            layer: One of the start layers.

        Returns:
            The block output at the decisive token of each row.
        """
        return self.tails[layer][:, 0]

    def shifted(self, layer: int, shifts: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Hidden states of the decisive tokens with write shifts.

        Args:
            layer: One of the start layers.
            shifts: δ of each row; gradients flow through.

        Returns:
            The states.
        """
        return self.states(layer) + moved(self.model, layer, self.writes.get(layer), shifts)

    def select(self, rows: Int[Tensor, " row"]) -> "Frozen":
        """Some of the rows, in any order.

        Args:
            rows: Their indices; one may come more than once.

        Returns:
            These rows.
        """
        return replace(
            self,
            prefix={layer: _rows_of(cached, rows) for layer, cached in self.prefix.items()},
            tails={layer: tail[rows] for layer, tail in self.tails.items()},
            start=self.start[rows],
            answer_at=self.answer_at[rows],
            answer=self.answer[rows],
            writes={layer: writes[rows] for layer, writes in self.writes.items()},
        )


@torch.no_grad()
def freeze(model: LanguageModel, rows: Sequence[Prompt], starts: Sequence[int], last: int | None = None) -> Frozen:
    """Run rows once and keep what replay needs of them.

    Args:
        model: The model, as it is now: a later change of its weights is not seen.
        rows: The rows. Replay covers each from its decisive token to its end.
        starts: Layers that replay may start from.
        last: The highest block to be replayed; the last of the model by default.

    Returns:
        The frozen rows.

    Examples:
        >>> import jacobian_lab as jl
        >>> model, facts = jl.load_model(), jl.load_facts("builtin", "0:2")
        >>> frozen = jl.freeze(model, [model.fact_prompt(fact) for fact in facts], [4])
        >>> frozen.states(4).shape
        torch.Size([2, 576])
    """
    last = model.n_layers - 1 if last is None else last
    cache = DynamicCache()
    with capture(model, hidden=starts, writes=starts if model.family.output_norm else ()) as record:
        forward(model, rows, stop=last, cache=cache)
    start = torch.tensor([row.decisive for row in rows], device=model.device)
    width = max(row.decisive for row in rows)
    above = range(min(starts) + 1, last + 1)
    filled: Sequence[Any] = cache.layers
    prefix = {
        layer: (filled[layer].keys[:, :, :width].clone(), filled[layer].values[:, :, :width].clone()) for layer in above
    }
    longest = max(row.tail for row in rows)
    columns = start[:, None] + torch.arange(longest, device=model.device)
    tails = {layer: gather(hidden, columns) for layer, hidden in record.hidden.items()}
    answer_at, answer = answers_of(rows)
    writes = {layer: at_decisive(written, rows) for layer, written in record.writes.items()}
    return Frozen(model, prefix, tails, start, answer_at.to(model.device), answer.to(model.device), writes)


def replay(
    frozen: Frozen,
    start: int,
    states: Float[Tensor, "row d_model"],
    layers: Sequence[int],
    shifts: Shifts = NO_SHIFTS,
) -> Float[Tensor, "row layer d_model"]:
    """F_{start→l}: hidden states of the decisive tokens above, given theirs at `start`.

    Args:
        frozen: The rows.
        start: The layer whose block output is overwritten at the decisive token.
        states: What it becomes; gradients flow through.
        layers: Ascending layers to read, none below `start`.
        shifts: Write shifts at layers above `start`, read with them; gradients flow through.

    Returns:
        In the order of `layers`. Only the decisive token is run.

    Examples:
        >>> import jacobian_lab as jl
        >>> model, facts = jl.load_model(), jl.load_facts("builtin", "0:2")
        >>> frozen = jl.freeze(model, [model.fact_prompt(fact) for fact in facts], [4])
        >>> jl.replay(frozen, 4, 1.1 * frozen.states(4), (6, 8)).shape
        torch.Size([2, 2, 576])
    """
    along = trajectory(frozen, start, states, max(layers), shifts=shifts)
    return torch.cat([along[layer] for layer in layers], dim=1)


def trajectory(
    frozen: Frozen,
    start: int,
    states: Float[Tensor, "row d_model"],
    last: int,
    site: Site = RESIDUAL,
    shifts: Shifts = NO_SHIFTS,
) -> dict[int, Float[Tensor, "row 1 d_model"]]:
    """Hidden states of the decisive token behind each block, so that derivatives by each can be taken.

    Args:
        frozen: The rows.
        start: The layer whose block output is overwritten at the decisive token.
        states: What it becomes; gradients flow through.
        last: The last layer to be run.
        site: What is read at `last`, unless that is `start`; below it stands the residual stream,
            which a change of the MLP's output changes by the same.
        shifts: Write shifts at layers above `start`.

    Returns:
        By layer, from `start` to `last`.
    """
    along = {start: states.to(frozen.model.dtype)[:, None]}
    if site != MLP:
        return along | dict(_blocks(frozen, start, along[start], last, shifts))
    with outputs_of(frozen.model.joining(last)) as added:
        along |= dict(_blocks(frozen, start, along[start], last, shifts))
    if not added:
        return along
    return along | {last: (added[0] * frozen.model.mlp_factor).to(states.device).view_as(along[last])}


def replay_logits(
    frozen: Frozen, start: int, states: Float[Tensor, "row d_model"], shifts: Shifts = NO_SHIFTS
) -> Float[Tensor, "row answer vocab"]:
    """Logits where the answer's tokens are predicted, given the decisive states at `start`.

    Args:
        frozen: The rows.
        start: The layer whose block output is overwritten at the decisive token.
        states: What it becomes; gradients flow through.
        shifts: Write shifts at layers above `start`; gradients flow through.

    Returns:
        Float32 or better. Rows without an answer give the logits at the decisive token; places
        beyond a row's answer repeat those and are to be masked by ``frozen.answer >= 0``.
    """
    return frozen.model.head(replay_outputs(frozen, start, states, shifts))


def replay_outputs(
    frozen: Frozen, start: int, states: Float[Tensor, "row d_model"], shifts: Shifts = NO_SHIFTS
) -> Float[Tensor, "row answer d_model"]:
    """Input of the head where the answer's tokens are predicted, given the decisive states at `start`.

    Args:
        frozen: The rows.
        start: The layer whose block output is overwritten at the decisive token.
        states: What it becomes; gradients flow through.
        shifts: Write shifts at layers above `start`; gradients flow through.

    Returns:
        In the places of `replay_logits`.
    """
    tail = frozen.tails[start][:, 1:]
    return tail_outputs(frozen, start, torch.cat([states.to(frozen.model.dtype)[:, None], tail], dim=1), shifts)


def tail_outputs(
    frozen: Frozen, start: int, hidden: Float[Tensor, "row tail d_model"], shifts: Shifts = NO_SHIFTS
) -> Float[Tensor, "row answer d_model"]:
    """Input of the head, given the block output at `start` over the whole tail; else as `replay_outputs` has it."""
    output = hidden = hidden[:, : int(frozen.answer_at.max()) + 1]
    for _, output in _blocks(frozen, start, hidden, frozen.model.n_layers - 1, shifts):  # noqa: B007
        pass
    return frozen.model.norm(gather(output, frozen.answer_at))


def run_block(
    frozen: Frozen, layer: int, hidden: Float[Tensor, "row tail d_model"]
) -> Float[Tensor, "row tail d_model"]:
    """Run one block over the tail; of the rows' prefix this block's keys and values alone are read."""
    ((_, output),) = _blocks(frozen, layer - 1, hidden, layer)
    return output


@dataclass(frozen=True, eq=False)
class FrozenGroups:
    """Many rows, frozen in groups of similar length, asked as if they were one.

    Attributes:
        groups: The rows of each group, by index, and the group itself.
    """

    groups: list[tuple[list[int], Frozen]]

    def ask(self, question: Callable[..., Tensor], *values: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """Put a question to every group.

        Args:
            question: Takes a `Frozen` and, row for row, what belongs to it of each of the values.
            *values: Tensors with a first axis over all rows.

        Returns:
            The answers, row for row, in the order of the rows.
        """
        answers = [question(rows, *(value[indices] for value in values)) for indices, rows in self.groups]
        order = torch.tensor([index for indices, _ in self.groups for index in indices])
        return torch.cat(answers)[torch.argsort(order).to(answers[0].device)]

    def states(self, layer: int) -> Float[Tensor, "row d_model"]:
        """Unmodified hidden states of the decisive tokens.

        Args:
            layer: One of the start layers.

        Returns:
            The block output at the decisive token of each row.
        """
        return self.ask(lambda rows: rows.states(layer))

    def writes(self, layer: int) -> Float[Tensor, "row d_model"] | None:
        """Writes u of the decisive tokens where a norm follows them.

        Args:
            layer: One of the start layers.

        Returns:
            u of each row; none in families where it joins the stream as it is.
        """
        return self.ask(lambda rows: rows.writes[layer]) if self.groups[0][1].writes else None

    @property
    def dtype(self) -> torch.dtype:
        """The model's, which says what is rounding."""
        return self.groups[0][1].model.dtype

    def one_by_one(self) -> Iterator[tuple[int, Frozen]]:
        """Every row by itself, for what is too large to be held for many.

        Yields:
            Its index and the row.
        """
        for indices, rows in self.groups:
            for place, index in enumerate(indices):
                yield index, rows.select(torch.tensor([place], device=rows.start.device))


def freeze_groups(
    model: LanguageModel, rows: Sequence[Prompt], starts: Sequence[int], last: int | None = None
) -> FrozenGroups:
    """Freeze any number of rows.

    Args:
        model: The model, as it is now.
        rows: The rows.
        starts: Layers that replay may start from.
        last: The highest block to be replayed; the last of the model by default.

    Returns:
        The frozen rows, in groups that one forward pass takes.
    """
    return FrozenGroups([(group, freeze(model, [rows[i] for i in group], starts, last)) for group in batches(rows)])


def _rows_of(cached: tuple[Tensor, Tensor], rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
    """Keys and values of some rows, which stay where their block is."""
    keys, values = cached
    rows = rows.to(keys.device)
    return keys[rows], values[rows]


class _PrefixCache:
    """Looks like a cache to a block: joins the frozen prefix and the new keys, storing nothing."""

    def __init__(self, prefix: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.prefix = prefix

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        old_keys, old_values = self.prefix[layer]
        return torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)


def _blocks(
    frozen: Frozen, start: int, hidden: Tensor, last: int, shifts: Shifts = NO_SHIFTS
) -> Iterator[tuple[int, Tensor]]:
    """Run the blocks above `start` over the tail, giving each one's index and output, shifted where that is asked."""
    model = frozen.model
    offsets = torch.arange(hidden.shape[1], device=hidden.device)
    positions = frozen.start[:, None] + offsets
    cache = _PrefixCache(frozen.prefix)
    masks: dict[str, Tensor] = {}
    positional: dict[str, dict[str, Any]] = {}
    for layer in range(start + 1, last + 1):
        kind = model.kind(layer)
        if kind not in masks:
            masks[kind] = _mask(frozen, positions, model.window(layer), hidden.dtype)
            positional[kind] = model.positional(hidden, positions, kind)
        watched: AbstractContextManager[list[Tensor]] = nullcontext([])
        if layer in shifts and model.family.output_norm:
            watched = outputs_of(model.projection(layer))
        with watched as writes:
            hidden = model.call_block(layer, hidden, masks[kind], cache, positional[kind])
        if layer in shifts:
            change = moved(model, layer, writes[0].view_as(hidden)[:, 0] if writes else None, shifts[layer])
            shifted = (hidden[:, 0] + change).to(hidden.dtype)  # added up in the wider dtype of the two
            hidden = torch.cat([shifted[:, None], hidden[:, 1:]], dim=1)
        yield layer, hidden


def _mask(
    frozen: Frozen, positions: Int[Tensor, "row tail"], window: int | None, dtype: torch.dtype
) -> Float[Tensor, "row 1 tail key"]:
    """Additive mask over prefix and tail: causal, without padding, within the window."""
    width = next(iter(frozen.prefix.values()))[0].shape[2] if frozen.prefix else 0
    prefix = torch.arange(width, device=positions.device).expand(len(frozen), width)
    padding = prefix >= frozen.start[:, None]
    key_positions = torch.cat([prefix, positions], dim=1)
    absent = torch.cat([padding, torch.zeros_like(positions, dtype=torch.bool)], dim=1)
    distance = positions[:, :, None] - key_positions[:, None, :]
    hidden: Bool[Tensor, "row tail key"] = absent[:, None, :] | (distance < 0)
    if window is not None:
        hidden = hidden | (distance >= window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]
