"""The adapter to lm-evaluation-harness against the harness on the plain transformers model, without a network."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from jacobian_lab.errors import InputError
from jacobian_lab.harness import Harness
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
def share_right(model):
    """Accuracy by the summed log P of each choice, one whole row at a time."""
    documents = [json.loads(line) for line in (TASKS / "capitals.json").read_text("utf-8").splitlines()]
    right = 0
    for document in documents:
        sums = []
        for choice in document["choices"]:
            row = model.text_prompt(document["prompt"], choice)
            whole = torch.tensor([[*row.ids, row.answer[-1]]])
            log_p = model.hf(whole).logits[0, -len(row.answer) - 1 : -1].log_softmax(-1)
            sums.append(log_p.gather(-1, whole[0, -len(row.answer) :, None]).sum())
        right += int(torch.stack(sums).argmax()) == document["answer"]
    return right / len(documents)


@pytest.mark.slow
def test_the_model_is_evaluated_as_it_is_edited(task, folders):
    model = load_model(folders["gpt2"], dtype="float64", device="cpu")
    unedited = share_right(model)
    for seed in range(20):
        with torch.no_grad():
            model.weight(5).add_(50 * torch.randn(model.weight(5).shape, generator=torch.manual_seed(seed)))
        if share_right(model) != unedited:
            break
    (accuracy,) = [score.value for score in Harness((task,)).scores(model) if score.metric == "acc"]
    assert accuracy == pytest.approx(share_right(model)) != unedited


def test_tasks_that_there_are_not_are_named(monkeypatch):
    monkeypatch.setattr(Harness, "_manager", SimpleNamespace(match_tasks=lambda names: set(names) & {"arc_easy"}))
    with pytest.raises(InputError, match=r"got no_such_task, nowhere\.yaml: lm_eval ls tasks lists them"):
        Harness(("arc_easy", "no_such_task", "nowhere.yaml"))
    with pytest.raises(InputError, match="got none"):
        Harness(())
