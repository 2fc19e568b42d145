"""The uncentred second moment C_l = E[k kᵀ] of a text corpus, all layers in one pass."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.caching import cache_folder, content_key, written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import batches, capture, forward
from jacobian_lab.model.corpus import Corpus, token_rows
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt, ends_texts
from jacobian_lab.progress import bar, note

ROWS_AT_ONCE = 1024
"""Rows that are compared at once with the columns of the same matrix."""

ASYMMETRY = 1e-6
"""How far a second moment may be from symmetric, over its largest element: rounding, whatever the dtype of its sum."""


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """C_l of some layers over one corpus.

    Attributes:
        matrices: For each layer, C_l in float64, ``[d_mlp, d_mlp]``, on the CPU.
        tokens: Tokens that it is the mean over.
    """

    matrices: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    tokens: int


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
        tokens: Tokens in all, of documents drawn by the corpus's seed; the whole corpus by default.
        progress: Whether to show a progress bar.

    Returns:
        The second moments.

    Raises:
        InputError: If there are fewer tokens than a full-rank C_l needs.

    Examples:
        >>> import jacobian_lab as jl
        >>> moments = jl.second_moments(jl.load_model(), jl.load_corpus(), [4], tokens=1600)
        >>> moments.matrices[4].shape, moments.tokens
        (torch.Size([1536, 1536]), 1600)
    """
    paths = _paths(model, corpus, layers, length, tokens)
    loaded = {layer: _stored(paths[layer], model.d_mlp) for layer in layers}
    missing = [layer for layer in layers if loaded[layer] is None]
    if missing:
        rows = moment_rows(model, corpus, length, tokens)
        total = sum(len(row.ids) for row in rows)
        for layer, matrix in sums_of_keys(model, rows, missing, progress=progress).items():
            tensors = {"second_moment": matrix.div_(total), "tokens": torch.tensor(total)}
            with written_whole(paths[layer]) as partial:
                save_file(tensors, partial, metadata={"digest": _digest(tensors)})
            loaded[layer] = tensors
    complete = {layer: stored for layer, stored in loaded.items() if stored is not None}
    count = int(next(iter(complete.values()))["tokens"])
    if tokens is not None and count < tokens:
        note(f"the corpus {corpus.name!r} has {count} tokens, fewer than the {tokens} of corpus_tokens: all are taken")
    return SecondMoment({layer: stored["second_moment"] for layer, stored in complete.items()}, count)


def moment_rows(model: LanguageModel, corpus: Corpus, length: int = 256, tokens: int | None = None) -> list[Prompt]:
    """The rows that a second moment is taken over.

    Args:
        model: The model.
        corpus: The corpus.
        length: Tokens of a document at the most.
        tokens: Tokens in all; the whole corpus by default.

    Returns:
        The rows.

    Raises:
        InputError: If there are fewer tokens than a full-rank C_l needs.
    """
    rows = token_rows(model, corpus if tokens is None else corpus.shuffled(), length, tokens)
    total = sum(len(row.ids) for row in rows)
    if total < model.d_mlp:
        raise InputError(
            f"expected at least {model.d_mlp} tokens for a second moment of full rank, got {total} from "
            f"{corpus.name!r}: give a longer corpus, or raise ⟨corpus_tokens⟩ or ⟨corpus_length⟩"
        )
    return rows


def moments_cached(
    model: LanguageModel, corpus: Corpus, layers: Sequence[int], length: int = 256, tokens: int | None = None
) -> bool:
    """True if the cache has what `second_moments` would give; its contents are not checked.

    Args:
        model: The model.
        corpus: The corpus.
        layers: The layers.
        length: Tokens of a document at the most.
        tokens: Tokens in all.

    Returns:
        Whether it has all of it.
    """
    return all(path.exists() for path in _paths(model, corpus, layers, length, tokens).values())


