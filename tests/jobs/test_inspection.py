"""jacobian-lab check: what would be edited, before anything is."""

import json
import math
import os
from functools import cache

import pytest
import torch
from helpers.kinds import KINDS, tokenizer_of
from helpers.published import PUBLISHED
from helpers.small import CONFIGS, FAMILIES, make_folder, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BloomConfig

from jacobian_lab import cli
from jacobian_lab.editor import Editor
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs import setup
from jacobian_lab.jobs.config import JacobianConfig, SchemesConfig
from jacobian_lab.jobs.inspection import NEAR, near_keys
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.model.loading import load_model
from jacobian_lab.store.run import open_run

GOOD = {"id": "good", "subject": "Mira Vale", "prompt": "{} was born in", "target_new": "Rome", "target_true": "Oslo"}
LISTS = ("conflicts", "duplicates", "refused", "near")


@pytest.fixture
def check(capsys):
    """Run the command, read what it prints, and hold its status against that; `None`: it may be either."""

    def run(*arguments, model="smollm2-135m", status=0):
        options = ["check", "--json", "--device", "cpu", "--model", str(model), *map(str, arguments)]
        try:
            cli.main(options)
            code = 0
        except SystemExit as ended:
            code = ended.code
        report = json.loads(capsys.readouterr().out)
        assert code == int(not report["passed"])
        assert status in {None, code}
        return report

    return run


def write(path, records):
    path.write_text(json.dumps(records), "utf-8")
    return path


