"""Saved edits: what is written is what was there, whatever happens to the file afterwards."""

import json
import shutil

import pytest
import torch
from transformers import GenerationConfig

from jacobian_lab.editing.deltas import add_delta, load_delta, save_delta
from jacobian_lab.editing.folders import check_new_folder, save_model
from jacobian_lab.errors import InputError
from jacobian_lab.model.loading import load_model


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.6},
        {"do_sample": False, "top_p": 0.9, "top_k": 5},
        {"do_sample": True, "num_beams": 1, "early_stopping": True, "eos_token_id": [2, 5]},
    ],
)
def test_generation_settings_that_transformers_would_not_write_are_saved_as_they_were(
    settings, folders, tmp_path, monkeypatch
):
    """Before 5.24 transformers refuses to write them; from then on if anything has touched them."""
    folder = shutil.copytree(folders["gpt2"], tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = load_model(folder, device="cpu")
    monkeypatch.setattr(GenerationConfig, "_original_object_hash", 0, raising=False)
    vars(model.hf.generation_config).pop("_original_object_hash", None)
    save_model(model, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings.items() <= (saved | {"do_sample": saved.get("do_sample", False)}).items()
    again = load_model(tmp_path / "out", device="cpu")
    assert torch.equal(again.weight(2), model.weight(2))
    assert {name: getattr(again.hf.generation_config, name) for name in settings} == settings


def test_a_delta_that_is_written_over_while_it_is_mapped_keeps_its_numbers(folders, tmp_path):
    model, path = load_model(folders["gpt2"], device="cpu"), tmp_path / "delta.safetensors"
    first = {1: torch.randn(model.d_model, model.d_mlp, generator=torch.Generator().manual_seed(0))}
    save_delta(path, model, first, {})
    read = load_delta(path, model)
    save_delta(path, model, {1: torch.zeros_like(first[1])}, {})
    assert torch.equal(read[1], first[1])
    before = model.weight(1).clone()
    add_delta(model, read)
    assert torch.equal(model.weight(1), (before.double() + first[1].double()).float())


def test_a_model_is_not_saved_over_its_own_base_by_apply_but_may_be_by_edit(folders, tmp_path):
    base = shutil.copytree(folders["gpt2"], tmp_path / "base")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        check_new_folder(base)
    model = load_model(base, device="cpu")
    save_model(model, base)  # its weights are mapped from there
    again = dict(load_model(base, device="cpu").hf.named_parameters())
    assert all(torch.equal(again[name], weight) for name, weight in model.hf.named_parameters())
