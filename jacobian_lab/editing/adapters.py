"""Edits as PEFT adapters: each ΔW as the product of two thin matrices, which peft adds to the base model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.model.hub import ADAPTER

FORMAT = "jacobian_lab adapter 1"
CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
"""PEFT's names for the files of an adapter."""

TOLERANCE = 8 * torch.finfo(torch.float32).eps
"""Share of ‖ΔW‖ that the product of the factors may miss: what rounding to float32 leaves, with some room."""

_PREFIX = "base_model.model."
_RIGHT, _LEFT = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, eq=False)
class Factors:
    """A change of one weight, ΔW = B A.

    Attributes:
        left: B.
        right: A.
        exact: Whether B spans the residuals, so that nothing had to be cut off.
    """

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]
    exact: bool

    @property
    def rank(self) -> int:
        """Number of columns of B."""
        return self.left.shape[1]


def low_rank(delta: Float[Tensor, "out in"], residuals: Float[Tensor, "out fact"] | None = None) -> Factors:
    """Write a change as the product of two thin matrices.

    MEMIT, EMMET and AlphaEdit have ΔW = R V with V = (A⁻¹K)ᵀ; of batches the R stand side by side, the V below one
    another. PRUNE scales within the span of R. With R = Q T by QR, ΔW = Q (T V) = Q (Qᵀ ΔW): no SVD is needed.
    Where ΔW leaves the span of R, the singular values that together are below `TOLERANCE` are cut off.

    Args:
        delta: ΔW.
        residuals: R, what the rule was to make of the keys, the batches side by side; none where nothing is known.

    Returns:
        The factors, in float64.
    """
    delta = delta.double()
    limit = TOLERANCE * torch.linalg.matrix_norm(delta)
    if residuals is not None:
        basis = torch.linalg.qr(residuals.to(delta)).Q
        coordinates = basis.T @ delta
        if torch.linalg.matrix_norm(delta - basis @ coordinates) <= limit:
            return Factors(basis, coordinates, exact=True)
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    tails = (values**2).flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tails > limit).sum()))
    roots = values[:rank].sqrt()
    return Factors(left[:, :rank] * roots, roots[:, None] * right[:rank], exact=False)


def check_rank(rank: int, shape: tuple[int, int], name: str) -> None:
    """Check that an adapter is smaller than the weight that it changes.

    Args:
        rank: Rank of the change.
        shape: Shape of the weight.
        name: What is changed, for the message.

    Raises:
        InputError: If the two factors have as many numbers as the weight.
    """
    rows, columns = shape
    if rank * (rows + columns) >= rows * columns:
        largest = -(-rows * columns // (rows + columns)) - 1
        raise InputError(
            f"expected a change of rank {largest} at the most, so that an adapter saves room, got {rank} for {name}: "
            "give ⟨save⟩ folder, which writes the whole model"
        )


def write_adapter(
    folder: Path,
    factors: Mapping[str, Factors],
    dtype: torch.dtype,
    *,
    base: str,
    transposed: bool,
    metadata: Mapping[str, str],
) -> None:
    """Write the two files of an adapter. Factors of a smaller rank get zeros, so that all have one rank.

    Args:
        folder: A folder, which is made.
        factors: Factors of ΔW by the name of the module.
        dtype: Dtype of the factors in the file.
        base: Name of the base model, as transformers takes it.
        transposed: Whether the base model stores its weights as ``[in, out]``, as GPT-2 does.
        metadata: What the file says of itself.
    """
    rank = max(parts.rank for parts in factors.values())
    tensors = {}
    for name, parts in factors.items():
        missing = rank - parts.rank
        right = torch.nn.functional.pad(parts.right, (0, 0, 0, missing))
        left = torch.nn.functional.pad(parts.left, (0, missing))
        tensors[_PREFIX + name + _RIGHT] = right.to(dtype).cpu().contiguous()
        tensors[_PREFIX + name + _LEFT] = left.to(dtype).cpu().contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "jacobian_lab": FORMAT, **metadata})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,  # which multiplies by one
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(factors),
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def file_of(path: Path | str) -> Path:
    """The safetensors of a saved edit: the file itself, or that in an adapter's folder.

    Args:
        path: File or folder.

    Returns:
        The file.
    """
    path = Path(path)
    return path / WEIGHTS if path.is_dir() else path


def changes(tensors: Mapping[str, Tensor], path: Path | str) -> dict[str, Float[Tensor, "out in"]]:
    """Multiply the factors of an adapter.

    Args:
        tensors: What its file holds.
        path: The file, for the message.

    Returns:
        ΔW by the name of the module, in the factors' dtype.

    Raises:
        InputError: If factors are missing, or do not fit each other.
    """
    products, ends = {}, (_LEFT, _RIGHT)
    for name in {key.removeprefix(_PREFIX).removesuffix(_LEFT).removesuffix(_RIGHT): None for key in tensors}:
        parts = [tensors[_PREFIX + name + end] for end in ends if _PREFIX + name + end in tensors]
        if [part.dim() for part in parts] != [2, 2] or parts[0].shape[1] != parts[1].shape[0]:
            raise InputError(f"expected two factors for {name}, got others in {path}: make the adapter again")
        products[name] = (parts[0].double() @ parts[1].double()).to(parts[0].dtype)
    return products
