"""Loading a model: its weights and tokenizer as they are, checked, and named by their content."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jacobian_lab.errors import InputError, first_line
from jacobian_lab.memory import out_of_memory
from jacobian_lab.model.devices import Places, check_places, divide, parse_device, shares
from jacobian_lab.model.families import DEFAULT_MODEL, Family, family_of
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.quiet import Quiet
from jacobian_lab.model.sources import Source, check_room, count_weights, find_source

# Versions of transformers have read one tokenizer in different ways: how this is split is part of a fingerprint.
_PROBE = "The capital of France is Paris, 1413 km away.\n\u00c9t\u00e9 \u6771\u4eac"
_NAMES_IN_CONFIG = (
    "_name_or_path",
    "name_or_path",
    "architectures",
    "transformers_version",
    "use_cache",
    "dtype",
    "torch_dtype",
)
"""Entries of a configuration that decide no number; the dtype is the weights' own."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

_WHOLE_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these a folder with a tokenizer has."""

_OLD_BUFFERS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
"""Ends of the names of tensors that old checkpoints hold and that are no weights."""

SKETCH = "no weights"
"""The fingerprint of a model without weights."""

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(
    name: str | Path = DEFAULT_MODEL,
    dtype: str = "float32",
    device: str = "auto",
) -> LanguageModel:
    """Load a model for analysis.

    Args:
        name: An embedded model's name, a folder or a ``.gguf`` file, or a name on the hub.
        dtype: One of `DTYPES`.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``: CUDA where there is one; ``"cuda:M-N"`` divides the
            model's blocks over all cards from M to N, all else on the first.

    Returns:
        The model.

    Raises:
        InputError: If the model cannot be had, is of an unsupported family, is quantised, does not fit
            into memory, or has weights that are not finite.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.load_model(dtype="float32", device="cpu")
        smollm2-135m: llama, 30 blocks of width 576, keys of 1536, float32 on cpu; ...
    """
    places = parse_device(device)
    check_places(places, device)
    if dtype not in DTYPES:
        raise InputError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}: choose one of them")
    source = find_source(str(name))
    family = family_of(source.config()["model_type"])
    if len(places) == 1:
        check_room(max(count_weights(source.folder), _count_skeleton(source.folder)), DTYPES[dtype], str(name))
    with Quiet():
        hf, tokenizer = _from_pretrained(source.folder, DTYPES[dtype], family, places)
    hf.eval().requires_grad_(False)
    if not family.projection:
        hf.set_experts_implementation("eager")  # the only one in float64, and with derivatives of every kind
    divide(hf, family, places)
    _check_finite(hf, name)
    return LanguageModel(hf, tokenizer, family, str(name), _fingerprint(source, hf, tokenizer))


def sketch_model(name: str | Path = DEFAULT_MODEL, dtype: str = "float32") -> LanguageModel:
    """A model without its weights, which its configuration alone is enough for: to count with, not to compute with."""
    if dtype not in DTYPES:
        raise InputError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}: choose one of them")
    source = find_source(str(name), weights=False)
    family = family_of(source.config()["model_type"])
    own = any((source.folder / file).is_file() for file in _WHOLE_TOKENIZERS)
    split_by = source.folder if own else find_source(DEFAULT_MODEL).folder
    try:
        with Quiet():
            hf = _skeleton(source.folder, DTYPES[dtype])
            tokenizer = AutoTokenizer.from_pretrained(split_by, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise InputError(
            f"expected a configuration and a tokenizer that can be read, got {str(source.folder)!r} "
            f"({first_line(error)}): mend or replace them"
        ) from error
    _check_fast(tokenizer, split_by)
    return LanguageModel(hf.eval().requires_grad_(False), tokenizer, family, str(name), SKETCH)


def check_layers(layers: tuple[int, ...], model: LanguageModel) -> None:
    """Check decisive layers against a model."""
    if not layers or list(layers) != sorted(set(layers)):
        raise InputError(f"expected ascending layers, got {layers}: give them from the lowest to the highest, as 4-8")
    if layers[0] < 0 or layers[-1] >= model.n_layers:
        raise InputError(
            f"expected layers from 0 to {model.n_layers - 1}, got {layers}: {model.name} has {model.n_layers}"
        )


def _count_skeleton(folder: Path) -> int:
    """Count a model's numbers by its configuration: its weights, and tables as long as the rows that it takes."""
    try:
        with Quiet():
            hf = _skeleton(folder, torch.float32)
    except Exception:  # what cannot be read is refused when it is loaded
        return 0
    return sum(tensor.numel() for tensor in (*hf.parameters(), *hf.buffers()))


