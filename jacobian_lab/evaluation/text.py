"""Measures of held-out text under a model: perplexity, and norms of hidden states."""

import math
import sys
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.evaluation.metrics import answers, predicting_states
from jacobian_lab.maps.hooks import batches, capture, forward
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt

STATES_AT_ONCE = 1024
"""Padded tokens whose states at all blocks are held at once."""

LARGEST = math.log(sys.float_info.max)
"""Mean −log P above which a perplexity is infinite."""


@torch.no_grad()
def perplexity(model: LanguageModel, rows: Sequence[Prompt]) -> float:
    """Perplexity of a text that no edit mentions: a measure of damage.

    Args:
        model: The model, edited or not.
        rows: Its token rows.

    Returns:
        exp of the mean −log P over every token but the first of each row.
    """
    predicted = [Prompt(row.ids[:-1], 0, row.ids[1:]) for row in rows if len(row.ids) > 1]
    total = count = 0.0
    for group in batches(predicted):
        batch = [predicted[i] for i in group]
        scores = answers(model, batch, predicting_states(model, batch, whole=True))
        lengths = torch.tensor([len(row.answer) for row in batch])
        total, count = total + float((scores.nll * lengths).sum()), count + float(lengths.sum())
    mean = total / count
    return math.exp(mean) if mean < LARGEST else math.inf


@torch.no_grad()
def state_norms(model: LanguageModel, rows: Sequence[Prompt]) -> Float[Tensor, " block"]:
    """Mean norm of the hidden states of a text, by block.

    Args:
        model: The model, edited or not.
        rows: Its token rows.

    Returns:
        Of each block's output the mean norm over all tokens, in float64.
    """
    blocks = range(model.n_layers)
    sums, count = torch.zeros(len(blocks), dtype=torch.float64), 0
    for group in batches(rows, STATES_AT_ONCE):
        batch = [rows[i] for i in group]
        with capture(model, hidden=blocks) as record:
            forward(model, batch)
        for block in blocks:
            for states, row in zip(record.hidden[block], batch, strict=True):
                sums[block] += torch.linalg.vector_norm(states[: len(row.ids)].double(), dim=-1).sum().cpu()
        count += sum(len(row.ids) for row in batch)
    return sums / count
