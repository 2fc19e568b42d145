"""Causal tracing (ROME: Meng et al. 2022, §2): states that bring an answer back once its subject is corrupted.

The embeddings of the subject's tokens get noise, and the answer's probability falls. Then one state of the clean pass
is put back, and the probability is read again. Restorations of one token run side by side: a restoration joins the
batch behind the block below its own, and only the tokens from its own on are run (`jacobian_lab.maps.replay`).
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from jacobian_lab.catalogue import TraceSite
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import forward
from jacobian_lab.maps.likelihood import ROWS_IN_DOUBLE
from jacobian_lab.maps.replay import Frozen, run_block
from jacobian_lab.maps.restorations import Restoration, TracedPrompt, TraceSettings, batches_of, traced_prompt
from jacobian_lab.model.language_model import LanguageModel, block_output
from jacobian_lab.model.tokens import Prompt

IDS_AT_ONCE = 1024
"""Rows of the embedding that are read at once."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Causal trace of one fact; tokens are those from the subject's first on.

    Attributes:
        fact: The fact's id.
        tokens: Texts of the tokens.
        roles: Their roles (`jacobian_lab.catalogue.ROLES`).
        layers: The layers.
        sites: The sites.
        clean: Probability of the true answer's first token.
        corrupted: Its mean over draws of the noise; ``clean - corrupted`` is the total effect.
        recalled: Whether the answer's first token is the model's likeliest.
        effect: Probability when a state is restored less the corrupted one, mean over draws; NaN if not traced.
    """

    fact: int | str
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    layers: tuple[int, ...]
    sites: tuple[TraceSite, ...]
    clean: float
    corrupted: float
    recalled: bool
    effect: Float[np.ndarray, "token layer site"]


def trace(
    model: LanguageModel, facts: Sequence[Fact], settings: TraceSettings | None = None, **changed: Any
) -> list[Trace]:
    """Trace which states bring the answers of facts back (ROME: Meng et al. 2022, §2).

    Args:
        model: The model.
        facts: The facts, each with its true answer.
        settings: Settings; ROME's by default.
        **changed: Fields of `TraceSettings` that differ, such as ``samples=3`` or ``sites=("mlp",)``.

    Returns:
        A trace of each fact. Noise is drawn for each by the seed and its own text, so that the others do not matter.

    Raises:
        InputError: If a fact has no true answer, or the window is wider than the model.

    Examples:
        >>> import jacobian_lab as jl
        >>> model, facts = jl.load_model(), jl.load_facts("builtin", "0:1")
        >>> (traced,) = jl.trace(model, facts, layers=(3, 15, 27), sites=("residual", "mlp"), samples=2)
        >>> traced.effect.shape == (len(traced.tokens), 3, 2)
        True
    """
    settings = replace(settings or TraceSettings(), **changed)
    prompts, deviation = [traced_prompt(model, fact) for fact in facts], embedding_deviation(model)
    return [trace_prompt(model, fact, prompt, settings, deviation) for fact, prompt in zip(facts, prompts, strict=True)]


@torch.no_grad()
def embedding_deviation(model: LanguageModel) -> float:
    """Standard deviation of all numbers that the embedding gives, over all tokens.

    ROME takes that over the tokens of its subjects. Over all tokens it does not depend on the facts.

    Args:
        model: The model.

    Returns:
        The standard deviation, scaled as the embedding scales its output.
    """
    embed, count, sums = model.hf.get_input_embeddings(), 0, torch.zeros(2, dtype=torch.float64)
    for ids in torch.arange(model.vocab_size, device=model.device).split(IDS_AT_ONCE):
        values = embed(ids).double()
        sums += torch.stack([values.sum(), values.square().sum()]).cpu()
        count += values.numel()
    mean, square = (sums / count).tolist()
    return float((square - mean**2) ** 0.5)


def draw_noise(
    model: LanguageModel, fact: Fact, prompt: TracedPrompt, settings: TraceSettings, deviation: float
) -> Float[Tensor, "draw subject d_model"]:
    """Draw a fact's noise, by the seed and its own text.

    Args:
        model: The model.
        fact: The fact.
        prompt: Its prompt.
        settings: Noise, number of draws, and seed.
        deviation: Standard deviation of the embedding.

    Returns:
        The noise of the subject's tokens, in the model's dtype.
    """
    generator = np.random.default_rng((settings.seed, zlib.crc32(fact.text.encode())))
    drawn = generator.standard_normal((settings.samples, len(prompt.subject), model.d_model))
    return torch.from_numpy(drawn * (settings.noise * deviation)).to(model.device, model.dtype)


@torch.no_grad()
def trace_prompt(
    model: LanguageModel, fact: Fact, prompt: TracedPrompt, settings: TraceSettings, deviation: float
) -> Trace:
    """Trace one fact.

    Args:
        model: The model.
        fact: The fact.
        prompt: Its prompt.
        settings: The settings.
        deviation: Standard deviation of the embedding.

    Returns:
        The trace.
    """
    settings = settings.of(model.n_layers)
    assert settings.layers is not None
    noise = draw_noise(model, fact, prompt, settings, deviation)
    clean = _run(model, prompt, torch.zeros_like(noise[:1]))
    corrupted = _run(model, prompt, noise)
    recalled = int(model.head(clean.last)[0].argmax()) == prompt.answer
    before = probability(model, corrupted.last, prompt.answer).mean()
    effect = np.full((len(prompt.places), len(settings.layers), len(settings.sites)), np.nan)
    if recalled or not settings.recalled_only:
        cells = settings.restorations(model.n_layers)
        for row, place in enumerate(prompt.places):
            for batch in batches_of(cells, settings.samples * (len(prompt.ids) - place)):
                restored = _restored(model, clean, corrupted, place, batch)
                after = probability(model, restored.flatten(0, 1), prompt.answer).view(len(batch), -1).mean(1)
                for cell, change in zip(batch, (after - before).tolist(), strict=True):
                    effect[row, settings.layers.index(cell.layer), settings.sites.index(cell.site)] = change
    return Trace(
        fact=fact.id,
        tokens=tuple(model.tokenizer.decode([prompt.ids[place]]) for place in prompt.places),
        roles=tuple(map(prompt.role, prompt.places)),
        layers=settings.layers,
        sites=settings.sites,
        clean=float(probability(model, clean.last, prompt.answer)),
        corrupted=float(before),
        recalled=recalled,
        effect=effect,
    )


def probability(model: LanguageModel, states: Float[Tensor, "row d_model"], token: int) -> Float[Tensor, " row"]:
    """Probability of a token.

    Args:
        model: The model; only its head is used.
        states: Inputs of the head.
        token: The token.

    Returns:
        In float64.
    """
    logits = (model.head(part).double() for part in states.split(ROWS_IN_DOUBLE))
    return torch.cat([(part[:, token] - part.logsumexp(-1)).exp() for part in logits])


@dataclass(frozen=True, eq=False)
class _Pass:
    """States of a pass over a prompt, ``[row, token, d_model]`` each, a row a draw.

    Attributes:
        hidden: Outputs of the blocks; at -1 the input of the first.
        parts: Outputs of MLPs and attention, by name and block.
        cache: Keys and values, by block.
        last: Input of the head at the last token, ``[row, d_model]``.
    """

    hidden: dict[int, Tensor]
    parts: dict[tuple[str, int], Tensor]
    cache: dict[int, tuple[Tensor, Tensor]]
    last: Tensor


def _run(model: LanguageModel, prompt: TracedPrompt, noise: Float[Tensor, "draw subject d_model"]) -> _Pass:
    """Run a prompt once a draw, with noise on the subject's embeddings, and keep the states of every block."""
    hidden: dict[int, Tensor] = {}
    parts: dict[tuple[str, int], Tensor] = {}
    cache = DynamicCache()

    def corrupt(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        before, subject, behind = output.split([
            prompt.subject.start,
            len(prompt.subject),
            len(prompt.ids) - prompt.subject.stop,
        ], dim=1)  # fmt: skip
        return torch.cat([before, subject + noise, behind], dim=1)

    def enter(_module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden[-1] = inputs[0] if inputs else keywords["hidden_states"]

    def keep(record: dict[Any, Tensor], place: Any) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            record[place] = block_output(output).view(len(noise), len(prompt.ids), -1).clone()

        return hook

    with ExitStack() as stack:
        stack.callback(model.hf.get_input_embeddings().register_forward_hook(corrupt).remove)
        stack.callback(model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for block in range(model.n_layers):
            stack.callback(model.blocks[block].register_forward_hook(keep(hidden, block)).remove)
            stack.callback(model.mlp(block).register_forward_hook(keep(parts, ("mlp", block))).remove)
            stack.callback(model.attention(block).register_forward_hook(keep(parts, ("attention", block))).remove)
        output = forward(model, [Prompt(prompt.ids, len(prompt.ids) - 1)] * len(noise), cache=cache)
    assert output is not None
    filled: Sequence[Any] = cache.layers
    return _Pass(hidden, parts, {i: (layer.keys, layer.values) for i, layer in enumerate(filled)}, output[:, -1])


def _restored(
    model: LanguageModel, clean: _Pass, corrupted: _Pass, place: int, cells: Sequence[Restoration]
) -> Float[Tensor, "cell draw d_model"]:
    """Inputs of the head at the last token with each restoration, for every draw."""
    draws, length, width = corrupted.hidden[-1].shape
    states = corrupted.hidden[-1].new_empty(0, draws, length - place, width)
    running: list[Restoration] = []
    for block in range(cells[0].start, model.n_layers):
        if running:
            with _overwritten(model, block, running, clean, corrupted, place):
                frozen = _prefix(model, corrupted, block, place, len(running))
                states = run_block(frozen, block, states.flatten(0, 1)).view(states.shape)
        for cell in cells:
            if cell.start == block:
                entering = corrupted.hidden[block][:, place:].clone()
                if cell.of_state:
                    entering[:, 0] = clean.hidden[block][:, place]
                states = torch.cat([states, entering.to(states.device)[None]])
                running.append(cell)
    return model.norm(states[:, :, -1])


def _prefix(model: LanguageModel, corrupted: _Pass, block: int, place: int, times: int) -> Frozen:
    """Rows of one block for some restorations of a token, with the corrupted keys and values before it."""
    keys, values = (cached[:, :, :place].repeat(times, 1, 1, 1) for cached in corrupted.cache[block])
    start = torch.full((len(keys),), place, device=model.device)
    nothing = torch.zeros(len(keys), 1, dtype=torch.long, device=model.device)
    return Frozen(model, {block: (keys, values)}, {}, start, nothing, nothing - 1)


@contextmanager
def _overwritten(
    model: LanguageModel, block: int, cells: Sequence[Restoration], clean: _Pass, corrupted: _Pass, place: int
) -> Iterator[None]:
    """Overwrite outputs of a block's MLP and attention at the token, where restorations say so."""
    with ExitStack() as stack:
        for part, module in (("mlp", model.mlp(block)), ("attention", model.attention(block))):
            passes = {"clean": clean, "corrupted": corrupted}
            draws = {name: run.parts[part, block][:, place] for name, run in passes.items()}
            sources = {row: cell.source(part, block) for row, cell in enumerate(cells)}
            rows = [row for row, source in sources.items() if source]
            if rows:
                values = torch.stack([draws[sources[row]].expand_as(draws["corrupted"]) for row in rows])
                stack.callback(module.register_forward_hook(_writer(rows, values, len(cells))).remove)
        yield


def _writer(rows: Sequence[int], values: Float[Tensor, "cell draw d_model"], cells: int) -> Any:
    """Make a hook that overwrites the first token of some cells."""

    def write(_module: Any, _inputs: Any, output: Any) -> Any:
        states = block_output(output)
        changed = states.clone(memory_format=torch.contiguous_format)
        _, draws, width = values.shape
        changed.view(cells, draws, -1, width)[list(rows), :, 0] = values.to(changed)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return write