def _skeleton(folder: Path, dtype: torch.dtype) -> Any:
    """A model on the meta device."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _from_pretrained(source: Path, dtype: torch.dtype, family: Family, places: Places) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        # over several cards each weight is read into its place: the host need not hold them all
        where: Any = {"device_map": shares(_skeleton(source, dtype), family, places)} if len(places) > 1 else {}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **where,
        )
    except Exception as error:  # transformers raises many kinds
        if out_of_memory(error):
            raise
        raise InputError(
            f"expected safetensors and a tokenizer that can be read, got {str(source)!r} ({first_line(error)}): "
            "mend or replace it"
        ) from error
    hf, report = loaded
    _check_report(report, hf, source)
    _check_fast(tokenizer, source)
    written, embedded = tokenizer.vocab_size, hf.get_input_embeddings().weight.shape[0]
    if not tokenizer("a").input_ids or written > embedded:
        raise InputError(
            f"expected a tokenizer of at most {embedded} words, got one of {written} in {str(source)!r}: "
            "give the model's own"
        )
    return hf, tokenizer


def _check_report(report: Mapping[str, Collection[Any]], hf: Any, source: Path) -> None:
    """Refuse weights that were made up, and weights that were dropped."""
    if report["mismatched_keys"]:
        name, got, expected = min(report["mismatched_keys"])
        raise InputError(
            f"expected {tuple(expected)} as {name} by config.json, got {tuple(got)} in {str(source)!r}: mend "
            "config.json, or replace the files"
        )
    if report["missing_keys"]:
        raise InputError(
            f"expected weights for the whole model, got none for {min(report['missing_keys'])} in {str(source)!r}: "
            "replace the files"
        )
    surplus = min((key for key in report["unexpected_keys"] if not key.endswith(_OLD_BUFFERS)), default=None)
    if surplus:
        raise InputError(
            f"expected weights of a {type(hf).__name__} as config.json describes it, got {surplus} among them in "
            f"{str(source)!r}, which would be dropped: mend config.json (such as attention_bias, mlp_bias or "
            "architectures), or give another model"
        )


def _check_fast(tokenizer: Any, source: Path) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"expected a fast tokenizer, got a slow one in {str(source)!r}: convert it to tokenizer.json")


def _check_finite(hf: nn.Module, name: str | Path) -> None:
    for key, weight in hf.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"expected finite weights, got NaN or infinity in {key} of {str(name)!r}: replace the file"
            )


def _fingerprint(source: Source, hf: Any, tokenizer: Any) -> str:
    """SHA-256 over the model's own files, the weights as loaded, and the way a text is split."""
    digest = hashlib.sha256(json.dumps(tokenizer(_PROBE)["input_ids"]).encode())
    for name, content in _described(source, hf):
        digest.update(json.dumps([name, len(content)]).encode() + content)
    for key, weight in sorted(hf.named_parameters()):
        digest.update(json.dumps([key, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _described(source: Source, hf: Any) -> list[tuple[str, bytes]]:
    """Configuration and tokenizer; for a GGUF file, which holds both, its digest, and its rotary scaling if any."""
    if source.gguf:  # the folder's own files are of transformers' making, and differ between its versions
        rotary = getattr(hf.config, "rope_parameters", None) or {}
        scaled = rotary.get("rope_type", "default") != "default"  # which versions before 0.3 dropped
        scaling = [("rotary", json.dumps(rotary, sort_keys=True).encode())] if scaled else []
        return [("gguf", source.gguf.encode()), *scaling]
    config = {key: value for key, value in source.config().items() if key not in _NAMES_IN_CONFIG}
    files = [source.folder / name for name in _TOKENIZER_FILES]
    return [
        ("config", json.dumps(config, sort_keys=True).encode()),
        *((file.name, file.read_bytes()) for file in files if file.is_file()),
    ]
