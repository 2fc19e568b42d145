"""GGUF files: the model of the file and no other, or one line that says why not."""

import numpy as np
import pytest
import torch
from helpers.gguf_files import read_plainly, write_gguf
from helpers.small import CONFIGS, ROTARY, make_folder
from transformers import Gemma3TextConfig, LlamaConfig

from jacobian_lab.errors import InputError
from jacobian_lab.model import sources
from jacobian_lab.model.loading import load_model

LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))


def wide(path):
    """A Llama whose heads are wide enough that Llama 3's factors are of all three sorts."""
    return make_folder(
        path, LlamaConfig(**ROTARY | {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1})
    )


def llama_3_factors(width=64, base=500000.0, factor=8.0, original=8192):
    """Factors of rotary frequencies, by the formula of llama.cpp's converter."""
    factors = []
    for frequency in (1.0 / base ** (torch.arange(0, width, 2) / width)).tolist():
        wave = 2 * np.pi / frequency
        smooth = (original / wave - 1) / 3
        factors.append(
            1 if wave < original / 4 else factor if wave > original else 1 / ((1 - smooth) / factor + smooth)
        )
    return np.array(factors, dtype=np.float32)


def assert_is_the_files(path):
    """Logits and tensors of `load_model` are the independent reader's, on a row as long as the model takes."""
    model, plain = load_model(path, device="cpu"), read_plainly(path)
    unread = dict(plain.named_parameters())
    assert all(torch.equal(weight, unread.pop(name)) for name, weight in model.hf.named_parameters())
    assert not unread
    ids = torch.randint(3, 500, (1, 200), generator=torch.Generator().manual_seed(0))
    rotary, own = model.hf.model.rotary_emb, plain.model.rotary_emb
    for kind in [f"{kind}_" for kind in getattr(rotary, "layer_types", ())] or [""]:
        torch.testing.assert_close(
            getattr(rotary, f"{kind}inv_freq"), getattr(own, f"{kind}inv_freq"), rtol=1e-6, atol=0
        )
        scaling = [getattr(module, f"{kind}attention_scaling") for module in (rotary, own)]
        assert scaling[0] == pytest.approx(scaling[1], rel=1e-12)
    torch.testing.assert_close(model.hf(ids).logits, plain(ids).logits, rtol=0, atol=5e-4)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_whole_file_is_read(family, folders, tmp_path):
    width = {"attention.key_length": 8, "attention.value_length": 8}
    assert_is_the_files(write_gguf(tmp_path / "m.gguf", folders[family], width))


