"""The uncentred second moment C_l = E[k kᵀ] of a text corpus, all layers in one pass."""

import ast
import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.activations import batches, capture, forward
from jacobian_lab.caching import cache_folder, content_key, written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.hub import check_network
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.progress import bar, note
from jacobian_lab.tokens import Prompt

PYTHON_DOCS = "python-docs"
"""The language reference that every CPython carries; documents are its paragraphs."""

DOCSTRINGS = "python-docstrings"
"""What the modules of the standard library say of themselves; held out from `PYTHON_DOCS`."""

SHORTEST = 100
"""Characters that a paragraph of `PYTHON_DOCS` has at the least."""

DOCUMENTS_PER_PASS = 64

DRAWN = 100_000
"""Documents that are drawn from a data set at the most, as many as the official code draws."""

CHARACTERS_PER_TOKEN = 64
"""More than tokens of any text have on the average; where they have more still, the whole document is tokenised."""

ROWS_AT_ONCE = 1024
"""Rows that are compared at once with the columns of the same matrix."""

ASYMMETRY = 1e-6
"""How far a second moment may be from symmetric, over its largest element: rounding, whatever the dtype of its sum."""


@dataclass(frozen=True)
class Corpus:
    """Documents of text.

    Attributes:
        name: What the user called it.
        documents: Its documents.
        digest: SHA-256 of their content.
    """

    name: str
    documents: tuple[str, ...]
    digest: str


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """C_l of some layers over one corpus.

    Attributes:
        matrices: For each layer, C_l in float64, ``[d_mlp, d_mlp]``, on the CPU.
        tokens: Tokens that it is the mean over.
    """

    matrices: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    tokens: int


def load_corpus(name: str = PYTHON_DOCS, option: str = "--corpus", seed: int = 0) -> Corpus:
    """Read a corpus.

    Args:
        name: ``"python-docs"``, ``"python-docstrings"``, a UTF-8 text file with one document a line, or a
            Hugging Face data set with a ``text`` column (``name`` or ``name:configuration``; its ``train`` split), of
            which `DRAWN` documents at the most are drawn, so that the rest is never held.
        option: How the command line asks for it, for the message.
        seed: Seed of the drawing.

    Returns:
        The corpus.

    Raises:
        InputError: If it cannot be read or holds no text.
    """
    if name in {PYTHON_DOCS, DOCSTRINGS}:
        texts = _paragraphs(dict(sorted(topics.topics.items())).values() if name == PYTHON_DOCS else _docstrings())
    elif os.path.exists(name):  # noqa: PTH110  Path.exists raises where the path cannot be looked at
        texts = _lines(Path(name))
    else:
        texts = _dataset(name, seed)
    documents = tuple(text for text in texts if text.strip())
    if not documents:
        raise InputError(f"expected a corpus with text, got an empty one from {name!r}: give another with {option}")
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode() + b"\0")
    return Corpus(name, documents, digest.hexdigest())


def second_moments(
    model: LanguageModel,
    corpus: Corpus,
    layers: Sequence[int],
    length: int = 256,
    tokens: int | None = None,
    *,
    progress: bool = False,
) -> SecondMoment:
    """C_l over all tokens of a corpus, kept in the cache layer by layer.

    Args:
        model: The model.
        corpus: The corpus; documents are independent rows.
        layers: Layers whose keys to take; all in one pass, which stops after the highest.
        length: Tokens of a document at the most; what is beyond is cut off.
        tokens: Tokens in all; the whole corpus by default.
        progress: Whether to show a progress bar.

    Returns:
        The second moments.

    Raises:
        InputError: If there are fewer tokens than a full-rank C_l needs.
    """
    settings = {
        "what": "second moment 2",  # to be raised when the computation changes
        "model": model.fingerprint,
        "corpus": corpus.digest,
        "length": length,
        "tokens": tokens,
    }
    folder = cache_folder("second-moments")
    paths = {layer: folder / f"{content_key({**settings, 'layer': layer})}.safetensors" for layer in layers}
    loaded = {layer: _stored(paths[layer], model.d_mlp) for layer in layers}
    missing = [layer for layer in layers if loaded[layer] is None]
    if missing:
        rows = token_rows(model, corpus, length, tokens)
        total = sum(len(row.ids) for row in rows)
        if total < model.d_mlp:
            raise InputError(
                f"expected at least {model.d_mlp} tokens for a second moment of full rank, got {total} from "
                f"{corpus.name!r}: give a longer corpus, or raise --corpus-tokens or --corpus-length"
            )
        for layer, matrix in _accumulate(model, rows, missing, progress).items():
            tensors = {"second_moment": matrix / total, "tokens": torch.tensor(total)}
            with written_whole(paths[layer]) as partial:
                save_file(tensors, partial, metadata={"digest": _digest(tensors)})
            loaded[layer] = tensors
    found = {layer: stored for layer, stored in loaded.items() if stored is not None}
    return SecondMoment(
        {layer: stored["second_moment"] for layer, stored in found.items()},
        int(next(iter(found.values()))["tokens"]),
    )


