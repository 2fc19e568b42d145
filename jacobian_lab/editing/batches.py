"""Batches of facts that a descent optimizes side by side."""

import torch

from jacobian_lab.memory import free_memory
from jacobian_lab.model.footprint import descent_bytes, logit_bytes
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import FactRows

PADDING = 1.25
"""The longest tail of a batch is at most this many times the shortest."""
BATCH_FACTS, BATCH_TOKENS, CARD_TOKENS = 16, 2048, 16384
"""Facts and tokens that a batch replays at the most, unless one fact has more; a card takes facts by tokens alone."""
SHARE = 0.8
"""Share of the free memory that a batch may be expected to take."""


def anchor_batches(
    rows: FactRows,
    size: int | None = None,
    *,
    cards: int | None = None,
    free: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Batches of facts with tails of about the same length, no more than memory holds.

    Args:
        rows: The facts.
        size: Facts in a batch at the most; by default `BATCH_FACTS` on a processor, and what tokens allow on a card.
        cards: Over how many cards the model is to be divided, 0 for a processor; by default over how many it is.
        free: Bytes that are free on each; by default those that are.
        dtype: Dtype of the copy of the model that the descent runs in; by default it runs in the model itself.

    Returns:
        Indices of the facts of each batch; every index once.
    """
    tails = [row.tail for row in rows.answered]
    cards = rows.model.cards if cards is None else cards
    contexts, together = len(rows.weights), _tokens_together(rows.model, cards, free, dtype or rows.model.dtype)
    if size is None:
        size = len(rows) if cards else BATCH_FACTS
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=tails.__getitem__):
        tokens = tails[index] * contexts
        most = min(size, together // tokens)
        if groups and len(groups[-1]) < most and tails[index] <= PADDING * tails[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _tokens_together(model: LanguageModel, cards: int, free: int | None, dtype: torch.dtype) -> int:
    """Tokens that a batch may replay: each keeps its activations in every block, and its logits."""
    activations = descent_bytes(model.n_layers, model.d_model, model.d_mlp, dtype.itemsize) // max(1, cards)
    logits = len(model.hf.get_output_embeddings().weight) * logit_bytes(dtype.itemsize)
    free = free_memory(model.devices) if free is None else free
    return min(CARD_TOKENS if cards else BATCH_TOKENS, int(SHARE * free) // (activations + logits))
