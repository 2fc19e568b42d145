"""Second moments that others have published: MEMIT's ``.npz`` files, or safetensors, one a layer."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jacobian_lab.caching import file_digest
from jacobian_lab.editing.second_moments import SecondMoment, fault, sums_of_keys
from jacobian_lab.errors import InputError
from jacobian_lab.model.corpus import load_corpus, token_rows
from jacobian_lab.model.language_model import LanguageModel

KINDS = (".npz", ".safetensors")
"""How the files' names end."""

ASYMMETRY = 1e-4
"""How far a published matrix, summed in float32, may be from symmetric, over its largest element."""

COMPARED = 1024
"""Neurons, the first ones, whose correlations are compared with those of the model at hand."""

SAMPLE, LENGTH = 2048, 128
"""Tokens of the embedded corpus that these are taken of, and of each of its documents at the most."""

ALIKE = 0.01
"""How much the correlations between neurons have to agree. On other text they do by 0.07 to 0.12 (SmolLM2, the Python
documentation against Wikipedia), in another layer by at most 0.003; of another model's neurons only by chance."""

CHANCE = 5.0
"""The same in standard deviations of what chance gives, where neurons are few."""


def check_moments(folder: Path) -> None:
    """Refuse what is no folder, before anything is loaded.

    Args:
        folder: What was given.

    Raises:
        InputError: If it is none.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of second moments, got ⟨moments⟩ {folder}: check the path")


@dataclass(frozen=True)
class Published:
    """Files of second moments.

    Attributes:
        files: The file of each layer.
    """

    files: Mapping[int, Path]

    @classmethod
    def of(cls, model: LanguageModel, folder: Path, layers: Sequence[int]) -> "Published":
        """Find the file of each layer, whose name begins with that of the MLP's output projection in the model.

        Args:
            model: The model.
            folder: Where they are, named as MEMIT names them: ``<module>_float32_mom2_100000.npz``.
            layers: The layers.

        Returns:
            The files.

        Raises:
            InputError: If there is none for a layer, or more than one.
        """
        check_moments(folder)
        names = {id(module): name for name, module in model.hf.named_modules()}
        paths = [path for path in sorted(folder.iterdir()) if path.suffix in KINDS]
        files = {}
        for layer in layers:
            name = names[id(model.projection(layer))]
            found = [path for path in paths if path.name.startswith((f"{name}_", f"{name}."))]
            if len(found) != 1:
                got = ", ".join(path.name for path in found) or "none"
                raise InputError(
                    f"expected one file of layer {layer} in ⟨moments⟩ {folder}, {name}_….npz or {name}.safetensors, "
                    f"got {got}"
                )
            files[layer] = found[0]
        return cls(files)

    @cached_property
    def digest(self) -> str:
        """What a run is known by that uses them: SHA-256 over layers and contents."""
        each = "".join(f"{layer}:{file_digest(path)} " for layer, path in self.files.items())
        return hashlib.sha256(each.encode()).hexdigest()

    def read(self, model: LanguageModel) -> SecondMoment:
        """C_l of the layers, held against the model at hand.

        A ``.npz`` is read as MEMIT writes it, Σ kkᵀ as ``mom2.mom2`` and the number of tokens as ``mom2.count``; of
        safetensors the same names are taken, or ``second_moment``, the mean, with ``tokens``.

        Args:
            model: The model.

        Returns:
            The second moments, in float64, made symmetric.

        Raises:
            InputError: If a file cannot be read, is no second moment of the model's width, or one of other neurons
                than the model's at that layer.
        """
        own = sums_of_keys(model, token_rows(model, load_corpus(), LENGTH, SAMPLE), list(self.files), neurons=COMPARED)
        matrices, tokens = {}, []
        for layer, path in self.files.items():
            matrix, count = _read(path)
            wrong = fault(matrix, model.d_mlp, ASYMMETRY)
            if wrong:
                raise InputError(f"expected a second moment [{model.d_mlp}, {model.d_mlp}] in {path}, got {wrong}")
            _check_neurons(own[layer], matrix, path)
            matrices[layer] = matrix.add_(matrix.T.clone()).div_(2)
            tokens.append(count)
        return SecondMoment(matrices, min(tokens))


def _check_neurons(ours: Float[Tensor, "n n"], theirs: Float[Tensor, "d_mlp d_mlp"], path: Path) -> None:
    """Refuse the second moment of another model or layer."""
    compared = len(ours)
    theirs = theirs[:compared, :compared]
    fires = (ours.diagonal() > 0) & (theirs.diagonal() > 0)
    own, published = (_correlations(matrix[fires][:, fires]) for matrix in (ours, theirs))
    likeness, needed = float(torch.cosine_similarity(own, published, dim=0)), max(ALIKE, CHANCE * 2**0.5 / compared)
    if not likeness > needed:
        raise InputError(
            f"expected neurons in {path} that go together as the model's at this layer do (correlation {needed:.2g} at "
            f"least), got {likeness:.3f}: it is of another model or layer"
        )


def _correlations(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " pair"]:
    """How far two neurons go together, for every pair of different ones; a neuron's own entry is zero."""
    scale = matrix.diagonal().sqrt()
    return (matrix / scale / scale[:, None]).fill_diagonal_(0).flatten()


def _read(path: Path) -> tuple[Float[Tensor, "n m"], int]:
    """A mean in float64, and the tokens that it is over."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                tensors = {name: torch.from_numpy(np.asarray(file[name])) for name in _NAMES if name in file.files}
        else:
            with safe_open(path, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in _NAMES if name in opened.keys()}  # noqa: SIM118
        if "second_moment" in tensors:
            return tensors["second_moment"].double(), int(tensors["tokens"])
        count = int(tensors["mom2.count"])
        return tensors["mom2.mom2"].double().div_(count), count
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, SafetensorError) as error:
        raise InputError(
            f"expected a second moment as MEMIT writes it (mom2.mom2, mom2.count) in {path}, got "
            f"{type(error).__name__} ({error!s:.100}): fetch it again"
        ) from error


_NAMES = ("mom2.mom2", "mom2.count", "second_moment", "tokens")
