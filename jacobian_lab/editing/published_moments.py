"""Published second moments: MEMIT's ``.npz`` files, or safetensors, one a layer."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from scipy.stats import spearmanr
from torch import Tensor

from jacobian_lab.caching import file_digest
from jacobian_lab.editing.second_moments import SecondMoment, fault, sums_of_keys
from jacobian_lab.errors import InputError
from jacobian_lab.memory import out_of_memory
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

DEVIATIONS = 10
"""Standard deviations by which pairs of neurons have to agree beyond chance. On other text those of the same layer are
45 to 70 beyond it (SmolLM2, the Python documentation against WikiText), another layer's at most 2.5."""

SCALE = 30.0
"""How far the median neuron's second moment may be from the sample's: a sum for a mean is off by a million."""


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
            matching = [path for path in paths if path.name.startswith((f"{name}_", f"{name}."))]
            if len(matching) != 1:
                got = ", ".join(path.name for path in matching) or "none"
                raise InputError(
                    f"expected one file of layer {layer} in ⟨moments⟩ {folder}, {name}_….npz or {name}.safetensors, "
                    f"got {got}: leave one, or give other ⟨layers⟩"
                )
            files[layer] = matching[0]
        return cls(files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over layers and contents, by which runs that use the files are told apart."""
        contents = "".join(f"{layer}:{file_digest(path)} " for layer, path in self.files.items())
        return hashlib.sha256(contents.encode()).hexdigest()

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
        rows = token_rows(model, load_corpus(), min(LENGTH, model.max_tokens), SAMPLE)
        sums, total = sums_of_keys(model, rows, list(self.files), neurons=COMPARED), sum(len(row.ids) for row in rows)
        matrices, tokens = {}, []
        for layer, path in self.files.items():
            matrix, count = _read(path)
            wrong = fault(matrix, model.d_mlp, ASYMMETRY)
            if not wrong and count < model.d_mlp:
                wrong = f"one of {count} tokens, too few for its rank"
            if wrong:
                raise InputError(
                    f"expected a second moment [{model.d_mlp}, {model.d_mlp}] in {path}, got {wrong}: give another"
                )
            _check_neurons(sums[layer] / total, matrix, path)
            matrices[layer] = matrix.add_(matrix.T.clone()).div_(2)
            tokens.append(count)
        return SecondMoment(matrices, min(tokens))


def _check_neurons(sample: Float[Tensor, "n n"], published: Float[Tensor, "d_mlp d_mlp"], path: Path) -> None:
    """Refuse the second moment of another model or layer, and one that is not a mean."""
    published = published[: len(sample), : len(sample)]
    fires = (sample.diagonal() > 0) & (published.diagonal() > 0)
    sample, published = sample[fires][:, fires], published[fires][:, fires]
    scale = float((published.diagonal() / sample.diagonal()).median())
    if not 1 / SCALE < scale < SCALE:
        raise InputError(
            f"expected a mean over tokens in {path}, got neurons {scale:.2g} times what they are on a sample of text: "
            "check the number of tokens that goes with it"
        )
    pairs = [_correlations(matrix).numpy() for matrix in (sample, published)]
    likeness, needed = float(spearmanr(pairs[0], pairs[1]).statistic), DEVIATIONS / math.sqrt(len(pairs[0]))
    if not likeness > needed:
        raise InputError(
            f"expected neurons in {path} that go together as the model's at this layer do (rank correlation "
            f"{needed:.2g} at least), got {likeness:.2g}: give the file of this model and layer"
        )


def _correlations(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " pair"]:
    """Uncentred correlation of each pair of neurons."""
    first, second = torch.triu_indices(len(matrix), len(matrix), 1)
    scale = matrix.diagonal().sqrt()
    return matrix[first, second] / (scale[first] * scale[second])


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
    except Exception as error:  # readers of a foreign file raise whatever its bytes lead to
        if out_of_memory(error):
            raise
        raise InputError(
            f"expected mom2.mom2 and mom2.count as MEMIT writes them, or second_moment and tokens, in {path}, got "
            f"{type(error).__name__} ({error!s:.100}): fetch it again"
        ) from error


_NAMES = ("mom2.mom2", "mom2.count", "second_moment", "tokens")
