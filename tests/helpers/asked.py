"""A model asked by the plainest way, beside rows that are there already."""

from jacobian_lab.evaluation.metrics import accuracy


def efficacy(model, facts):
    """Accuracy on the rewriting prompts with the new answers, a verdict a fact."""
    return accuracy(model, [model.text_prompt(fact.text, fact.target_new, fact.join) for fact in facts])
