"""How likely a model takes answers to be, in float64 whatever its dtype, and no more logits than there are tokens."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from jacobian_lab.maps.replay import Frozen


def answer_nll(frozen: Frozen, outputs: Float[Tensor, "row answer d_model"]) -> Float[Tensor, " row"]:
    """Mean −log P of the tokens of each row's answer.

    Args:
        frozen: The rows, each with an answer.
        outputs: What the head makes their logits of (`jacobian_lab.maps.replay.tail_outputs`).

    Returns:
        In float64; gradients flow through.
    """
    told = frozen.answer >= 0
    found = surprisal(frozen.model.head(outputs[told]), frozen.answer[told])
    return found.new_zeros(told.shape).masked_scatter(told, found).sum(1) / told.sum(1)


def surprisal(logits: Float[Tensor, "token vocab"], tokens: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    """−log P of tokens, in float64 whatever the dtype of the logits.

    Args:
        logits: Logits, in float32 or better.
        tokens: The tokens.

    Returns:
        In float64; gradients flow through, once.
    """
    return _Surprisal.apply(logits, tokens)


class _Surprisal(torch.autograd.Function):
    """log Σ exp(x) − x_token, whose derivative softmax(x) − onehot(token) needs no logarithm of each word's share."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        """As `surprisal` has it."""
        largest, picked = logits.amax(-1), logits.gather(-1, tokens[:, None])[:, 0]
        powers = logits.double().sub_(largest.double()[:, None]).exp_()
        total = powers.sum(-1)
        ctx.save_for_backward(powers, total, tokens)
        ctx.dtype = logits.dtype
        return total.log() + (largest.double() - picked.double())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The derivative by the logits."""
        powers, total, tokens = ctx.saved_tensors
        (gradient,) = gradients
        found = powers * (gradient / total)[:, None]
        return found.scatter_add_(-1, tokens[:, None], -gradient[:, None]).to(ctx.dtype), None