@pytest.mark.parametrize("facts", ["0:32", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, facts, folders, check):
    report = check(*(["--slice", facts] if facts else []), model=folders[family])
    assert report["model"]["refused"] is None
    assert all(each["passed"] for each in report["model"]["checks"])
    assert {each["check"] for each in report["model"]["checks"]} == {
        "weights",
        "layers",
        "dtype",
        "tokens",
        "edits",
        "replay",
    }
    assert len(report["facts"]) == len(load_facts("builtin", facts))
    assert not any(report[name] for name in ("conflicts", "duplicates", "refused", "unasked"))
    for fact in report["facts"]:
        assert fact["tokens"][fact["decisive"]].strip()
        assert not fact["subject"].isascii() or fact["subject"] in "".join(fact["tokens"][: fact["decisive"] + 1])
        assert "".join(fact["answer_tokens"]) == f" {fact['answer']}"
        assert fact["rank"] >= 1
        assert 0 <= fact["probability"] <= 1
        assert isinstance(fact["known"], bool)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(kind, tmp_path, check):
    folder = make_folder(tmp_path / "m", CONFIGS["llama"], tokenizer_of(kind))
    report = check(model=folder, status=None)
    assert report["model"]["refused"] is None
    assert len(report["facts"]) + len(report["refused"]) == len(load_facts())
    assert all("unknown pieces" in each["reason"] for each in report["refused"])
    assert len(report["facts"]) > 200
    for fact in report["facts"]:
        assert "".join(fact["answer_tokens"]).strip() == fact["answer"]
        written = "".join(fact["tokens"]).removeprefix("<s>").strip()
        assert written == fact["prompt"] or not fact["prompt"].isascii()  # fragments of characters have names


def test_facts_that_can_be_edited_and_not_evaluated_are_named(tmp_path, folders, check):
    long = {**GOOD, "id": "long", "subject": "Bea", "paraphrase_prompts": ["x y " * 300 + "Bea was born in"]}
    report = check("--facts", write(tmp_path / "f.json", [GOOD, long]), model=folders["gpt2"], status=1)
    assert [fact["id"] for fact in report["facts"]] == ["good", "long"]
    (unasked,) = report["unasked"]
    assert (unasked["place"], unasked["id"]) == ("record 1", "long")
    assert "expected prompts of at most 256 tokens" in unasked["reason"]


def test_rank_probability_and_knowledge_are_the_models_own(folders, check, tmp_path):
    from jacobian_lab.model.loading import load_model

    model = load_model(folders["gpt2"], device="cpu")
    (fact,) = check("--slice", "3:4", model=folders["gpt2"])["facts"]
    ids = fact["token_ids"] + fact["answer_ids"]
    log_p = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    first = len(fact["token_ids"]) - 1
    own = [float(log_p[first + j, token]) for j, token in enumerate(fact["answer_ids"])]
    assert fact["probability"] == pytest.approx(math.exp(sum(own)), rel=1e-5)
    assert fact["rank"] == int((log_p[first] > own[0]).sum()) + 1
    assert not fact["known"]
    says = int(log_p[first].argmax())
    written, name = model.tokenizer.decode([says]), model.tokenizer.convert_ids_to_tokens(says)
    assert fact["says"] == (name if "\ufffd" in written else written)


@pytest.mark.real
def test_what_the_model_says_is_known(check, tmp_path):
    record = {"subject": "France", "prompt": "The capital of {} is the city of", "target_new": "Paris"}
    (fact,) = check("--facts", write(tmp_path / "f.json", [record]))["facts"]
    assert (fact["known"], fact["rank"], fact["answer_tokens"]) == (True, 1, [" Paris"])


def test_conflicts_duplicates_and_bad_records_are_listed_side_by_side(tmp_path, folders, check):
    records = [
        GOOD,
        {**GOOD, "id": "other", "target_new": "Bath"},
        {**GOOD, "id": "again"},
        {**GOOD, "id": "twin", "subject": "Ada"},
        {**GOOD, "id": "twin 2", "subject": "Ada"},
        {**GOOD, "id": "empty", "target_new": ""},
        {**GOOD, "id": "special", "subject": "Ada<eos>"},
        {**GOOD, "id": "long", "subject": "Bea " + "x y " * 300},
        {**GOOD, "id": "misspelt", "subject": "Cleo", "paraphrases": ["x"]},
    ]
    report = check("--facts", write(tmp_path / "f.json", records), model=folders["gpt2"], status=1)
    assert [each["ids"] for each in report["conflicts"]] == [["good", "other", "again"]]
    assert report["conflicts"][0]["answers"] == ["Rome", "Bath", "Rome"]
    assert [each["ids"] for each in report["duplicates"]] == [["twin", "twin 2"]]
    assert [each["id"] for each in report["refused"]] == ["empty", "special", "long"]
    assert all(each["reason"].startswith("expected") for each in report["refused"])
    assert report["unknown_fields"] == {"paraphrases": 1}
    assert [fact["id"] for fact in report["facts"]] == ["good", "other", "again", "twin", "twin 2", "misspelt"]


def test_a_file_without_one_usable_record_is_reported_too(tmp_path, folders, check):
    report = check("--facts", write(tmp_path / "f.json", [{**GOOD, "target_new": ""}]), model=folders["gpt2"], status=1)
    assert (report["facts"], len(report["refused"])) == ([], 1)


def test_keys_that_are_nearly_the_same_are_named(tiny):
    facts = [
        Fact("a", "the old tower", "Where is {} in", "Rome"),
        Fact("b", "the old tower", "Where is {} built by", "Bath"),
        Fact("c", "Ada Lovelace", "{} wrote about", "x"),
    ]
    (pair,) = near_keys(tiny, facts, (1, 2, 3))
    assert (pair["ids"], pair["same"], pair["answers"]) == (["a", "b"], True, ["Rome", "Bath"])
    assert pair["cosine"] > NEAR
    assert near_keys(tiny, facts[:1], (1, 2)) == []


def test_a_model_that_is_refused_says_why(tmp_path, folders, check):
    BloomConfig(vocab_size=32, hidden_size=16, n_layer=1).save_pretrained(tmp_path / "bloom")
    report = check("--slice", "0:2", model=tmp_path / "bloom", status=1)
    assert "'bloom', whose MLP adds the residual stream itself" in report["model"]["refused"]
    assert report["facts"] == []
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.2.mlp.c_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "NaN or infinity" in check("--slice", "0:2", model=folder, status=1)["model"]["refused"]
    report = check("--slice", "0:2", "--layers", "4-9", model=folders["gpt2"], status=1)
    assert "expected layers from 0 to 5" in report["model"]["refused"]


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mixtral", "whose blocks have several MLPs"), ("opt", "whose MLPs take the tokens of all rows at once")],
)
def test_some_models_are_looked_at_and_not_edited(
    family, reason, tmp_path, folders, check, corpus_file, templates_file
):
    if family not in CONFIGS:
        pytest.skip(f"this version of transformers has no {family}")
    report = check("--slice", "0:3", model=folders[family], status=1)
    failed = [each["check"] for each in report["model"]["checks"] if not each["passed"]]
    assert (failed, len(report["facts"])) == (["edits"], 3)
    assert family != "mixtral" or report["near"] == []
    assert reason in report["model"]["refused"]
    options = {"model": str(folders[family]), "slice": "0:3", "device": "cpu", "layers": "1-3"}
    files = {"corpus": str(corpus_file), "templates": templates_file}
    with pytest.raises(InputError, match=rf"one output projection .* a {family}, {reason}") as caught:
        run_job(SchemesConfig(**options, **files, out=tmp_path / "schemes"), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "schemes").exists()
    model = load_model(folders[family], device="cpu")
    with pytest.raises(InputError, match=f"a {family}, {reason}"):
        Editor(model, load_facts("builtin", "0:2"))
    run = open_run(run_job(JacobianConfig(**options, out=tmp_path / "jacobians"), progress=False))
    assert run["lambda_min"].notnull().all()


