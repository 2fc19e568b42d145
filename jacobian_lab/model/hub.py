"""The Hugging Face hub: its cache first, and an absent network said at once."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    model_info,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, validate_repo_id

from jacobian_lab.errors import InputError, first_line

SECONDS = 4.0
"""How long the hub may take to answer whether it is there."""

CARD = "README.md"
"""The hub's name for a model card."""

ADAPTER = "adapter_config.json"
"""What a folder of an adapter holds, which is no model; transformers would put it on one, or pass over it."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
_WEIGHTS = (WEIGHTS, INDEX, _SHARDS)
_DESCRIPTION = (
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
)
"""What is taken of a model beside its weights: whatever says how to read them."""


def _check_name(name: str, expected: str) -> None:
    """Refuse what cannot be a name on the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"expected {expected}, got {name!r}, which is none of them: check the path or the name"
        ) from error


def check_upload(name: str) -> None:
    """Check, before any long work, that a folder can be uploaded: the name, the network, a token."""
    _check_name(name, "a name on the hub to upload to, user/name or organization/name")
    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _problem()
    if problem is not None:
        raise InputError(
            f"expected an answer from {constants.ENDPOINT} before {name!r} is uploaded, got none ({problem}): "
            "check the network, or leave ⟨push⟩ out"
        )
    if get_token() is None:
        raise InputError("expected a token of the hub to upload with, got none: log in with hf auth login")


def upload(folder: Path, name: str) -> str:
    """Upload a folder to the hub, into a private repository if there is none of this name; return its address."""
    api = HfApi()
    with _refusing(name):
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{folder.name}, by jacobian_lab")
    return address


def cached(name: str) -> Path | None:
    """A model's folder in the cache, if all of it is there."""
    _check_name(name, "a folder, a .gguf file or a name on the hub")
    config = try_to_load_from_cache(name, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and _whole(folder) else None


def fetch_config(name: str) -> Path:
    """A model's configuration, fetched before anything large is."""
    check_network(name)
    with _refusing(name):
        return Path(hf_hub_download(name, "config.json"))


def fetch(name: str, *, weights: bool = True) -> Path:
    """A model's folder, fetched into the cache."""
    with _refusing(name):
        files = [file.rfilename for file in model_info(name).siblings or ()]
    if ADAPTER in files:
        raise InputError(adapter_refused(name))
    if not any(fnmatch(file, pattern) for file in files for pattern in (WEIGHTS, _SHARDS)):
        raise InputError(
            f"expected a model with safetensors, got {name!r} without: its weights are pickled or of another kind; "
            "convert them, or choose another"
        )
    with _refusing(name):
        return Path(snapshot_download(name, allow_patterns=[*_DESCRIPTION, *(_WEIGHTS if weights else ())]))


def adapter_refused(name: str) -> str:
    """Words for an adapter in a model's place."""
    return (
        f"expected a whole model, got an adapter in {name!r} ({ADAPTER}): merge it into its base model first "
        "(peft's merge_and_unload, then save_pretrained), and give that"
    )


def check_network(name: str) -> None:
    """Find out within seconds whether the hub can be asked, through the proxies that the environment names."""
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"expected {name!r} as a file or folder here, or in the cache of the hub, since HF_HUB_OFFLINE is set, got "
            "neither: check the path or the name, or unset it to download"
        )
    problem = _problem()
    if problem is not None:
        raise InputError(
            f"expected {name!r} as a file or folder here, in the cache, or on the hub, got no answer from "
            f"{constants.ENDPOINT} ({problem}): check the name and the network, or set HF_HUB_OFFLINE=1 to do without"
        )


def _problem() -> str | None:
    """Say why the hub does not answer; `None` if it does.

    A thread asks, since looking up a name heeds no timeout. The hub's own downloads try for 24 s and more, whatever
    their `etag_timeout`.
    """
    problems: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            problems.append(None)
        except Exception as error:  # of whichever HTTP library
            problems.append(first_line(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return problems[0] if problems else f"nothing within {SECONDS:g} seconds"


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Say in one line what the hub raises in many kinds."""
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"expected a model that is open to you, got {name!r}, which is gated: ask for access on its page, "
            "and log in with hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"expected a model's name on the hub, got {name!r}, which is not there or private: check the name, "
            "or log in with hf auth login"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(
            f"expected a model with a config.json on the hub, got {name!r} without one: merge an adapter into its "
            "base model first, else check the name"
        ) from error
    except Exception as error:
        raise InputError(
            f"expected {name!r} from the hub, got an error ({type(error).__name__}: {first_line(error)}): "
            "check the name, or download it first"
        ) from error


def _whole(folder: Path) -> bool:
    """Tell a folder with a tokenizer and all of its weights; the hub's library takes any snapshot for whole."""
    try:
        if (folder / WEIGHTS).is_file():
            shards = {WEIGHTS}
        else:
            shards = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return False
    tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return tokenizer and all((folder / shard).is_file() for shard in shards)
