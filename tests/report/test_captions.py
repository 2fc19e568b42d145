"""Captions say all that decided a run's numbers, and no more."""

import pytest
from helpers.runs import COORDINATES, make_run

from jacobian_lab.report.captions import model_name
from jacobian_lab.report.results import Results

pytestmark = pytest.mark.slow

EDITING = {
    "templates": [["{}"], ["So. {}", "Then. {}"]],
    "corpus": {"digest": "d", "length": 256, "tokens": 30720},
    "edits_per_batch": None,
    "training": {"wise": {"edited_at_once": 1}, "rledit": {"edited_at_once": 20}},
}
PROVENANCE = {"ridge": 15000.0, "corpus": "/somewhere/python-docs", "templates": "sampled with seed 0"}
PLAIN = "Made with float32, λ = 15000, C of python-docs (30,720 tokens), 3 context templates (sampled with seed 0)"
JOINT = f"{PLAIN}, closed-form edits in one batch"


@pytest.mark.parametrize("table", ["table3", "table4", "table6", "table7", "edit_table", "gains", "damage"])
def test_tables_of_methods_say_all_that_decides_them(table, tmp_path):
    run = Results(make_run(tmp_path / "run", "edit_table", EDITING, PROVENANCE))
    methods = {row.split(",")[0] for row in run.table(table).index}
    texts = {"wise": ", wise fact by fact", "rledit": ", rledit in batches of 20"}
    assert f" {JOINT}{''.join(text for name, text in texts.items() if name in methods)}." in run.caption(table)


def test_batches_chat_and_other_dtypes_are_said(tmp_path):
    other = {
        "dtype": "bfloat16",
        "anchor": {"lr": 0.5, "steps": 25, "stop_loss": 0.05, "dtype": "float32"},
        "chat": {"head": "<user>"},
        "corpus": {"published": "d"},
        "edits_per_batch": 16,
        "training": {"rledit": {}},
    }
    provenance = PROVENANCE | {"ridge": 0.5, "corpus": "moments/memit"}
    run = Results(make_run(tmp_path / "run", "edit_table", EDITING | other, provenance))
    assert (
        "Made with bfloat16 (anchors in float32), prompts in the model's chat template, λ = 0.5, C as published "
        "(memit), 3 context templates (sampled with seed 0), closed-form edits in batches of 16, measured after the "
        "last batch, rledit in batches of its own."
    ) in run.caption("table3")


def test_a_frontier_has_its_ridges_in_the_rows(tmp_path):
    run = Results(make_run(tmp_path / "run", "frontier", EDITING | {"ridges": [10.0, 100.0]}, PROVENANCE))
    for name in ("frontier", "own_ridges"):
        assert f" {JOINT.replace(' λ = 15000,', '')}." in run.caption(name)


@pytest.mark.parametrize("kind", COORDINATES)
def test_every_caption_with_facts_says_the_dtype(kind, results):
    run = results[kind]
    for name in run.tables:
        if "6 facts" in run.caption(name):
            assert "Made with float32" in run.caption(name), name


@pytest.mark.parametrize("name", ["table1", "table2", "table5", "efficacy", "theorem2"])
def test_tables_of_schemes_say_how_they_were_made(name, tmp_path):
    settings = {name: EDITING[name] for name in ("templates", "corpus")}
    run = Results(make_run(tmp_path / "run", "tables", settings, PROVENANCE))
    assert f" {PLAIN}." in run.caption(name)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/somebody/models/a-b.gguf", "a-b.gguf"),
        ("models/a.gguf", "a.gguf"),
        ("/x/folder", "folder"),
        ("a/b", "a/b"),
    ],
)
def test_a_model_of_a_file_is_named_without_its_folder(model, name, tmp_path):
    run = Results(make_run(tmp_path / "run", "jacobian", provenance={"model": model}))
    assert model_name(run.dataset) == name
