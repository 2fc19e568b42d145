"""The adapter to lm-evaluation-harness against the harness on the plain transformers model, without a network."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from jacobian_lab.errors import InputError
from jacobian_lab.harness import Harness, wrapped
from jacobian_lab.model.loading import load_model

TASKS = ROOT / "tests" / "helpers" / "harness"


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"expected the package lm_eval .*: pip install 'jacobian_lab\[harness\]'"):
        Harness(("hellaswag",))


@pytest.fixture
def task(monkeypatch, tmp_path):
    """The local task, read from its own folder; the harness caches its data aside."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return "capitals.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_unedited_model_scores_as_the_plain_transformers_model(family, task, folders):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = load_model(folders[family], dtype="float64", device="cpu")
    padding = model.tokenizer.pad_token, model.tokenizer.padding_side
    scores = {score.metric: score for score in Harness((task,)).scores(model)}
    plain = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    wrapped = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=8)
    expected = simple_evaluate(model=wrapped, tasks=[task], task_manager=TaskManager(include_defaults=False))
    values = expected["results"]["lab_capitals"]
    assert {name: score.value for name, score in scores.items()} == {
        name: values[f"{name},none"] for name in ("acc", "acc_norm")
    }
    assert scores["acc"].stderr == values["acc_stderr,none"]
    assert (scores["acc"].task, scores["acc"].documents) == ("lab_capitals", 10)
    assert (model.tokenizer.pad_token, model.tokenizer.padding_side) == padding


@torch.no_grad()
def log_p(model, text, answer):
    """Log P of an answer by the whole model, one row at a time."""
    row = model.text_prompt(text, answer)
    whole = torch.tensor([[*row.ids, row.answer[-1]]])
    log_probabilities = model.hf(whole).logits[0, -len(row.answer) - 1 : -1].log_softmax(-1)
    return log_probabilities.gather(-1, whole[0, -len(row.answer) :, None]).sum().item()


@pytest.mark.slow
def test_the_model_is_evaluated_as_it_is_edited(folders):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    model = load_model(folders["gpt2"], dtype="float64", device="cpu")
    documents = [json.loads(line) for line in (TASKS / "capitals.json").read_text("utf-8").splitlines()]
    pairs = [(document["prompt"], choice) for document in documents for choice in document["choices"]]
    requests = [Instance("loglikelihood", {}, (text, f" {answer}"), 0) for text, answer in pairs]

    def by_the_harness():
        return [value for value, _ in wrapped(model, batch_size=4).loglikelihood(requests)]

    unedited = by_the_harness()
    assert unedited == pytest.approx([log_p(model, *pair) for pair in pairs], rel=1e-5)
    with torch.no_grad():
        model.weight(3).add_(torch.randn(model.weight(3).shape, generator=torch.manual_seed(0)))
    edited = by_the_harness()
    assert edited == pytest.approx([log_p(model, *pair) for pair in pairs], rel=1e-5)
    assert max(abs(old - new) for old, new in zip(unedited, edited, strict=True)) > 0.01


def test_tasks_that_there_are_not_are_named(monkeypatch):
    monkeypatch.setattr(Harness, "_manager", SimpleNamespace(match_tasks=lambda names: set(names) & {"arc_easy"}))
    with pytest.raises(InputError, match=r"got no_such_task, nowhere\.yaml: lm_eval ls tasks lists them"):
        Harness(("arc_easy", "no_such_task", "nowhere.yaml"))
    with pytest.raises(InputError, match="got none"):
        Harness(())
