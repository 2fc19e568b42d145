"""Tasks against the untouched model, one whole row at a time, and the items that are shipped."""

import json
from importlib import resources

import pytest
import torch

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation import tasks
from jacobian_lab.evaluation.tasks import WRITTEN, Item, Task, builtin_tasks, retained_facts, task_scores, written_task
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.edited import sole_edit

ITEMS = (
    Item("Rome is the capital of", ("Italy", "France", "Spain")),
    Item("Rome is the capital of", ("France", "Italy", "Spain")),
    Item("Rome is the capital of", ("Spain", "France", "Italy")),
    Item("2 + 2 =", ("4", "22", "5")),
)


@torch.no_grad()
def per_token(model, item):
    """Mean −log P of each choice's tokens by the whole model, one row at a time."""
    means = []
    for choice in item.choices:
        row = model.text_prompt(item.prompt, choice)
        whole = torch.tensor([[*row.ids, row.answer[-1]]])
        log_p = model.hf(whole).logits[0, -len(row.answer) - 1 : -1].double().log_softmax(-1)
        means.append(-log_p.gather(-1, whole[0, -len(row.answer) :, None]).mean().item())
    return means


def test_the_likeliest_choice_per_token_is_the_answer(family_model):
    expected = [float(min(means) == means[0]) for means in (per_token(family_model, item) for item in ITEMS)]
    scores = task_scores(family_model, [Task("capitals", "", ITEMS), Task("none", "", ())])
    assert scores["capitals"].tolist() == expected
    assert sum(expected[:3]) == 1
    assert scores["none"].tolist() == []


@torch.no_grad()
def first_word(model, text):
    """The token that the whole model writes after a text, as a text; none if that is no piece of running text."""
    token = int(model.hf(torch.tensor([model.text_prompt(text).ids])).logits[0, -1].argmax())
    word = model.tokenizer.decode([token])
    return word if word.strip() == word and model.text_prompt(text, word, "").answer == (token,) else None


def test_a_tie_is_wrong_and_a_single_choice_has_to_be_written(tiny):
    words = {fact.text: first_word(tiny, fact.text) for fact in load_facts("builtin", "0:60")}
    text, word = next((text, word) for text, word in words.items() if word)
    task = Task("odd", "", (Item(text, ("x", "x")), Item(text, ("unlikely",)), Item(text, (word,), "")))
    assert task_scores(tiny, [task])["odd"].tolist() == [0, 0, 1]
    assert task.chance == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_items_are_whole_and_apart(name):
    task = written_task(name)
    text = resources.files("jacobian_lab.evaluation").joinpath(f"data/{name}.json").read_text("utf-8")
    assert len(json.loads(text)["items"]) == len(task.items) >= 30
    assert len({item.prompt for item in task.items}) == len(task.items)
    assert all(len(set(item.choices)) == 4 for item in task.items)
    assert task.chance == 0.25


def known_to(monkeypatch, *ids):
    """Let a model answer some built-in facts alone."""
    texts = [fact.text for fact in load_facts() if fact.id in ids]

    def accuracy(model, rows):
        prompts = [model.text_prompt(text).ids for text in texts]
        return torch.tensor([row.ids[: row.prompt_length] in prompts for row in rows])

    monkeypatch.setattr(tasks, "accuracy", accuracy)


def test_facts_are_those_that_the_model_answers_and_nobody_edits(tiny, monkeypatch):
    known_to(monkeypatch, "capital/France", "capital/Italy", "currency/France")
    edited = [Fact("mine", "france", "{} is famous for", "tea")]
    assert [item.choices for item in retained_facts(tiny).items] == [("Paris",), ("Rome",), ("euro",)]
    first, *others = builtin_tasks(tiny, edited)
    assert [item.choices for item in first.items] == [("Rome",)]
    assert [task.name for task in others] == list(WRITTEN)
    with sole_edit(tiny), pytest.raises(InputError, match="expected the unedited model to choose built-in facts by"):
        builtin_tasks(tiny, edited)


@pytest.mark.slow
def test_the_embedded_model_does_each_task_above_chance_and_not_wholly(real):
    suite = builtin_tasks(real)
    scores = {name: values.mean().item() for name, values in task_scores(real, suite).items()}
    assert scores["facts"] == 1
    assert all(0.5 < scores[name] < 1 for name in WRITTEN)