def test_gemma_3_has_norms_of_one_more_and_two_kinds_of_rotary_positions(tmp_path):
    kinds = {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
    config = Gemma3TextConfig(**ROTARY, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, **kinds)
    settings = {"attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 6}
    settings |= {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    folder = make_folder(tmp_path / "m", config)
    path = write_gguf(tmp_path / "m.gguf", folder, settings)
    model = assert_is_the_files(path)
    assert [model.window(layer) for layer in range(6)] == [6] * 5 + [None]


@pytest.mark.parametrize("missing", ["blk.3.", "blk.5.ffn_down", "output_norm", "token_embd"])
def test_missing_tensors_are_refused_before_anything_is_dequantised(missing, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", lambda *_: pytest.fail("dequantised"))
    refused(f"got none for {missing}", write_gguf(tmp_path / "m.gguf", folders["llama"], without=[missing]))
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_tensors_that_no_model_of_the_kind_has_are_refused(folders, tmp_path):
    bias = {"blk.0.attn_q.bias": np.ones(32, np.float32)}
    refused("got blk.0.attn_q.bias among them", write_gguf(tmp_path / "m.gguf", folders["llama"], tensors=bias))
    buffer = {"blk.0.attn_rot_embd.weight": np.ones(4, np.float32)}
    assert_is_the_files(write_gguf(tmp_path / "n.gguf", folders["llama"], tensors=buffer))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope.freq_base": 500000.0},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.freq_base": 20000.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        YARN,
        YARN | {"rope.freq_base": 1e6, "rope.scaling.factor": 2.0, "rope.scaling.finetuned": True},
    ],
)
def test_rotary_scaling_is_the_files(scaling, tmp_path):
    plain = load_model(write_gguf(tmp_path / "plain.gguf", wide(tmp_path / "m")), device="cpu")
    if scaling.get("rope.scaling.type") == "none":
        path = write_gguf(tmp_path / "m.gguf", tmp_path / "m", scaling)
        assert load_model(path, device="cpu").hf.config.rope_parameters["rope_type"] == "default"
        return
    model = assert_is_the_files(write_gguf(tmp_path / "m.gguf", tmp_path / "m", scaling))
    ids = torch.arange(3, 200)[None]
    assert (model.hf(ids).logits - plain.hf(ids).logits).abs().max() > 1e-2
    assert model.fingerprint != plain.fingerprint


def test_llama_3s_factors_are_carried(tmp_path):
    folder, base = wide(tmp_path / "m"), {"rope.freq_base": 500000.0}
    path = write_gguf(tmp_path / "m.gguf", folder, base, tensors={"rope_freqs.weight": llama_3_factors()})
    model = assert_is_the_files(path)
    expected = LLAMA_3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    assert model.hf.config.rope_parameters == expected


def test_other_factors_and_kinds_of_scaling_are_refused(tmp_path):
    folder, path, base = wide(tmp_path / "m"), tmp_path / "m.gguf", {"rope.freq_base": 500000.0}
    factors = {"rope_freqs.weight": llama_3_factors(original=4096)}
    refused("expected the rotary factors of Llama 3.1", write_gguf(path, folder, base, tensors=factors))
    factors = {"rope_freqs.weight": llama_3_factors()}
    refused("'yarn' with factors of its own", write_gguf(path, folder, base | YARN, tensors=factors))
    refused("got 'longrope'", write_gguf(path, folder, {"rope.scaling.type": "longrope"}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"expert_count": 8, "expert_used_count": 2}, "a mixture of 8 experts"),
        ({"logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"attention.sliding_window": 16}, "llama.attention.sliding_window = 16"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count = 4"),
        ({"attention.value_length": 4}, "llama.attention.value_length = 4"),
        ({"attention.causal": False}, "llama.attention.causal = False"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "llama.rope.scaling.yarn_log_multiplier"),
    ],
)
def test_settings_that_would_be_dropped_are_refused_by_name(settings, words, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "read_gguf", lambda *_: pytest.fail("dequantised"))
    refused(words, write_gguf(tmp_path / "m.gguf", folders["llama"], settings))


def test_idle_settings_are_no_fault(folders, tmp_path):
    idle = {"expert_count": 0, "attention.sliding_window": 0, "attention.causal": True, "rope.dimension_count": 8}
    assert_is_the_files(write_gguf(tmp_path / "m.gguf", folders["llama"], idle))


def test_parts_and_adapters_are_refused_by_name(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "read_gguf", lambda *_: pytest.fail("dequantised"))
    part = {"split.no": 1, "split.count": 3}
    refused("got part 2 of 3 .* llama-gguf-split", write_gguf(tmp_path / "m.gguf", folders["llama"], general=part))
    adapter = {"general.type": "adapter"}
    refused("says that it is 'adapter': merge it", write_gguf(tmp_path / "a.gguf", folders["llama"], general=adapter))


def test_a_head_of_another_width_is_read(tmp_path):
    folder = make_folder(tmp_path / "m", type(CONFIGS["qwen3"])(**ROTARY, head_dim=16))
    width = {"attention.key_length": 16, "attention.value_length": 16}
    assert_is_the_files(write_gguf(tmp_path / "m.gguf", folder, width))


def refused(words, path):
    with pytest.raises(InputError, match=words) as caught:
        load_model(path, device="cpu")
    assert "\n" not in str(caught.value)
