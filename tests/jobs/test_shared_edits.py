"""An edit that others can use: adapter and folder of a run, their cards, and the way to the hub."""

from types import SimpleNamespace

import pytest
import torch
from helpers.commands import options
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from jacobian_lab import cli
from jacobian_lab.jobs import methods as methods_module
from jacobian_lab.jobs.config import EditConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.methods import saved_forms
from jacobian_lab.model import hub

QUICK = {"held_out_tokens": 64, "corpus_length": 64, "greedy": False, "dtype": "float32", "slice": "0:4"}


@pytest.fixture(scope="module")
def shared_edit(arguments, tmp_path_factory):
    """A run with an adapter and a folder of one edit, and its options."""
    settings = {**arguments, **QUICK, "method": "memit+fe", "out": tmp_path_factory.mktemp("shared") / "run"}
    for save in ("lora", "folder"):
        cli.main(["edit", *options(settings), "--save", save])
    return settings


def _paths(settings):
    return [saved_forms(settings["out"], "memit+fe", save)[save] for save in ("lora", "folder")]


def _logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")).logits


def test_adapter_and_folder_are_one_model(shared_edit, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    adapter, folder = _paths(shared_edit)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(shared_edit["model"]), AutoTokenizer.from_pretrained(folder)
    before = _logits(base, tokenizer)
    whole = _logits(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    adapted = _logits(peft.PeftModel.from_pretrained(base, adapter), tokenizer)
    torch.testing.assert_close(adapted, whole, rtol=1e-5, atol=1e-5)
    assert (whole - before).abs().max() > 1e-3


def test_an_adapter_is_applied_by_its_folder(shared_edit, tmp_path, capsys):
    adapter, folder = _paths(shared_edit)
    cli.main(["apply", "--delta", str(adapter), "--model", shared_edit["model"], "--out", str(tmp_path / "out")])
    applied, whole = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", folder))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(applied.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


def test_cards_say_what_was_edited_and_at_what_price(shared_edit):
    adapter, folder = ((path / hub.CARD).read_text() for path in _paths(shared_edit))
    for card in (adapter, folder):
        assert card.startswith("---\n")
        assert "# license: yours to state" in card
        assert "| method | memit+fe |" in card
        assert "| layers | 1, 2, 3 |" in card
        assert "| λ | 10 |" in card
        assert "fingerprint (SHA-256)" in card
        assert "4 edited facts" in card
        assert "| efficacy accuracy | " in card
        for damage in ("D_KL", "Top-10", "perplexity of a held-out text"):
            assert f"\n| {damage} | " in card.partition("## Known damage")[2], damage
        assert "\n\n\n" not in card
    assert "library_name: peft" in adapter
    assert "PeftModel.from_pretrained" in adapter
    assert "disable_adapter" in adapter
    assert "library_name: transformers" in folder
    assert "in place of this folder" in folder


def test_the_three_lines_of_a_card_load_the_edit(shared_edit):
    pytest.importorskip("peft")
    for path in _paths(shared_edit):
        lines = (path / hub.CARD).read_text().partition("```python\n")[2].partition("\n```")[0].splitlines()
        assert len(lines) == 3
        names: dict[str, object] = {}
        code = "\n".join(lines).replace("this folder, or its name on the hub", str(path))
        exec(code.replace("this folder, or its name", str(path)), names)
        assert names["model"].num_parameters() > 0


def test_a_folder_is_uploaded_under_a_checked_name(shared_edit, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    adapter, _ = _paths(shared_edit)
    command = ["edit", *options(shared_edit), "--save", "lora", "--push"]
    cli.main([*command, "somebody/edited"])
    assert "Uploaded: https://huggingface.co/somebody/edited" in capsys.readouterr().out
    assert calls[0] == ("somebody/edited", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == adapter
    assert calls[1]["repo_id"] == "somebody/edited"

    def refused(words, *command):
        with pytest.raises(SystemExit):
            cli.main(list(command))
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1

    refused("user/name or organization/name, got 'a b'", *command, "a b")
    refused("expected --save lora or folder to --push, got delta", "edit", *options(shared_edit), "--push", "a/b")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    refused("log in with hf auth login", *command, "somebody/edited")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set", *command, "somebody/edited")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("method", "words"), [("rect", "for rect, which sets entries to zero"), ("wise", "matrix serves")]
)
def test_what_makes_no_adapter_is_refused_before_the_long_work(method, words, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods_module, "_edits", lambda *_: pytest.fail("long work begun"))
    settings = {**arguments, **QUICK, "method": method, "save": "lora", "out": tmp_path / "run"}
    with pytest.raises(SystemExit):
        cli.main(["edit", *options(settings)])
    err = capsys.readouterr().err
    assert words in err
    assert err.rstrip("\n").count("\n") == 0


def test_more_facts_than_an_adapter_saves_room_with_are_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(methods_module, "_edits", lambda *_: pytest.fail("long work begun"))
    config = EditConfig(**{**arguments, **QUICK, "slice": "0:22"}, save="lora", out=tmp_path / "run")
    with pytest.raises(
        methods_module.InputError, match=r"rank 21 at the most, .* got 22 for 22 facts: give save folder"
    ):
        run_job(config, progress=False)
