"""Answers of the unedited model while shifts are imposed on the decisive token by replay."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.evaluation.metrics import Answers, answers
from jacobian_lab.maps.hooks import batches
from jacobian_lab.maps.replay import Frozen, Shifts, freeze, replay_outputs
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt


@torch.no_grad()
def imposed_answers(
    model: LanguageModel, rows: Sequence[Prompt], shifts: Shifts, shares: Sequence[float]
) -> list[Answers]:
    """Score the answers of rows whose decisive token is shifted, nothing being edited.

    Args:
        model: The model.
        rows: Rows with answers.
        shifts: By layer, the write shift δ of every row.
        shares: Factors of all shifts, one after the other; 0 is the model as it is.

    Returns:
        For each share the scores of every row.
    """
    first = min(shifts)
    states: list[list[Tensor]] = [[torch.empty(0)] * len(rows) for _ in shares]
    for group in batches(rows):
        frozen = freeze(model, [rows[row] for row in group], [first])
        own = {layer: shift[group] for layer, shift in shifts.items()}
        for share, held in zip(shares, states, strict=True):
            outputs = _shifted(frozen, first, {layer: share * shift for layer, shift in own.items()})
            for row, output in zip(group, outputs, strict=True):
                held[row] = output[: len(rows[row].answer)].clone()
    return [answers(model, rows, held) for held in states]


def _shifted(frozen: Frozen, first: int, shifts: Shifts) -> Float[Tensor, "row answer d_model"]:
    """Input of the head with shifts at `first` and above."""
    above = {layer: shift for layer, shift in shifts.items() if layer != first}
    return replay_outputs(frozen, first, frozen.shifted(first, shifts[first]), above)
