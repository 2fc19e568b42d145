"""Records that the model, or what is asked of it, cannot take: all of them listed, or gone on without."""

import json

import pytest
from helpers.commands import options

from jacobian_lab import cli
from jacobian_lab.jobs import setup
from jacobian_lab.store.run import config_of, open_run

GOOD = {
    "subject": "Mira Vale",
    "prompt": "{} was born in",
    "target_new": "Rome",
    "target_true": "Oslo",
    "neighborhood_prompts": ["Ada Lovelace was born in"],
}
LONG = "x y " * 200
RECORDS = [
    {**GOOD, "id": "good"},
    {**GOOD, "id": "paraphrase", "subject": "Bea Hart", "paraphrase_prompts": [LONG + "Bea Hart was born in"]},
    {**GOOD, "id": "neighbour", "subject": "Cleo Marsh", "neighborhood_prompts": [LONG + "Ada was born in"]},
    {**GOOD, "id": "context", "subject": "Dora " + "Vale " * 55},
    {**GOOD, "id": "special", "subject": "Eve<eos>"},
    {**GOOD, "id": "probe", "subject": "Fay Lorne", "probes": [{"group": "g", "prompt": LONG, "answers": ["x"]}]},
]
"""The fourth is too long in a context alone."""


@pytest.fixture
def given(arguments, tmp_path):
    facts, templates = tmp_path / "facts.json", tmp_path / "templates.json"
    facts.write_text(json.dumps(RECORDS))
    templates.write_text(json.dumps([["{}"], ["word " * 50 + ". {}"]]))
    return {**arguments, "slice": None, "facts": facts, "templates": templates}


@pytest.mark.parametrize(
    ("command", "more", "left"),
    [
        ("tables", ["--schemes", "one-layer", "--survey", "none"], ["good", "paraphrase", "neighbour", "probe"]),
        ("edit-table", ["--methods", "onelayer", "--held-out-tokens", "100"], ["good"]),
        ("layer-count", ["--schemes", "backward-full", "--max-layers", "1"], ["good", "probe"]),
    ],
)
def test_what_a_command_cannot_use_is_listed_or_left_out(command, more, left, given, tmp_path, capsys):
    run = [command, *options({**given, "out": tmp_path / "run"}), *more]
    with pytest.raises(SystemExit) as caught:
        cli.main(run)
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert told.count("\n") == 1
    assert "record 4" in told
    cli.main([*run, "--on-bad-record", "skip"])
    told = capsys.readouterr().err
    dataset = open_run(tmp_path / "run")
    assert list(dataset["fact"].values) == left
    skipped = config_of(dataset)["provenance"]["facts"]["skipped"]
    assert [line.partition(":")[0] for line in skipped] == [
        f"record {place}" for place, record in enumerate(RECORDS) if record["id"] not in left
    ]
    assert f"records skipped: {len(skipped)}" in told


def test_all_that_cannot_be_asked_are_listed_with_their_places(given, tmp_path, capsys):
    (tmp_path / "facts.json").write_text(json.dumps(RECORDS[:4]))
    with pytest.raises(SystemExit):
        cli.main(["edit-table", *options({**given, "out": tmp_path / "run"}), "--methods", "onelayer"])
    told = capsys.readouterr().err
    assert "got 3 records that cannot be used" in told
    for place in (1, 2, 3):
        assert f"record {place}: expected prompts of at most 256 tokens" in told


def test_a_corpus_that_cannot_be_used_ends_before_the_model_is_loaded(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup, "load_model", lambda *_: pytest.fail("the model was loaded"))
    for name, content in (("none.txt", None), ("empty.txt", b"\n\n"), ("other.txt", b"\xff\xfe\x00")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        corpus = str(path) if content is not None else "no/such/thing"
        with pytest.raises(SystemExit) as caught:
            cli.main(["tables", *options({**arguments, "corpus": corpus, "out": tmp_path / "run"})])
        assert caught.value.code == 2
        assert "expected" in capsys.readouterr().err
