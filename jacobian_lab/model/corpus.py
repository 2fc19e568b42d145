"""Text corpora, and their rows of tokens."""

import ast
import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from huggingface_hub import constants

from jacobian_lab.errors import InputError
from jacobian_lab.model.hub import check_network
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt, check_ids, going_on

PYTHON_DOCS = "python-docs"
"""The language reference that every CPython carries; documents are its paragraphs."""

DOCSTRINGS = "python-docstrings"
"""What the modules of the standard library say of themselves; held out from `PYTHON_DOCS`."""

SHORTEST = 100
"""Characters that a paragraph of `PYTHON_DOCS` has at the least."""

DOCUMENTS_PER_PASS = 64

DRAWN = 100_000
"""Documents that are drawn from a file or data set at the most, as many as the official code draws."""

TOKENS_PER_NEURON = 10
"""Tokens for every neuron of the MLP that a second moment is taken over, where a suitable number is asked for."""

CHARACTERS_PER_TOKEN = 64
"""More than tokens of any text have on the average; where they have more still, the whole document is tokenised."""


@dataclass(frozen=True)
class Corpus:
    """Documents of text.

    Attributes:
        name: What the user called it.
        documents: Its documents.
        digest: SHA-256 of their content.
        seed: Seed of all drawing among them.
    """

    name: str
    documents: tuple[str, ...]
    digest: str
    seed: int = 0

    def shuffled(self) -> "Corpus":
        """The same documents in an order by the seed, so that the first of them are a sample."""
        order = np.random.default_rng(self.seed).permutation(len(self.documents))
        return replace(self, documents=tuple(self.documents[place] for place in order))


def load_corpus(name: str = PYTHON_DOCS, seed: int = 0) -> Corpus:
    """Read a corpus.

    Args:
        name: ``"python-docs"``, ``"python-docstrings"``, a UTF-8 text file with one document a line, or a
            Hugging Face data set with a ``text`` column (``name`` or ``name:configuration``; its ``train`` split). Of
            the last two `DRAWN` documents at the most are drawn, so that the rest is never held.
        seed: Seed of the drawing.

    Returns:
        The corpus.

    Raises:
        InputError: If it cannot be read or holds no text.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.load_corpus("python-docs").name
        'python-docs'
    """
    if name in {PYTHON_DOCS, DOCSTRINGS}:
        texts = _paragraphs(dict(sorted(topics.topics.items())).values() if name == PYTHON_DOCS else _docstrings())
    elif os.path.exists(name):  # noqa: PTH110  Path.exists raises where the path cannot be looked at
        texts = _drawn(_lines(Path(name)), seed)
    else:
        texts = _dataset(name, seed)
    documents = tuple(text for text in texts if text.strip())
    if not documents:
        raise InputError(f"expected a corpus with text, got an empty one from {name!r}: give another")
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode() + b"\0")
    return Corpus(name, documents, digest.hexdigest(), seed)


def token_rows(model: LanguageModel, corpus: Corpus, length: int, tokens: int | None) -> list[Prompt]:
    """Token rows of a corpus's documents."""
    rows: list[Prompt] = []
    left = float("inf") if tokens is None else tokens
    for ids in _encode(model, corpus.documents, length):
        ids = ids[: int(min(left, len(ids)))]
        if ids:
            check_ids(model.tokenizer, ids, model.vocab_size)
            rows.append(Prompt(tuple(ids), len(ids) - 1))
        left -= len(ids)
        if left <= 0:
            break
    return rows


def _encode(model: LanguageModel, documents: Sequence[str], length: int) -> Iterator[list[int]]:
    """Ids of each document's beginning; what is far beyond it is not tokenised, a line may have a million words."""
    cut, iterator = length * CHARACTERS_PER_TOKEN, iter(documents)
    while chunk := list(islice(iterator, DOCUMENTS_PER_PASS)):
        beginnings = _beginnings(model.tokenizer, [text[:cut] for text in chunk], length)
        for text, ids in zip(chunk, beginnings, strict=True):
            whole = len(ids) == length or len(text) <= cut
            yield ids if whole else _beginnings(model.tokenizer, [text], length)[0]


def _beginnings(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Ids of texts, each cut to a length; what the tokenizer adds behind a text is no part of it."""
    room = length + tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(list(texts), truncation=True, max_length=room, return_special_tokens_mask=True)
    masks = encoded["special_tokens_mask"]
    return [going_on(ids, added)[:length] for ids, added in zip(encoded["input_ids"], masks, strict=True)]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """Every paragraph of some length, once."""
    paragraphs = (re.sub(r"\s+", " ", paragraph).strip() for text in texts for paragraph in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(text for text in paragraphs if len(text) >= SHORTEST))


@cache
def _docstrings() -> list[str]:
    """Docstrings of the standard library's modules, read without importing them."""
    library = Path(sysconfig.get_path("stdlib"))
    files = ((library / f"{name}.py", library / name / "__init__.py") for name in sorted(sys.stdlib_module_names))
    paths = (next((path for path in pair if path.is_file()), None) for pair in files)
    return [ast.get_docstring(ast.parse(path.read_bytes())) or "" for path in paths if path is not None]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"expected a UTF-8 text file with one document a line, got {path} ({error}): check the file"
        ) from error


def _drawn(texts: Iterable[str], seed: int) -> list[str]:
    """`DRAWN` texts at the most, one as likely as another, in their order; of the others none is held."""
    sample: list[tuple[int, str]] = []
    generator = np.random.default_rng(seed)
    for place, text in enumerate(text for text in texts if text.strip()):
        if len(sample) < DRAWN:
            sample.append((place, text))
        elif (at := int(generator.integers(place + 1))) < DRAWN:
            sample[at] = place, text
    return [text for _, text in sorted(sample)]


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep a package from asking the network within."""
    settings: tuple[Any, Any] = datasets.config, constants
    before = [package.HF_HUB_OFFLINE for package in settings]
    for package in settings:
        package.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for package, value in zip(settings, before, strict=True):
            package.HF_HUB_OFFLINE = value


def _dataset(name: str, seed: int) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"expected {PYTHON_DOCS!r}, a text file or a Hugging Face data set, got {name!r}, which is no file, "
            "and the package datasets is not installed: check the path, or pip install 'jacobian_lab[datasets]'"
        ) from error
    dataset, _, configuration = name.partition(":")
    absent: InputError | None = None
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            check_network(name)
    except InputError as error:
        absent = error
    try:
        with _offline(datasets) if absent else nullcontext():  # what is in its cache is found at once
            rows = datasets.load_dataset(dataset, configuration or None, split="train")
        if len(rows) > DRAWN:
            drawn = np.random.default_rng(seed).choice(len(rows), DRAWN, replace=False)
            rows = rows.select(np.sort(drawn))
        return [str(text or "") for text in rows["text"]]
    except Exception as error:  # the hub raises many kinds
        if absent is not None:
            raise absent from error
        raise InputError(
            f"expected a data set with a split 'train' and a column 'text', got {name!r} "
            f"({type(error).__name__}: {error!s:.150}): check the name"
        ) from error