def test_a_replay_that_fails_is_reported(folders, check, monkeypatch):
    from jacobian_lab.model.language_model import LanguageModel

    original = LanguageModel.positional
    monkeypatch.setattr(
        LanguageModel, "positional", lambda self, hidden, at, kind: original(self, hidden, at * 2, kind)
    )
    report = check("--slice", "0:2", model=folders["llama"], status=1)
    (replay,) = [each for each in report["model"]["checks"] if each["check"] == "replay"]
    assert not replay["passed"]
    assert "to give the hidden states" in report["model"]["refused"]
    assert len(report["facts"]) == 2


@pytest.mark.slow
def test_the_embedded_instruct_model_chats(check):
    report = check("--slice", "0:4", "--chat")
    plain = check("--slice", "0:4")
    assert report["model"]["refused"] is None
    for fact, bare in zip(report["facts"], plain["facts"], strict=True):
        text = "".join(fact["tokens"])
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith(f"<|im_start|>user\n{fact['prompt']}<|im_end|>\n<|im_start|>assistant\n")
        assert fact["tokens"][fact["decisive"]].strip() == bare["tokens"][bare["decisive"]].strip()
        assert "".join(fact["answer_tokens"]) == fact["answer"]


def test_text_says_what_json_says(folders, tmp_path, capsys):
    records = [GOOD, {**GOOD, "id": "other", "target_new": "Bath"}, {**GOOD, "id": 3, "prompt": "no place"}]
    out = tmp_path / "out"
    thesis = out / ".partial-notes"
    thesis.mkdir(parents=True)
    os.utime(thesis, (1, 1))
    facts = str(write(tmp_path / "f.json", records))
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--device", "cpu", "--model", str(folders["llama"]), "--facts", facts, "--out", str(out)])
    assert ended.value.code == 1
    text = capsys.readouterr().out
    assert "ok   replay" in text
    assert "⟦" in text
    assert "2 facts can be edited" in text
    assert "refused: record 2: expected one {} in the prompt" in text
    assert "conflict: 'Mira Vale was born in' → Rome / Bath (record 0, record 1)" in text
    assert "near: good and other have the same key (Rome / Bath)" in text
    assert thesis.is_dir()
    assert text.splitlines()[-1] == (
        "FAILED: facts that can be edited 2, records refused 1, not to be evaluated 0, conflicts 1, duplicates 0, with "
        "the true answer's last token 0, checks of the model that fail 0"
    )
    written = json.loads((out / "check.json").read_text("utf-8"))
    assert written["facts"][0]["id"] == "good"
    assert (written["passed"], written["counts"]["conflicts"]) == (False, 1)


def test_the_status_says_whether_all_can_be_edited(tmp_path, folders, check):
    model, other = folders["gpt2"], {**GOOD, "id": "other", "subject": "Ada"}
    report = check("--facts", write(tmp_path / "f.json", [GOOD, other, {**other, "id": "again"}]), model=model)
    assert report["passed"]
    assert report["counts"] == {
        "facts": 3,
        "refused": 0,
        "unasked": 0,
        "conflicts": 0,
        "duplicates": 1,
        "same_last_token": 0,
        "failed_checks": 0,
    }
    conflict = check(
        "--facts", write(tmp_path / "f.json", [GOOD, {**GOOD, "id": 2, "target_new": "x"}]), model=model, status=1
    )
    assert (conflict["counts"]["conflicts"], conflict["passed"]) == (1, False)
    special = check("--facts", write(tmp_path / "f.json", [GOOD, {**other, "subject": "<eos>"}]), model=model, status=1)
    assert (special["counts"]["refused"], special["counts"]["failed_checks"]) == (1, 1)


