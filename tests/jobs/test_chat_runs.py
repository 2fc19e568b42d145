"""--chat from the command line to the saved edit: what a template is filled in with is fixed, kept and used again."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.commands import options
from helpers.small import CONFIGS, make_folder, make_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import jacobian_lab as jl
from jacobian_lab import cli
from jacobian_lab.model.chat import Chat
from jacobian_lab.store.run import config_of, open_run
from jacobian_lab.training.saved import saved_chat

pytestmark = pytest.mark.slow

TEMPLATE = (
    "Now: {{ strftime_now('%d %b %Y %H:%M:%S') }}\n{% for m in messages %}<bos>{{ m.role }}\n"
    "{{ m.content | trim }}<eos>\n{% endfor %}{% if add_generation_prompt %}<bos>assistant\n"
    "{% if short %}In short:\n{% endif %}{% endif %}"
).replace("{{ m.content", "{% if short and m.role == 'assistant' %}In short:\n{% endif %}{{ m.content")
DATED = ("--chat", "--chat-date", "2026-11-29T12:00:01")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return make_folder(tmp_path_factory.mktemp("model") / "m", CONFIGS["gpt2"], tokenizer)


@pytest.fixture(scope="module")
def given(arguments, model):
    return options({**arguments, "model": model, "slice": "0:2", "held_out_tokens": 64, "greedy": False})


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dated"
    cli.main(["edit", *given, *DATED, "--method", "memit", "--out", str(out)])
    return out


def test_a_template_that_writes_the_time_is_gone_on_with_later(run, given, tmp_path, capsys):
    made = open_run(run)
    assert config_of(made)["settings"]["chat"] == {"options": {}, "system": None, "date": "2026-11-29T12:00:01"}
    time.sleep(1.1)  # the template writes seconds
    cli.main(["edit", *given, *DATED, "--method", "memit", "--out", str(run)])
    cli.main(["edit-table", *given, *DATED, "--methods", "memit", "--anchors-from", str(run), "--out", str(tmp_path)])
    again = open_run(tmp_path)
    np.testing.assert_array_equal(again["anchor"], made["anchor"])
    np.testing.assert_array_equal(again["nll_new"].sel(edit="memit"), made["nll_new"].sel(edit="memit"))
    assert "got another chat.date" in refused(capsys, "edit", *given, "--chat", "--method", "memit", "--out", run)


def test_a_saved_edit_is_asked_as_it_was_made(run, model, capsys):
    path, text = run / "delta-memit.safetensors", jl.load_facts("builtin", "0:1")[0].text
    capsys.readouterr()
    cli.main(["apply", "--delta", str(path), "--model", str(model), "--prompt", text, "--tokens", "4"])
    said = capsys.readouterr()
    assert "prompts are put into the chat template with the date 2026-11-29T12:00:01, as the edit was made" in said.err
    base = jl.load_model(model, device="cpu", dtype="float64")
    for layer, delta in jl.load_delta(path, base).items():
        base.weight(layer).add_(delta)
    assert "was made with the chat template with the date 2026-11-29T12:00:01" in capsys.readouterr().err
    chatting = replace(base, chat=saved_chat(path))
    ids = list(chatting.text_prompt(text).ids)
    assert base.tokenizer.decode(ids).startswith("Now: 29 Nov 2026 12:00:01\n<bos>user\n")
    start = len(ids)
    for _ in range(4):
        ids.append(int(base.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert said.out == f"{text} →{base.tokenizer.decode(ids[start:], skip_special_tokens=True)}\n"
    jl.load_delta(path, chatting)
    assert not capsys.readouterr().err


def test_an_edit_of_an_older_version_is_refused(run, model, tmp_path, capsys):
    path = run / "delta-memit.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["config"]) | {"chat": {"head": "<bos>user\n", "tail": "\n", "join": ""}}
    old = tmp_path / "old.safetensors"
    save_file(load_file(path), old, metadata={**metadata, "config": json.dumps(config)})
    err = refused(capsys, "apply", "--delta", old, "--model", model, "--prompt", "x")
    assert "got head, join, tail, as an older version kept them: make it again" in err


def test_edits_that_were_asked_otherwise_are_asked_as_they_stand(run, given, model, tmp_path, capsys):
    cli.main(["edit", *given, "--method", "memit", "--out", str(tmp_path)])
    deltas = [str(folder / "delta-memit.safetensors") for folder in (run, tmp_path)]
    capsys.readouterr()
    cli.main(["apply", "--delta", *deltas, "--model", str(model), "--prompt", "x", "--tokens", "1"])
    err = capsys.readouterr().err
    assert f"{deltas[0]} was made with the chat template" in err
    assert "prompts are put into" not in err


def test_options_and_a_systems_turn_are_kept_too(given, model, tmp_path, capsys):
    more = ["--chat", "--chat-option", "short=true", "--chat-system", "Be brief."]
    cli.main(["check", "--model", str(model), "--device", "cpu", "--slice", "0:1", "--json", *more])
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["chat"] == {"options": {"short": True}, "system": "Be brief.", "date": "2024-07-26"}
    text = "".join(report["facts"][0]["tokens"])
    assert text.startswith("Now: 26 Jul 2024 00:00:00\n<bos>system\nBe brief.<eos>\n<bos>user\n")
    assert text.endswith("<bos>assistant\nIn short:\n")
    cli.main(["edit", *given, *more, "--method", "memit", "--out", str(tmp_path)])
    kept = saved_chat(tmp_path / "delta-memit.safetensors")
    assert kept == Chat({"short": True}, "Be brief.")


def test_how_without_whether_is_refused(given, tmp_path, capsys):
    for more in (["--chat-option", "short=true"], ["--chat-system", "x"], ["--chat-date", "2026-01-01"]):
        err = refused(capsys, "edit", *given, *more, "--out", tmp_path / "out")
        assert "expected --chat with --chat-option, --chat-system and --chat-date, got these alone" in err
    several = ["--chat", "--chat-option", "short=true", "--chat-option", "long=true"]
    assert "got 'long', which it does not read" in refused(capsys, "edit", *given, *several, "--out", tmp_path / "out")


def test_an_editors_saved_edit_keeps_its_chat(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    chat = Chat({"short": True}, date="2026-01-02")
    chatting = replace(jl.load_model(model, device="cpu"), chat=chat)
    editor = jl.Editor(
        chatting,
        jl.load_facts("builtin", "0:1"),
        layers=(1, 2),
        ridge=10.0,
        anchor=jl.AnchorSettings(lr=0.1, steps=2),
        templates=(("{}",),),
        corpus_tokens=200,
        progress=False,
    )
    for name in ("memit", "wise"):
        with editor.edit(name) as edit:
            assert saved_chat(edit.save(tmp_path / f"{name}.safetensors")) == chat
    capsys.readouterr()
    jl.load_wise(tmp_path / "wise.safetensors", replace(chatting, chat=None))
    assert "enable" not in (err := capsys.readouterr().err)
    assert "was made with the chat template with the date 2026-01-02, short=true" in err


@pytest.mark.parametrize("more", [(), DATED])
def test_a_memory_serves_the_prompt_that_it_was_trained_on(more, given, model, tmp_path, capsys):
    facts = jl.load_facts("builtin", "0:1")
    training = ["--wise.n-iter", "6", "--wise.edit-lr", "0.5"]
    one = [*given, "--slice", "0:1", *more, *training]
    cli.main(["edit", *one, "--method", "wise", "--out", str(tmp_path / "out")])
    capsys.readouterr()
    prompts = [fact.text for fact in facts]
    delta = str(tmp_path / "out" / "delta-wise.safetensors")
    cli.main(["apply", "--delta", delta, "--model", str(model), "--tokens", "2", "--prompt", *prompts])
    lines = capsys.readouterr().out.splitlines()
    assert all("(the memory served" in line for line in lines), lines