def _stored(path: Path, width: int) -> dict[str, Tensor] | None:
    """What the cache holds, if it is whole; else it says so."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        fault = _fault(tensors, width) or ("" if metadata.get("digest") == _digest(tensors) else "another digest")
    except (OSError, SafetensorError) as error:
        fault = type(error).__name__
    if fault:
        note(f"the second moment in {path} is not as it was written ({fault}): it is computed anew")
    return None if fault else tensors


def _fault(tensors: Mapping[str, Tensor], width: int) -> str:
    """Why tensors are no second moment; nothing if they are."""
    if tensors.keys() != {"second_moment", "tokens"}:
        return "other tensors"
    matrix = tensors["second_moment"]
    if matrix.shape != (width, width) or matrix.dtype != torch.float64:
        return "another shape or dtype"
    if not torch.isfinite(matrix).all():
        return "NaN or infinity"
    largest = float(matrix.diagonal().max())
    if largest <= 0 or matrix.diagonal().min() < 0:  # that of a neuron that never fires is 0
        return "a diagonal that is not positive"
    halves = zip(matrix.split(ROWS_AT_ONCE), matrix.split(ROWS_AT_ONCE, dim=1), strict=True)
    return "" if all((a - b.T).abs().max() <= ASYMMETRY * largest for a, b in halves) else "not symmetric"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().numpy().data.cast("B"))
    return found.hexdigest()


@torch.no_grad()
def _accumulate(
    model: LanguageModel, rows: Sequence[Prompt], layers: Sequence[int], progress: bool
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Σ k kᵀ in float64."""
    sums = {layer: torch.zeros(model.d_mlp, model.d_mlp, dtype=torch.float64, device=model.device) for layer in layers}
    total = sum(len(row.ids) for row in rows)
    with (
        bar(total, "second moment", "token", show=progress) as shown,
        capture(model, keys=layers) as seen,
    ):
        for group in batches(rows):
            chosen = [rows[i] for i in group]
            forward(model, chosen, stop=max(layers))
            lengths = torch.tensor([len(row.ids) for row in chosen], device=model.device)
            real = torch.arange(int(lengths.max()), device=model.device) < lengths[:, None]
            for layer in layers:
                keys = seen.keys[layer][real].double()
                sums[layer].addmm_(keys.T, keys)
            shown.update(int(lengths.sum()))
    return {layer: matrix.cpu() for layer, matrix in sums.items()}


def token_rows(model: LanguageModel, corpus: Corpus, length: int, tokens: int | None) -> list[Prompt]:
    """Token rows of a corpus's documents.

    Args:
        model: The model whose tokenizer is used.
        corpus: The corpus.
        length: Tokens of a document at the most.
        tokens: Tokens in all; every document by default.

    Returns:
        A row a document, up to the number of tokens asked for.
    """
    rows: list[Prompt] = []
    left = float("inf") if tokens is None else tokens
    for ids in _encode(model, corpus.documents, length):
        ids = ids[: int(min(left, len(ids)))]
        if ids:
            rows.append(Prompt(tuple(ids), len(ids) - 1))
        left -= len(ids)
        if left <= 0:
            break
    return rows


def _encode(model: LanguageModel, documents: Sequence[str], length: int) -> Iterator[list[int]]:
    """Ids of each document's beginning; what is far beyond it is not tokenised, a line may have a million words."""
    cut, iterator = length * CHARACTERS_PER_TOKEN, iter(documents)
    keywords = {"truncation": True, "max_length": length}
    while chunk := list(islice(iterator, DOCUMENTS_PER_PASS)):
        for text, ids in zip(
            chunk, model.tokenizer([text[:cut] for text in chunk], **keywords)["input_ids"], strict=True
        ):
            whole = len(ids) == length or len(text) <= cut
            yield ids if whole else model.tokenizer(text, **keywords)["input_ids"]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """Every paragraph of some length, once."""
    paragraphs = (re.sub(r"\s+", " ", paragraph).strip() for text in texts for paragraph in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(text for text in paragraphs if len(text) >= SHORTEST))


def _docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, read without importing them."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        path = next((p for p in (library / f"{name}.py", library / name / "__init__.py") if p.is_file()), None)
        if path is not None:
            yield ast.get_docstring(ast.parse(path.read_bytes())) or ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"expected a UTF-8 text file with one document a line, got {path} ({error}): check the file"
        ) from error


def _dataset(name: str, seed: int) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"expected {PYTHON_DOCS!r}, a text file or a Hugging Face data set, got {name!r}, which is no file, "
            "and the package datasets is not installed: check the path, or pip install 'jacobian_lab[datasets]'"
        ) from error
    if not datasets.config.HF_HUB_OFFLINE:  # else what is in its cache is found at once
        check_network(name)
    dataset, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, configuration or None, split="train")
        if len(rows) > DRAWN:
            drawn = np.random.default_rng(seed).choice(len(rows), DRAWN, replace=False)
            rows = rows.select(np.sort(drawn))
        return [str(text or "") for text in rows["text"]]
    except Exception as error:  # the hub raises many kinds
        raise InputError(
            f"expected a data set with a split 'train' and a column 'text', got {name!r} "
            f"({type(error).__name__}: {error!s:.150}): check the name"
        ) from error
