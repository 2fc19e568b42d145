"""Tails of rows, from the decisive token on: the places of their answers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacobian_lab.model.tokens import Prompt


def gather(
    hidden: Float[Tensor, "row token d_model"], columns: Int[Tensor, "row column"]
) -> Float[Tensor, "row column d_model"]:
    """Pick columns of each row.

    Args:
        hidden: States of tokens.
        columns: Places of tokens; beyond the end of the rows the last token is repeated.

    Returns:
        The states there.
    """
    columns = columns.clamp(max=hidden.shape[1] - 1)
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], columns]


def answers_of(rows: Sequence[Prompt]) -> tuple[Int[Tensor, "row answer"], Int[Tensor, "row answer"]]:
    """Places of the answers in the tails.

    Args:
        rows: The rows.

    Returns:
        The place in the tail where each answer token is predicted, 0 where there is none; and the tokens, -1 there.
    """
    width = max(1, *(len(row.answer) for row in rows))
    answer_at = torch.zeros(len(rows), width, dtype=torch.long)
    answer = torch.full((len(rows), width), -1)
    for index, row in enumerate(rows):
        first = row.tail - len(row.answer)
        for place, token in enumerate(row.answer):
            answer_at[index, place] = first + place
            answer[index, place] = token
    return answer_at, answer