def _paths(
    model: LanguageModel, corpus: Corpus, layers: Sequence[int], length: int, tokens: int | None
) -> dict[int, Path]:
    settings = {
        "what": "second moment 3",  # to be raised when the computation changes
        "model": model.fingerprint,
        "corpus": corpus.digest,
        "length": length,
        "tokens": tokens,
    } | ({} if tokens is None else {"drawn": corpus.seed})
    if ends_texts(model.tokenizer):  # which were part of the rows once
        settings["ends"] = "left out"
    folder = cache_folder("second-moments")
    return {layer: folder / f"{content_key({**settings, 'layer': layer})}.safetensors" for layer in layers}


def _stored(path: Path, width: int) -> dict[str, Tensor] | None:
    """Contents of a file in the cache, if it is whole; else say so."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        wrong = _fault(tensors, width) or ("" if metadata.get("digest") == _digest(tensors) else "another digest")
    except (OSError, SafetensorError) as error:
        wrong = type(error).__name__
    if wrong:
        note(f"the second moment in {path} is not as it was written ({wrong}): it is computed anew")
    return None if wrong else tensors


def _fault(tensors: Mapping[str, Tensor], width: int) -> str:
    """Why tensors are no second moment; nothing if they are."""
    if tensors.keys() != {"second_moment", "tokens"}:
        return "other tensors"
    return fault(tensors["second_moment"], width)


def fault(matrix: Tensor, width: int, asymmetry: float = ASYMMETRY) -> str:
    """Why a matrix is no second moment.

    Args:
        matrix: The matrix.
        width: d_mlp.
        asymmetry: How far it may be from symmetric, over its largest element.

    Returns:
        The reason, or nothing if it is one.
    """
    if matrix.shape != (width, width) or matrix.dtype != torch.float64:
        return f"[{', '.join(map(str, matrix.shape))}] in {str(matrix.dtype).removeprefix('torch.')}"
    if not torch.isfinite(matrix).all():
        return "NaN or infinity"
    largest = float(matrix.diagonal().max())
    if largest <= 0 or matrix.diagonal().min() < 0:  # that of a neuron that never fires is 0
        return "a diagonal that is not positive"
    halves = zip(matrix.split(ROWS_AT_ONCE), matrix.split(ROWS_AT_ONCE, dim=1), strict=True)
    return "" if all((a - b.T).abs().max() <= asymmetry * largest for a, b in halves) else "not symmetric"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


@torch.no_grad()
def sums_of_keys(
    model: LanguageModel,
    rows: Sequence[Prompt],
    layers: Sequence[int],
    *,
    neurons: int | None = None,
    progress: bool = False,
) -> dict[int, Float[Tensor, "neuron neuron"]]:
    """Σ k kᵀ: multiplied in float32 or better, a forward pass at a time, and added up in float64.

    Args:
        model: The model.
        rows: Rows of tokens, all of which count.
        layers: Layers whose keys to take.
        neurons: How many of the keys' entries, from the first on; all d_mlp by default.
        progress: Whether to show a progress bar.

    Returns:
        The sum of each layer, on the CPU.
    """
    width = min(neurons or model.d_mlp, model.d_mlp)
    sums = {layer: torch.zeros(width, width, dtype=torch.float64, device=model.device) for layer in layers}
    total = sum(len(row.ids) for row in rows)
    with (
        bar(total, "second moment", "token", show=progress) as progress_bar,
        capture(model, keys=layers) as record,
    ):
        for group in batches(rows):
            group_rows = [rows[i] for i in group]
            forward(model, group_rows, stop=max(layers))
            lengths = torch.tensor([len(row.ids) for row in group_rows], device=model.device)
            real = torch.arange(int(lengths.max()), device=model.device) < lengths[:, None]
            for layer in layers:
                keys = record.keys[layer].view(*real.shape, -1)[real][:, :width]
                keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
                sums[layer] += keys.T @ keys
            progress_bar.update(int(lengths.sum()))
    return {layer: matrix.cpu() for layer, matrix in sums.items()}
