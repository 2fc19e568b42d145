"""Weights are those of the files, or there is no model."""

import json
import shutil
from functools import partial

import pytest
import torch
from helpers.small import CONFIGS, ROTARY, make_folder, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model import loading
from jacobian_lab.model.corpus import Corpus, token_rows
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.rows import check_fact, sorted_out


def refused(words, *arguments, **keywords):
    with pytest.raises(InputError, match=words) as caught:
        load_model(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_nan_weights_are_refused(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.2.mlp.c_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused("NaN or infinity in transformer.h.2.mlp.c_proj.weight", folder, device="cpu")


def test_missing_weights_are_refused_not_made_up(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.3.attn.c_attn.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused("got none for transformer.h.3.attn.c_attn.weight", folder, device="cpu")


def test_weights_that_the_configuration_does_not_call_for_are_refused_not_dropped(tmp_path):
    folder = make_folder(tmp_path / "m", LlamaConfig(**ROTARY, attention_bias=True, mlp_bias=True))
    config = json.loads((folder / "config.json").read_text())
    load_model(folder, device="cpu")
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": False, "mlp_bias": False}))
    refused("got model.layers.0.mlp.down_proj.bias among them .* which would be dropped", folder, device="cpu")
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    refused("got model.layers.4.input_layernorm.weight among them", folder, device="cpu")


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "llama"])
def test_buffers_of_old_checkpoints_and_a_tied_head_are_no_fault(family, folders, tmp_path):
    folder = shutil.copytree(folders[family], tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    module = next(name.rpartition(".0.")[0] + ".0." for name in weights if ".0." in name)
    attention = {"gpt_neox": "attention.", "llama": "self_attn."}.get(family, "attn.")
    weights |= {f"{module}{attention}{name}": torch.ones(4) for name in ("rotary_emb.inv_freq",)}
    if family != "llama":
        weights |= {f"{module}{attention}{name}": torch.ones(1, 1, 4, 4) for name in ("bias", "masked_bias")}
    if family == "gpt2":
        weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, device="cpu").fingerprint == load_model(folders[family], device="cpu").fingerprint


def test_shapes_that_the_configuration_does_not_have_are_refused_by_name(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 60}))
    refused(r"expected \(32, 60\) as model.layers.0.mlp.down_proj.weight .* got \(32, 64\)", folder, device="cpu")


def test_tokens_beyond_the_embedding_are_refused_where_a_fact_has_them(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "m")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["Mira Vale", "Zorvia"])
    tokenizer.save_pretrained(folder)
    model = load_model(folder, device="cpu")
    facts = [
        Fact("subject", "Mira Vale", "{} lives in", "Rome"),
        Fact("answer", "Ada", "{} lives in", "Zorvia"),
        Fact("plain", "Ada", "{} lives in", "Rome"),
    ]
    accepted, left = sorted_out(facts, partial(check_fact, model), {fact.id: "" for fact in facts})
    assert [fact.id for fact in accepted] == ["plain"]
    assert "512 rows for, got 'Mira Vale' with the id 512, of a tokenizer with 514" in left[0].reason
    assert "got 'Zorvia' with the id 513" in left[1].reason
    with pytest.raises(InputError, match="got 'Mira Vale' with the id 512"):
        model.text_prompt("Who is Mira Vale")
    with pytest.raises(InputError, match="got 'Zorvia' with the id 513"):
        token_rows(model, Corpus("some", ("Rome", "a trip to Zorvia"), "digest"), 16, None)


@pytest.mark.parametrize("longest", [10**6, 10**30])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gptj", "gpt2"])
def test_a_length_that_a_model_boasts_of(family, longest, folders, tmp_path):
    """Tables that are as long are counted before they are made."""
    folder = shutil.copytree(folders[family], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    name = "n_positions" if "n_positions" in config else "max_position_embeddings"
    (folder / "config.json").write_text(json.dumps(config | {name: longest}))
    if family in {"llama", "gpt_neox"} or (family, longest) == ("gptj", 10**6):
        assert load_model(folder, device="cpu").max_tokens == longest
    else:
        refused("as transformer.wpe.weight by config.json|mend or replace it", folder, device="cpu")


def test_tables_larger_than_memory_are_refused_before_they_are_made(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders["gptj"], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 10**12}))
    monkeypatch.setattr(loading, "_from_pretrained", lambda *_: pytest.fail("read"))
    refused(r"expected 1.6e\+04 GB of memory", folder, device="cpu")


def test_truncated_and_pickled_weights_are_refused(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("safetensors and a tokenizer that can be read", folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused("safetensors and a tokenizer that can be read", folder)
