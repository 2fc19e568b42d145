"""GGUF files: all that one says of its model, as transformers has it, or no model at all.

transformers fills tensors that a file lacks with random numbers, drops those that it does not know, and passes over
most settings. Here a file is held against the model that is to be made of it before anything is dequantised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi, prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jacobian_lab.errors import InputError, first_line
from jacobian_lab.memory import out_of_memory
from jacobian_lab.model.families import family_of
from jacobian_lab.model.quiet import Quiet

_PLAIN = {
    "context_length",
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
}
"""Settings that transformers takes over."""

_ROTARY = {
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
"""Settings that `_rotary` takes over."""

_WIDTHS = {"attention.key_length", "attention.value_length", "rope.dimension_count"}
"""Settings that all are the width of a head, in the families that we know."""

_IDLE: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
}
"""Settings with the values that change nothing."""

_TYPES = {kind: kind for kind in ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gptj", "gpt_neox")} | {
    "gemma3": "gemma3_text"
}
"""Types of configurations, by the architecture that a file names."""

_GEMMA = {"attention.sliding_window", "rope.freq_base_swa"}
"""Further settings of Gemma 3 that are taken over."""

_LOCAL_BASE, _WIDE_BLOCKS = 10000.0, 62
"""llama.cpp's values for Gemma 3: base of the rotary positions within a window, and the blocks of the 27B model, whose
scores are divided by another root than that of a head's width."""

_SILENT = {"tensor_data_layout", "pooling_type", "rope.scaling.finetuned"}
"""Settings that decide no logit."""

_FACTORS = "rope_freqs.weight"
_BUFFER = ".attn_rot_embd.weight"
"""End of the names of tensors that old converters wrote and nobody reads: they follow from the settings."""


@dataclass(frozen=True, eq=False)
class Header:
    """A GGUF file's description of its model, without the weights.

    Attributes:
        path: The file.
        kind: Its architecture.
        settings: What it says of this architecture, by key.
        tensors: How many numbers each of its tensors has, by name.
        factors: What it divides rotary frequencies by, if it does so one by one.
    """

    path: Path
    kind: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, int]
    factors: np.ndarray | None


def read_header(path: Path) -> Header:
    """Read what a GGUF file says of its model, and refuse what cannot be edited by that alone."""
    try:
        reader = gguf.GGUFReader(path)
        said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
        tensors = {tensor.name: prod(map(int, tensor.shape)) for tensor in reader.tensors}
        factors = next((np.array(tensor.data) for tensor in reader.tensors if tensor.name == _FACTORS), None)
    except Exception as error:  # whatever a broken file makes the reader raise
        raise InputError(_unreadable(path, error)) from error
    parts = int(said.get("split.count", 1))
    if parts > 1:
        raise InputError(
            f"expected a whole model, got part {int(said.get('split.no', 0)) + 1} of {parts} in {path}: join the parts "
            "with llama-gguf-split --merge, and give the file that it makes"
        )
    if said.get("general.type", "model") != "model":
        raise InputError(
            f"expected a model, got {path}, which says that it is {said['general.type']!r}: merge it into its base "
            "model first, and give that"
        )
    if "general.architecture" not in said:
        raise InputError(_unreadable(path, KeyError("general.architecture")))
    kind = str(said["general.architecture"])
    family_of(_TYPES.get(kind, kind))
    if kind not in _TYPES:
        raise InputError(
            f"expected a GGUF file of {', '.join(_TYPES)}, got {kind!r} in {path}: give the model's safetensors"
        )
    own = {key.removeprefix(f"{kind}."): value for key, value in said.items() if key.startswith(f"{kind}.")}
    header = Header(path, kind, own, tensors, factors)
    _check_settings(header)
    return header


def read_gguf(header: Header) -> tuple[Any, Any]:
    """Read a GGUF file as plain float32, ready to be saved."""
    where = {"pretrained_model_name_or_path": str(header.path.parent), "gguf_file": header.path.name}
    try:
        with Quiet():
            config = _configured(AutoConfig.from_pretrained(**where), header)
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a broken file makes the readers raise
        raise InputError(_unreadable(header.path, error)) from error
    _check_tensors(header, [name for name, _ in skeleton.named_parameters()], config.num_hidden_layers)
    try:
        with Quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **where, config=config, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise InputError(_unreadable(header.path, error)) from error
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(_lacking(header.path, min(report["missing_keys"])))
    model.hf_quantizer = None  # nothing of it is quantised any more
    vars(model.config).pop("quantization_config", None)  # transformers 5.0 sets none
    return model, tokenizer


