"""The check before a trace: do some of its cells agree with a plain loop over the untouched model?"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.agreement import TOLERANCE
from jacobian_lab.maps.restorations import Restoration, TracedPrompt, TraceSettings
from jacobian_lab.maps.tracing import draw_noise, trace_prompt
from jacobian_lab.model.language_model import LanguageModel, block_output

DRAWS = 2
"""Draws of the noise that are compared."""

_Place = tuple[Literal["block", "mlp", "attention"], int]
"""A module whose output is read or overwritten: its part of the model, and its block."""


@torch.no_grad()
def check_tracing(
    model: LanguageModel, fact: Fact, prompt: TracedPrompt, settings: TraceSettings, deviation: float
) -> float:
    """Compare one cell of every site with whole passes of the model, given embeddings and hooks alone.

    Args:
        model: The model.
        fact: A fact.
        prompt: Its prompt.
        settings: The settings of the trace.
        deviation: Standard deviation of the embedding.

    Returns:
        Largest difference of a restored log-probability, over its size where that is above one.

    Raises:
        InputError: If one differs by more than `jacobian_lab.maps.agreement.TOLERANCE`.
    """
    settings = settings.of(model.n_layers)
    assert settings.layers is not None
    middle = settings.layers[len(settings.layers) // 2]
    settings = replace(settings, layers=(middle,), samples=min(DRAWS, settings.samples), recalled_only=False)
    traced = trace_prompt(model, fact, prompt, settings, deviation)
    noise, place, worst = draw_noise(model, fact, prompt, settings, deviation), prompt.subject[-1], 0.0
    for cell in settings.restorations(model.n_layers):
        effect = traced.effect[prompt.places.index(place), 0, settings.sites.index(cell.site)]
        own, plain = (
            math.log(max(value, math.ulp(0.0)))
            for value in (traced.corrupted + effect, _plain(model, prompt, noise, cell, place))
        )
        difference = abs(own - plain) / max(1.0, abs(plain))
        if not difference <= TOLERANCE[model.dtype]:
            raise InputError(
                f"expected causal tracing to agree with {model.name!r} itself, got a log-probability of {own:.6g} for "
                f"{plain:.6g} with {cell.site} restored at layer {middle} in fact {fact.id!r}: this model's blocks are "
                "called differently; please report it"
            )
        worst = max(worst, difference)
    return worst


def _plain(
    model: LanguageModel,
    prompt: TracedPrompt,
    noise: Float[Tensor, "draw subject d_model"],
    cell: Restoration,
    place: int,
) -> float:
    """Probability of the answer with one state restored, mean over draws, each in three whole passes."""
    embeddings = model.hf.get_input_embeddings()(torch.tensor([prompt.ids], device=model.device))
    total = 0.0
    for draw in noise:
        noisy = embeddings.clone()
        noisy[:, prompt.subject.start : prompt.subject.stop] += draw
        (clean, _), (corrupted, _) = (_pass(model, states, {}, place) for states in (embeddings, noisy))
        writes: dict[_Place, Tensor] = {("block", cell.layer): clean["block", cell.layer]} if cell.of_state else {}
        for part in ("mlp", "attention"):
            for block in range(cell.start + 1, model.n_layers):
                if source := cell.source(part, block):
                    writes[part, block] = (clean if source == "clean" else corrupted)[part, block]
        total += float(_pass(model, noisy, writes, place)[1][prompt.answer])
    return total / len(noise)


def _pass(
    model: LanguageModel, embeddings: Float[Tensor, "1 token d_model"], writes: Mapping[_Place, Tensor], place: int
) -> tuple[dict[_Place, Tensor], Float[Tensor, " vocab"]]:
    """Outputs of every module at a token, some overwritten there, and the next token's probabilities."""
    read: dict[_Place, Tensor] = {}

    def visit(where: _Place) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            states = block_output(output).clone(memory_format=torch.contiguous_format)
            at = states.view(1, len(embeddings[0]), -1)[0]
            if where in writes:
                at[place] = writes[where]
            read[where] = at[place].clone()
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    with ExitStack() as stack:
        for block in range(model.n_layers):
            modules = {"block": model.blocks[block], "mlp": model.mlp(block), "attention": model.attention(block)}
            for part, module in modules.items():
                stack.callback(module.register_forward_hook(visit((part, block))).remove)  # type: ignore[arg-type]
        logits = model.hf(inputs_embeds=embeddings, use_cache=False).logits[0, -1]
    return read, logits.double().softmax(-1)
