"""Loading: every family and source, what is refused, and the cache."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.exact import load_exact
from helpers.small import CONFIGS, FAMILIES, GPT, ROTARY, VOCABULARY, make_folder, make_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MptConfig,
    PreTrainedTokenizerBase,
)

from jacobian_lab.errors import InputError
from jacobian_lab.maps.agreement import TOLERANCE, check_replay
from jacobian_lab.model import loading, sources
from jacobian_lab.model.devices import check_places, parse_device
from jacobian_lab.model.families import family_of
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import check_layers, load_model


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
    exact = load_exact(folders[family]).hf(ids).logits
    as_is = load_model(folders[family], dtype="float64", device="cpu").hf(ids).logits
    torch.testing.assert_close(exact, as_is, rtol=1e-4, atol=1e-4)
    assert exact.dtype == torch.float64


def _rotary(model, positions=200):
    """Cosines and sines of a model's rotary angles, ``[position, angle]``, and the frequencies that they are of."""
    table = next((m.embed_positions for m in model.hf.modules() if hasattr(m, "embed_positions")), None)
    if table is not None:
        sin, cos = table[:positions].chunk(2, dim=1)
        half = sin.shape[1]
        return cos, sin, 1.0 / 10000 ** (torch.arange(0, 2 * half, 2) / (2 * half))
    hidden = torch.zeros(1, positions, model.d_model, dtype=model.dtype)
    cos, sin = model.positional(hidden, torch.arange(positions)[None])["position_embeddings"]
    frequencies = next(module.inv_freq for module in model.hf.modules() if hasattr(module, "inv_freq"))
    return cos[0], sin[0], frequencies.repeat(2)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
@pytest.mark.parametrize("exact", [True, False])
def test_exact_float64_has_rotary_angles_in_float64(exact, family, folders):
    """Angles of the model that everybody runs are off by the rounding of float32, by another on every device."""
    folder = folders[family]
    model = load_exact(folder) if exact else load_model(folder, dtype="float64", device="cpu")
    cos, sin, frequencies = _rotary(model)
    angles = np.arange(200)[:, None] * frequencies.numpy().astype(np.float64)
    off = max(abs(cos.numpy() - np.cos(angles)).max(), abs(sin.numpy() - np.sin(angles)).max())
    assert off < 1e-15 if exact else 1e-8 < off < 1e-4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": 3.0},
    ],
)
def test_exact_float64_keeps_frequencies_that_follow_the_length_and_their_scale(rope, tmp_path):
    config = LlamaConfig(**ROTARY | {"max_position_embeddings": 32}, rope_parameters={"rope_theta": 10000.0, **rope})
    folder = make_folder(tmp_path / "rope", config)
    ids = torch.arange(3, 63)[None]  # twice as long as what the frequencies are made for
    exact = load_exact(folder).hf(ids).logits
    as_is = load_model(folder, dtype="float64", device="cpu").hf(ids).logits
    plain = make_folder(tmp_path / "plain", LlamaConfig(**ROTARY | {"max_position_embeddings": 32}))
    other = load_exact(plain).hf(ids).logits
    torch.testing.assert_close(exact, as_is, rtol=1e-4, atol=1e-4)
    assert (exact - other).abs().max() > 1e-2


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


def test_fingerprint_does_not_change_with_the_defaults_of_transformers(folders, monkeypatch):
    first = load_model(folders["gpt2"], device="cpu").fingerprint
    original = GPT2Config.to_dict
    monkeypatch.setattr(GPT2Config, "to_dict", lambda self: original(self) | {"a_new_default": True})
    monkeypatch.setattr(GPT2Config, "a_new_default", True, raising=False)
    assert load_model(folders["gpt2"], device="cpu").fingerprint == first


def test_fingerprint_does_not_change_with_how_a_tokenizer_is_written(folders, monkeypatch):
    first = load_model(folders["gpt2"], device="cpu").fingerprint
    monkeypatch.setattr(Tokenizer, "to_str", lambda *_: "written in another way")
    assert load_model(folders["gpt2"], device="cpu").fingerprint == first


def test_fingerprint_tells_how_a_text_is_split(folders, monkeypatch):
    """A version of transformers gave a second BOS to the tokenizer of a GGUF file."""
    first = load_model(folders["gpt2"], device="cpu").fingerprint
    split = PreTrainedTokenizerBase.__call__

    def doubled(self, text, **keywords):
        encoded = split(self, text, **keywords)
        return encoded | {"input_ids": [*encoded["input_ids"][:1], *encoded["input_ids"]]}

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", doubled)
    assert load_model(folders["gpt2"], device="cpu").fingerprint != first


