"""Likelihood of answers, in float64 whatever the dtype; logits are made of the answers' tokens alone."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.maps.replay import Frozen

ROWS_IN_DOUBLE = 16
"""Rows of logits that are held in float64 at once, where many are asked."""


def answer_nll(frozen: Frozen, outputs: Float[Tensor, "row answer d_model"]) -> Float[Tensor, " row"]:
    """Mean −log P of the tokens of each row's answer.

    Args:
        frozen: The rows, each with an answer.
        outputs: Input of the head at their tokens (`jacobian_lab.maps.replay.tail_outputs`).

    Returns:
        In float64; gradients flow through.
    """
    answered = frozen.answer >= 0
    log_p = frozen.model.head(outputs[answered]).double().log_softmax(-1)
    nll = -log_p.gather(-1, frozen.answer[answered][:, None])[:, 0]
    return nll.new_zeros(answered.shape).masked_scatter(answered, nll).sum(1) / answered.sum(1)


@torch.no_grad()
def answer_is_likeliest(frozen: Frozen, outputs: Float[Tensor, "row answer d_model"]) -> Bool[Tensor, " row"]:
    """Tell of each row if every token of its answer is the likeliest at its place.

    Args:
        frozen: The rows, each with an answer.
        outputs: As `answer_nll` takes them.

    Returns:
        True or False for each row.
    """
    answered = frozen.answer >= 0
    likeliest = frozen.model.head(outputs[answered]).argmax(-1) == frozen.answer[answered]
    return likeliest.new_ones(answered.shape).masked_scatter(answered, likeliest).all(1)
