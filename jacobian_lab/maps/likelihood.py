"""How likely a model takes answers to be, in float64 whatever its dtype, and no more logits than there are tokens."""

from jaxtyping import Float
from torch import Tensor

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
    log_p = frozen.model.head(outputs[told]).double().log_softmax(-1)
    found = -log_p.gather(-1, frozen.answer[told][:, None])[:, 0]
    return found.new_zeros(told.shape).masked_scatter(told, found).sum(1) / told.sum(1)
