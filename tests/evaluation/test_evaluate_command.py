"""`jacobian-lab evaluate` on saved deltas of a small model."""

import pandas as pd
import pytest
import torch

from jacobian_lab import cli
from jacobian_lab.editing.deltas import save_delta
from jacobian_lab.evaluation import tasks
from jacobian_lab.evaluation.generation import generate
from jacobian_lab.evaluation.tasks import Item, Task
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.model.loading import load_model

PLACES = ("Rome", "Paris", "Oslo", "Lima", "Bern", "Kyiv")
SMALL = Task("small", "", tuple(Item(f"{place} is the capital of", ("Italy", "France")) for place in PLACES))


@pytest.fixture
def deltas(folders, tmp_path):
    """Two saved edits: one that changes nothing, and one that breaks the model."""
    model = load_model(folders["llama"], dtype="float64", device="cpu")
    shape = model.weight(3).shape
    changes = {"nothing": torch.zeros(shape), "noise": 50 * torch.randn(shape, generator=torch.manual_seed(0))}
    for name, delta in changes.items():
        save_delta(tmp_path / f"delta-{name}.safetensors", model, {3: delta.double()}, {})
    return [tmp_path / f"delta-{name}.safetensors" for name in changes]


def test_each_edit_is_evaluated_by_itself_beside_the_unedited_model(deltas, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "WRITTEN", ())
    monkeypatch.setattr(tasks, "retained_facts", lambda model, edited: SMALL)
    options = ["--model", folders["llama"], "--device", "cpu", "--slice", "0:3", "--texts", "2", "--tokens", "4"]
    cli.main(list(map(str, ["evaluate", "--delta", *deltas, "--out", tmp_path / "out", *options])))
    out = capsys.readouterr().out
    numbers = pd.read_csv(tmp_path / "out" / "tasks.csv").set_index("edit")
    assert list(numbers.index) == ["unedited", "nothing", "noise"]
    assert numbers.loc["nothing", ["change", "lost", "gained"]].tolist() == [0, 0, 0]
    assert numbers.loc["noise", ["lost", "gained"]].sum() > 0
    written = pd.read_csv(tmp_path / "out" / "generation.csv")
    model, facts = load_model(folders["llama"], dtype="float64", device="cpu"), load_facts("builtin", "0:3")
    texts = [generated.text for generated in generate(model, facts, 4)]
    by_edit = {name: part["text"].tolist() for name, part in written.groupby("edit")}
    assert len(by_edit["noise"]) == 3
    assert by_edit["noise"] != by_edit["nothing"] == by_edit["unedited"]
    assert [str(text).lstrip("'") for text in by_edit["unedited"]] == [text.lstrip("'") for text in texts]
    page = (tmp_path / "out" / "texts.html").read_text("utf-8")
    assert page.count("<tr>") == 3  # the head, and two facts
    assert all(f'<th scope="col">{name}</th>' in page for name in numbers.index)
    assert "| unedited |" in out.replace("  ", "")


def test_without_texts_there_is_no_page(deltas, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "WRITTEN", ())
    monkeypatch.setattr(tasks, "retained_facts", lambda model, edited: SMALL)
    options = ["--model", folders["llama"], "--device", "cpu", "--texts", "0", "--out", tmp_path / "out"]
    cli.main(list(map(str, ["evaluate", "--delta", deltas[0], *options])))
    assert "[" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tasks.csv", "tasks.md", "tasks.tex"]


def test_wrong_numbers_end_with_one_line(deltas, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "--delta", str(deltas[0]), "--out", str(tmp_path / "out"), "--tokens", "0"])
    assert caught.value.code == 2
    assert "expected --texts from zero and --tokens from one, got 20 and 0: give others" in capsys.readouterr().err
