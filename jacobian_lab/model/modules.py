"""Modules of transformers models: their caches, matrices and outputs, whichever version and family they are of."""

import inspect
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

CACHE_NAMES = ("cache", "past_key_values", "layer_past")
"""What transformers calls a key-value cache: the first from 5.24 on, the others by family before."""


def cache_name(module: nn.Module) -> str:
    """Name of the key-value cache among the arguments of a block or a model."""
    parameters = inspect.signature(module.forward).parameters
    return next(name for name in CACHE_NAMES if name in parameters)


def matrix(module: Any) -> Float[Tensor, "out in"]:
    """The matrix of a linear module, whichever way it is stored."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def block_output(output: Any) -> Tensor:
    """The hidden states in what a block returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output
