"""A model without its weights: what a configuration alone says of sizes, and two of its blocks to measure."""

import copy
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from jacobian_lab.model.language_model import LanguageModel

BLOCKS, WORDS, POSITIONS = 2, 2048, 2048
"""Of a model that is measured in another's place."""


@dataclass(frozen=True)
class Sizes:
    """What of a model decides how long work takes.

    Attributes:
        blocks: How many blocks it has.
        width: d_model.
        d_mlp: Width of the keys.
        words: Of the vocabulary.
        block: Numbers in the matrices of one block.
        weights: Numbers in the whole model.
        cached: Numbers that a block keeps of a token for attention.
        inner: How many linear maps stand at an MLP's entrance.
    """

    blocks: int
    width: int
    d_mlp: int
    words: int
    block: int
    weights: int
    cached: int
    inner: int

    @classmethod
    def of(cls, model: LanguageModel) -> "Sizes":
        """The sizes of a model; its weights are not looked at, and may be on the meta device."""
        config = model.hf.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or model.d_model // config.num_attention_heads
        return cls(
            blocks=model.n_layers,
            width=model.d_model,
            d_mlp=model.d_mlp,
            words=int(config.vocab_size),
            block=_matrices(model.blocks[0]),
            weights=sum(weight.numel() for weight in model.hf.parameters()),
            cached=2 * heads * head,
            inner=len(model.inner(0)),
        )


def _matrices(module: nn.Module) -> int:
    return sum(prod(weight.shape) for weight in module.parameters() if weight.dim() == 2)


def two_blocks(model: LanguageModel, device: torch.device, dtype: torch.dtype | None = None) -> LanguageModel:
    """A random model of two blocks like a model's own, and few words, to be measured."""
    config = copy.deepcopy(model.hf.config)
    config.num_hidden_layers, config.vocab_size = BLOCKS, min(WORDS, config.vocab_size)
    config.max_position_embeddings = min(POSITIONS, config.max_position_embeddings)  # learned ones are a matrix
    config.pad_token_id = None  # which may be among the words that are left out
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:BLOCKS]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype or model.dtype)
    return replace(model, hf=hf.eval().requires_grad_(False))
