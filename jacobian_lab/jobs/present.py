"""Answers as a model gives them now, teacher forced, and tokens as texts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.evaluation.metrics import predicting_states
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.progress import bar

ROWS_AT_ONCE = 64


@torch.no_grad()
def present_answers(model: LanguageModel, rows: Sequence[Prompt], *, progress: bool = True) -> Iterator[dict[str, Any]]:
    """Score each answer by the model as it is: its rank, its probability, and what the model says in its place."""
    with bar(len(rows), "facts", "fact", show=progress) as progress_bar:
        for part in (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)):
            for row, states in zip(part, predicting_states(model, part), strict=True):
                yield _present_answer(model, row, states)
                progress_bar.update()


def _present_answer(model: LanguageModel, row: Prompt, states: Float[Tensor, "answer d_model"]) -> dict[str, Any]:
    log_p = model.head(states).double().log_softmax(-1)
    answer = torch.tensor(row.answer, device=log_p.device)
    own, likeliest = log_p.gather(-1, answer[:, None])[:, 0], log_p.argmax(-1)
    return {
        "known": bool((likeliest == answer).all()),
        "rank": int((log_p[0] > own[0]).sum()) + 1,
        "probability": math.exp(float(own.sum())),
        "says": pieces(model, [int(likeliest[0])])[0],
    }


def pieces(model: LanguageModel, ids: Sequence[int]) -> list[str]:
    """Write each token as text; by the tokenizer's own name where that is no whole character or nothing at all."""
    texts = []
    for token, name in zip(ids, model.tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        text = model.tokenizer.decode([token])
        if name.startswith("▁") and not text.startswith(" "):  # whose decoder takes off a first space
            text = f" {text}"
        texts.append(text if text and "\ufffd" not in text else name)
    return texts