@pytest.mark.parametrize(
    "options",
    [
        ("--layers", "x"),
        ("--protocol", "x"),
        ("--chat-option", "x=1"),
        ("--chat", "--chat-option", "x"),
        ("--device", "x"),
        ("--device", "cuda:9"),
        ("--facts", "nowhere.json"),
        ("--model", "nowhere"),
        ("--model", "nowhere.gguf"),
        ("--unheard-of",),
    ],
)
def test_bad_usage_is_no_finding(options, folders, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--json", "--device", "cpu", "--model", str(folders["gpt2"]), *options])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err


def test_new_answers_that_end_as_the_true_ones_do_are_named(tmp_path, folders, check, capsys):
    same = {**GOOD, "id": "same", "subject": "Ada", "target_new": "the old river", "target_true": "a new river"}
    none = {**GOOD, "id": "none", "subject": "Bea", "target_true": None}
    path = write(tmp_path / "f.json", [GOOD, same, none])
    report = check("--facts", path, model=folders["gpt2"])
    (named,) = report["same_last_token"]
    assert named["id"] == "same"
    assert "river".endswith(named["token"].strip())
    assert (report["passed"], report["counts"]["same_last_token"]) == (True, 1)
    cli.main(["check", "--device", "cpu", "--model", str(folders["gpt2"]), "--facts", str(path)])
    text = capsys.readouterr().out
    assert f"new answers that end in the last token of the true one: same ({named['token']!r})" in text
    assert text.splitlines()[-1].startswith("passed: facts that can be edited 3, records refused 0")


def test_a_line_is_a_line_whatever_the_answer(tmp_path, folders, capsys):
    answers = ("area(r, *,\n    unit='m')", "a & 5 % of\tb_c")
    facts = [{**GOOD, "id": i, "subject": f"Ada{i}", "target_new": text} for i, text in enumerate(answers)]
    path = str(write(tmp_path / "f.json", [*facts, {**facts[0], "id": 9, "prompt": "{} was\nborn in"}]))
    cli.main(["facts", "--facts", path])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[2].partition(" -> ")[2] for line in lines] == [
        "area(r, *,⏎    unit='m')",
        "a & 5 % of⇥b_c",
        "area(r, *,⏎    unit='m')",
    ]
    cli.main(["check", "--device", "cpu", "--model", str(folders["gpt2"]), "--facts", path])
    assert sum(line.startswith(("  0: ", "  1: ", "  9: ")) for line in capsys.readouterr().out.splitlines()) == 3


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path, check):
    folder = make_folder(tmp_path / "m", CONFIGS["llama"], make_tokenizer())
    report = check("--slice", "0:2", "--chat", model=folder, status=1)
    assert "expected a model with a chat template" in report["model"]["refused"]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("smollm2-135m", marks=pytest.mark.slow),
        *FAMILIES,
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_one_file_of_every_layout(model, folders, tmp_path, check, monkeypatch):
    monkeypatch.setattr(setup, "load_model", cache(setup.load_model))
    if model in KINDS:
        model = make_folder(tmp_path / "m", CONFIGS["llama"], tokenizer_of(model))
    for layout, record in {**PUBLISHED, "own": {**GOOD, "paraphrase_prompts": ["Mira Vale comes from"]}}.items():
        path = write(tmp_path / f"{layout}.json", [record])
        report = check("--facts", path, model=folders.get(model, model), status=None)
        unwritable = [each for each in report["refused"] if "unknown pieces" in each["reason"]]
        assert report["facts"] or unwritable, layout
        assert report["refused"] == unwritable, layout
        assert not unwritable or model not in {"smollm2-135m", *FAMILIES}, layout
        assert not any(report[name] for name in ("conflicts", "duplicates", "unknown_fields")), layout
        for fact in report["facts"]:
            assert {"id", "tokens", "decisive", "answer_tokens", "known"} <= fact.keys()
            assert "".join(fact["answer_tokens"]).strip() == fact["answer"]
