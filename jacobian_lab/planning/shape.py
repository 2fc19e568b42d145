"""Sizes of a model, whose weights are not looked at, and two of its blocks to be measured."""

import copy
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from jacobian_lab.model.language_model import LanguageModel

BLOCKS, WORDS, POSITIONS = 2, 2048, 2048
"""Blocks, words and positions of a model that is measured in another's place."""


@dataclass(frozen=True)
class Shape:
    """Sizes that decide how long work takes.

    Attributes:
        blocks: Number of blocks.
        d_model: Width of the hidden states.
        d_mlp: Width of the keys.
        vocabulary: Number of words.
        block: Numbers in the matrices of one block.
        weights: Numbers in the whole model.
        cached: Numbers that a block keeps of a token for attention.
        inner: Number of linear maps at an MLP's entrance.
        windows: Whether some block's attention has a window.
    """

    blocks: int
    d_model: int
    d_mlp: int
    vocabulary: int
    block: int
    weights: int
    cached: int
    inner: int
    windows: bool

    @classmethod
    def of(cls, model: LanguageModel) -> "Shape":
        """Read the sizes of a model, which may be on the meta device."""
        config = model.hf.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or model.d_model // config.num_attention_heads
        return cls(
            blocks=model.n_layers,
            d_model=model.d_model,
            d_mlp=model.d_mlp,
            vocabulary=int(config.vocab_size),
            block=_matrices(model.blocks[0]),
            weights=sum(weight.numel() for weight in model.hf.parameters()),
            cached=2 * heads * head,
            inner=len(model.inner(0)),
            windows=any(model.window(layer) is not None for layer in range(model.n_layers)),
        )

    def on_one_card(self, cards: int) -> int:
        """Count the weights on the card that holds most of them; what is no block is on the first."""
        if cards <= 1:
            return self.weights
        return max(self.weights - self.blocks * self.block, self.weights // cards + self.block)


def _matrices(module: nn.Module) -> int:
    return sum(prod(weight.shape) for weight in module.parameters() if weight.dim() == 2)


def two_blocks(model: LanguageModel, device: torch.device) -> LanguageModel:
    """Make a random model of two blocks like a model's own, with few words, to be measured."""
    config = copy.deepcopy(model.hf.config)
    config.num_hidden_layers, config.vocab_size = BLOCKS, min(WORDS, config.vocab_size)
    config.max_position_embeddings = min(POSITIONS, config.max_position_embeddings)  # learned ones are a matrix
    config.pad_token_id = None  # which may be among the words that are left out
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:BLOCKS]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    return replace(model, hf=hf.eval().requires_grad_(False))
