"""Letting a model write, by its probabilities alone."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from jacobian_lab.language_model import LanguageModel


def write(model: LanguageModel, ids: Int[Tensor, "row token"], **settings: Any) -> Int[Tensor, "row written"]:
    """Continue rows without the penalties, word lists and temperatures that a model may bring along.

    Args:
        model: The model.
        ids: Rows of one length.
        **settings: How to decode, as `transformers.GenerationConfig` takes it. Nothing ends a row early.

    Returns:
        The rows with what follows them.
    """
    own, model.hf.generation_config = model.hf.generation_config, GenerationConfig()
    plain = GenerationConfig(pad_token_id=0, **settings)
    try:
        written: Tensor = model.hf.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    finally:
        model.hf.generation_config = own
    return written
