"""One evaluator for every model: its questions are tokenized once, and no number depends on that."""

import dataclasses

import pytest
import torch
from helpers.asked import efficacy

from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.evaluation.metrics import accuracy, evaluate, greedy_matches, neighborhood_states
from jacobian_lab.evaluation.questions import STYLES, questions
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import fact_rows


@pytest.fixture
def tokenized(monkeypatch):
    """Texts that the model tokenizes, as they come."""
    texts, text_prompt = [], LanguageModel.text_prompt
    monkeypatch.setattr(
        LanguageModel, "text_prompt", lambda model, *parts: (texts.append(parts), text_prompt(model, *parts))[1]
    )
    return texts


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", [Evaluator, Evaluator.of])
def test_questions_are_tokenized_once_for_all_models(make, style, tiny, tokenized, monkeypatch):
    monkeypatch.setattr("jacobian_lab.evaluation.evaluator.FACTS_AT_ONCE", 2)
    facts = load_facts("builtin", "0:5")
    evaluator = make(tiny, facts, style, greedy=True)
    weight, original = tiny.weight(2), tiny.weight(2).clone()
    first = list(evaluator.answers())
    assert len(tokenized) <= sum(len(set(questions(fact, "counterfact"))) for fact in facts)
    tokenized.clear()
    weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double())
    try:
        second = list(evaluator.answers())
        assert list(evaluator.answers(first=3)) == second[:2]
        assert list(evaluator.answers(first=0)) == []
        assert len(evaluator.rows()) == 3
        assert evaluator.decoded()
        assert tokenized == []  # neither for another model nor for a plan
        fresh = plain(evaluator, facts, style, original)
    finally:
        weight.copy_(original)
    assert [values for _, chunk in second for values in chunk] == fresh
    assert first != second


def plain(evaluator, facts, style, original):
    """The same without rows that are there, chunk by chunk; ``before`` anew too, of the unedited model."""
    model, edited = evaluator.model, evaluator.model.weight(2).clone()
    metrics = []
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        model.weight(2).copy_(original)
        before = neighborhood_states(model, facts[part], style)
        model.weight(2).copy_(edited)
        for fact, values in zip(
            facts[part], evaluate(model, facts[part], before, style, evaluator.groups), strict=True
        ):
            texts = (fact.text, *fact.paraphrase_prompts)
            rows = [model.text_prompt(text, fact.target_new, fact.join) for text in texts]
            decoded = greedy_matches(model, rows).double().tolist()
            metrics.append(values | {"efficacy_greedy": decoded[:1], "generalization_greedy": decoded[1:]})
    return metrics


def test_efficacy_is_the_accuracy_of_the_rows_that_are_edited(family_model, facts):
    facts = [*facts, dataclasses.replace(facts[0], join="")]
    assert (
        accuracy(family_model, fact_rows(family_model, facts).answered).tolist()
        == efficacy(family_model, facts).tolist()
    )