def test_fingerprint_tells_what_is_computed_in(folders):
    fingerprints = [load_model(folders["llama"], dtype=dtype, device="cpu").fingerprint for dtype in loading.DTYPES]
    fingerprints.append(load_exact(folders["llama"]).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_fingerprint_of_a_gguf_is_of_the_file_not_of_what_transformers_made_of_it(monkeypatch):
    monkeypatch.setattr(sources.Source, "config", lambda _self: pytest.fail("read what transformers wrote"))
    hf = SimpleNamespace(config=LlamaConfig())  # without scaling of its own
    described = loading._described(sources.find_source("smollm2-135m"), hf)
    assert described == [("gguf", sources.file_digest(sources._embedded("smollm2-135m")).encode())]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(family, dtype, folders, facts):
    """Replay is the model itself, and what comes out is finite."""
    model = load_model(folders[family], dtype=dtype, device="cpu")
    assert model.dtype == loading.DTYPES[dtype]
    agreement = check_replay(model, facts, (1, 3))
    assert 0 <= agreement.states < TOLERANCE[model.dtype]
    assert 0 <= agreement.logits < TOLERANCE[model.dtype]


def test_states_beyond_float16_are_refused_in_one_line(folders, facts, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("mlp.down_proj.weight"):
            weights[name] = weights[name] * 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_replay(load_model(folder, dtype="bfloat16", device="cpu"), facts, (1, 3))
    with pytest.raises(InputError, match=r"expected finite .* in float16 .* a dtype") as caught:
        check_replay(load_model(folder, dtype="float16", device="cpu"), facts, (1, 3))
    assert "\n" not in str(caught.value)


def test_norms_in_float32_and_weights_in_bfloat16(folders, facts, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "mixed")
    weights = load_file(folder / "model.safetensors")
    mixed = {name: weight if weight.dim() == 1 else weight.bfloat16() for name, weight in weights.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    for dtype in loading.DTYPES:
        model = load_model(folder, dtype=dtype, device="cpu")
        assert {weight.dtype for weight in model.hf.parameters()} == {loading.DTYPES[dtype]}
        check_replay(model, facts, (1, 3))


def test_the_embedded_model_is_dequantised_once(real, monkeypatch):
    monkeypatch.setattr(sources, "read_gguf", lambda *_: pytest.fail("dequantised again"))
    again = load_model(device="cpu")
    assert again.fingerprint == real.fingerprint
    assert (real.n_layers, real.d_model, real.d_mlp) == (30, 576, 1536)
    assert not list(sources.cache_folder("models").glob(".partial-*"))


def test_defaults_are_known_by_shape(real, folders):
    assert real.defaults().layers == (4, 5, 6, 7, 8)
    assert real.defaults().anchor_steps == 25
    small = load_model(folders["llama"], device="cpu")
    assert small.defaults().layers == (0, 1, 2, 3, 4)
    check_layers(small.defaults().layers, small)


LLAMA_3 = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
BY_CONFIGURATION = {
    "Llama-3-8B-Instruct": ("llama-3-8b-instruct", LlamaConfig(**LLAMA_3)),
    "Llama-3.1-8B": ("", LlamaConfig(**LLAMA_3 | {"max_position_embeddings": 131072})),
    "Llama-2-7B": ("", LlamaConfig()),
    "Vicuna-7B": ("", LlamaConfig(max_position_embeddings=4096)),
    "CodeLlama-7B": ("", LlamaConfig(vocab_size=32016, max_position_embeddings=16384)),
    "Yi-6B": ("", LlamaConfig(**LLAMA_3 | {"intermediate_size": 11008, "vocab_size": 64000})),
    "gpt2-xl": ("gpt2-xl", GPT2Config(n_embd=1600, n_layer=48, n_head=25)),
    "gpt-j-6b": ("gpt-j-6b", GPTJConfig()),
}


@pytest.mark.parametrize("name", BY_CONFIGURATION)
def test_known_models_are_told_apart_from_others_of_their_size(name):
    expected, config = BY_CONFIGURATION[name]
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config)
    model = LanguageModel(hf, None, family_of(config.model_type), name, "")
    assert model.known_as() == expected
    assert model.defaults().anchor_lr == (0.1 if expected == "llama-3-8b-instruct" else 0.5)


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


def test_unsupported_families_are_refused_by_name(tmp_path):
    BloomConfig(vocab_size=32, hidden_size=16, n_layer=1).save_pretrained(tmp_path / "bloom")
    refused("'bloom', whose MLP adds the residual stream itself", tmp_path / "bloom")
    MptConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=2).save_pretrained(tmp_path / "mpt")
    refused("got 'mpt'", tmp_path / "mpt")


def test_remote_code_is_not_run(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIGS["gpt2"])
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused("got 'strange'", folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    load_model(folder, device="cpu")
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
    refused("dtype of float32, float64, bfloat16, float16, got 'float8'", folders["gpt2"], dtype="float8")
    for device in ("tpu", "cuda:", "cuda:-1", "cuda:x", "0,1", "cpu:0", "cuda:0,1", ""):
        refused(f"cuda:M-N, got {device!r}", folders["gpt2"], device=device)


def test_cuda_asked_for_and_absent(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("expected a CUDA device for 'cuda', got none", folders["gpt2"], device="cuda")
    refused("expected a CUDA device for 'cuda:1', got none", folders["gpt2"], device="cuda:1")


def test_a_card_is_chosen_by_its_number(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for there in ("cuda", "cuda:1", "cuda:0-1"):
        check_places(parse_device(there), there)
    for beyond in ("cuda:2", "cuda:1-2"):
        refused(f"expected a CUDA device up to cuda:1, got {beyond!r}", folders["gpt2"], device=beyond)
