"""Does the model answer as it was edited to?"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from jacobian_lab.activations import batches, forward
from jacobian_lab.facts import Fact
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.tokens import fact_prompt


@torch.no_grad()
def efficacy(model: LanguageModel, facts: Sequence[Fact]) -> Bool[Tensor, " fact"]:
    """Accuracy on the rewriting prompt: every token of ``target_new`` is the argmax, teacher forced.

    Args:
        model: The model, edited or not.
        facts: The facts.

    Returns:
        One verdict a fact (metrics.md, Efficacy Accuracy).
    """
    rows = [fact_prompt(model.tokenizer, fact, answer=True) for fact in facts]
    correct = torch.zeros(len(rows), dtype=torch.bool)
    for group in batches(rows):
        hidden = forward(model, [rows[i] for i in group])
        assert hidden is not None
        for index, states in zip(group, hidden, strict=True):
            row = rows[index]
            logits = model.head(states[len(row.ids) - len(row.answer) : len(row.ids)])
            correct[index] = bool((logits.argmax(-1).cpu() == torch.tensor(row.answer)).all())
    return correct
