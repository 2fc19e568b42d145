"""Protocols: the literature's, measured ones, and files."""

import json

import pytest

from jacobian_lab import cli
from jacobian_lab.editor import Editor
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.setup import check_options, open_model
from jacobian_lab.model import protocols
from jacobian_lab.model.families import KNOWN, Defaults
from jacobian_lab.model.protocols import Protocol, defaults_of, literature, shelf
from jacobian_lab.training.settings import RLEditConfig

PROTOCOL = Protocol(
    model="my-model",
    fingerprint="f" * 64,
    method="memit+fe",
    layers=(1, 2),
    ridge=210.0,
    anchor_lr=0.2,
    anchor_steps=12,
    criterion="the best",
    because="Layers 1-2 because they are.",
    run="runs/tune",
    facts="d" * 24,
    version="0.2.0",
)


@pytest.fixture
def path(tmp_path):
    PROTOCOL.write(tmp_path / "protocol-memit+fe.json")
    return tmp_path / "protocol-memit+fe.json"


@pytest.fixture
def shelved(path, tmp_path, monkeypatch):
    folder = tmp_path / "measured" / "my-model"
    folder.mkdir(parents=True)
    path.rename(folder / path.name)
    monkeypatch.setattr(protocols, "SHELF", tmp_path / "measured")


def test_a_file_is_what_was_written(path):
    assert Protocol.read(path) == PROTOCOL
    assert defaults_of(str(path)) == Defaults((1, 2), 210.0, 0.2, 12)


def test_an_editor_takes_a_file_and_what_is_given_goes_before_it(path, tiny, facts, capsys):
    editor = Editor(tiny, facts, protocol=str(path), progress=False)
    assert (editor.layers, editor.anchor.lr, editor.anchor.steps) == ((1, 2), 0.2, 12)
    assert "λ = 210" in repr(editor)
    assert "was measured on my-model" in capsys.readouterr().err
    assert "layers 2-3, λ = 3" in repr(Editor(tiny, facts, layers=(2, 3), ridge=3.0, protocol=str(path)))


def test_the_shelf_has_files_by_model_and_method(shelved, capsys):
    assert list(shelf()) == ["my-model/memit+fe"]
    assert defaults_of("My-Model/memit+FE").layers == (1, 2)
    cli.main(["models"])
    line = "measured my-model/memit+fe: layers 1-2, ridge 210, anchor lr 0.2, 12 steps; runs/tune"
    assert line in capsys.readouterr().out.splitlines()


def test_every_file_of_the_shelf_can_be_read():
    for name, path in shelf().items():
        measured = Protocol.read(path)
        assert name.endswith(f"/{measured.method}")
        assert path.parent.name == path.parent.name.lower()


def test_the_literature_is_a_known_models_name_or_the_model_of_a_measured_one():
    assert literature("GPT2-XL") == literature("gpt2-xl/memit") == "gpt2-xl"
    assert literature("my-model/memit") == literature("a/file.json") == literature(None) == ""
    assert defaults_of("GPT2-XL") == KNOWN["gpt2-xl"].defaults


def test_a_file_leaves_the_trainings_of_the_models_own_literature(path, tiny):
    assert RLEditConfig().resolved(tiny, str(path)) == RLEditConfig().resolved(tiny)
    assert RLEditConfig().resolved(tiny, "gpt2-xl") != RLEditConfig().resolved(tiny)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [2, 1]}, "expected ascending layers as layers in --protocol .*, got \\[2, 1\\]"),
        ({"layers": []}, "expected ascending layers"),
        ({"layers": [True, 2]}, "expected ascending layers"),
        ({"layers": [-1, 2]}, "expected ascending layers"),
        ({"ridge": 0}, "expected a number above zero as ridge"),
        ({"ridge": True}, "expected a number above zero as ridge"),
        ({"anchor_lr": "fast"}, "expected a number above zero as anchor_lr .* got 'fast'"),
        ({"anchor_steps": 1}, "expected a whole number above 1 as anchor_steps"),
        ({"method": 3}, "expected a text as method"),
        ({"lambda": 3}, "got an unknown 'lambda'"),
        ({"ridge": ...}, "got no 'ridge'"),
        ({"format": "other"}, "expected the format 'jacobian_lab protocol 1'"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_line(change, words, path):
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with pytest.raises(InputError) as caught:
        check_options(SchemesConfig(protocol=str(path)))
    assert "\n" not in caught.value.by_option()
    with pytest.raises(InputError, match=words):
        raise InputError(caught.value.by_option())


@pytest.mark.parametrize("text", ["{", "[]", "3", "\x00", None])
def test_what_is_no_protocol_is_refused(text, path):
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(InputError, match="in protocol"):
        defaults_of(str(path))


def test_an_unknown_name_is_refused_with_those_that_there_are(shelved):
    with pytest.raises(
        InputError, match=r"expected a protocol of llama.*, my-model/memit\+fe, or a file .* got 'gpt9'"
    ):
        check_options(SchemesConfig(protocol="gpt9"))


def test_another_models_protocol_is_told_and_its_layers_are_checked(arguments, path, capsys):
    model, layers = open_model(SchemesConfig(model=arguments["model"], protocol=str(path), dtype="float64"))
    assert layers == (1, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if "was measured on" in line]
    assert len(said) == 1
    assert f"was measured on my-model (ffffffffffff), not on {model.name} ({model.fingerprint[:12]})" in said[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": model.fingerprint}))
    open_model(SchemesConfig(model=arguments["model"], protocol=str(path), dtype="float64"))
    assert "was measured on" not in capsys.readouterr().err
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": [1, 77]}))
    with pytest.raises(InputError, match="expected layers from 0 to"):
        open_model(SchemesConfig(model=arguments["model"], protocol=str(path), dtype="float64"))