def _check_settings(header: Header) -> None:
    """Refuse settings that would be dropped though they decide numbers."""
    experts = header.settings.get("expert_count", 0)
    if experts:
        raise InputError(
            f"expected a model with one MLP in each block, got a mixture of {experts} experts in {header.path}: "
            "choose another"
        )
    taken_over = _PLAIN | _ROTARY | _SILENT | (_GEMMA if header.kind == "gemma3" else set())
    harmless = {**_IDLE, **dict.fromkeys(_WIDTHS, (_width(header),))}
    for key, value in header.settings.items():
        if key not in taken_over and value not in harmless.get(key, ()):
            raise InputError(
                f"expected a GGUF file whose settings transformers takes over, got {header.kind}.{key} = {value!r} in "
                f"{header.path}: give the model's safetensors"
            )


def _width(header: Header) -> int:
    """Width of a head."""
    settings = header.settings
    own = settings.get("attention.key_length")
    return int(own or settings.get("embedding_length", 0) // settings.get("attention.head_count", 1))


def _configured(config: Any, header: Header) -> Any:
    """A configuration as transformers makes it of the file, with what it leaves out."""
    config.max_position_embeddings = int(header.settings["context_length"])  # GPT-2's tables have as many rows
    if hasattr(config, "head_dim"):
        config.head_dim = _width(header)
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = _rotary(header)
    if header.kind == "gemma3":
        settings, whole = header.settings, _rotary(header)
        local = {"rope_type": "default", "rope_theta": float(settings.get("rope.freq_base_swa", _LOCAL_BASE))}
        config.rope_parameters = {"full_attention": whole, "sliding_attention": local}
        wide = config.num_hidden_layers == _WIDE_BLOCKS
        scaled_by = config.hidden_size // config.num_attention_heads if wide else config.head_dim
        config.query_pre_attn_scalar = scaled_by
    return config


def _rotary(header: Header) -> dict[str, Any]:
    """Rotary positions in transformers' words; where a file leaves one open, llama.cpp's value stands."""
    settings = header.settings
    base = {"rope_theta": float(settings.get("rope.freq_base", 10000.0))}
    kind = str(settings.get("rope.scaling.type", "linear"))
    factor = float(settings.get("rope.scaling.factor", 1.0))
    scaled = kind != "none" and factor != 1.0
    if header.factors is not None and not scaled:
        return base | _smoothed(header.factors, header, base["rope_theta"])
    if header.factors is not None or kind not in {"none", "linear", "yarn"}:
        raise InputError(
            f"expected rotary scaling of the kinds linear, yarn and Llama 3's, got {kind!r}"
            f"{' with factors of its own' if header.factors is not None else ''} in {header.path}: "
            "give the model's safetensors"
        )
    if not scaled:
        return base | {"rope_type": "default"}
    if kind == "linear":
        return base | {"rope_type": "linear", "factor": factor}
    original = settings.get("rope.scaling.original_context_length", settings["context_length"])
    return base | {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(original),
        "beta_fast": float(settings.get("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(settings.get("rope.scaling.yarn_beta_slow", 1.0)),
    }


def _smoothed(factors: np.ndarray, header: Header, base: float) -> dict[str, Any]:
    """Llama 3's rotary scaling, which a file gives as a factor for each frequency, if just these are its factors."""
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    width = _width(header)
    frequencies = base ** (-np.arange(0, width, 2) / width)
    share = np.clip((original * frequencies / (2 * pi) - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - share) / factor + share)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-5, atol=0.0):
        raise InputError(
            f"expected the rotary factors of Llama 3.1, 3.2 or 3.3, got others as {_FACTORS} in {header.path}: give "
            "the model's safetensors"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _check_tensors(header: Header, names: Sequence[str], blocks: int) -> None:
    """Refuse a file that lacks tensors of the model, or holds others."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    name_map = gguf.get_tensor_name_map(kinds.get(header.kind, gguf.MODEL_ARCH.LLAMA), blocks)
    expected = [name_map.get_name(name, (".weight", ".bias")) or name for name in names]
    missing = next((name for name in expected if name not in header.tensors), None)
    if missing:
        raise InputError(_lacking(header.path, missing))
    others = header.tensors.keys() - set(expected) - {_FACTORS}
    surplus = min((name for name in others if not name.endswith(_BUFFER)), default=None)
    if surplus:
        raise InputError(
            f"expected weights of a {header.kind} model alone, got {surplus} among them in {header.path}, which "
            "transformers would drop: give the model's safetensors"
        )


def _lacking(path: Path, name: str) -> str:
    return f"expected weights for the whole model, got none for {name} in {path}: replace the file"


def _unreadable(path: Path, error: Exception) -> str:
    return f"expected a GGUF file that transformers reads, got {path} ({first_line(error)}): give another"
