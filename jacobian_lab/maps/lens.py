"""Mean Jacobians over a corpus, from every layer to the last: the Jacobian lens of 2026, fitted, kept and read.

The estimator is that of the published lenses (Gurnee, Sofroniew, Lindsey et al. 2026): the derivatives of all later
states are summed over their places, averaged over the places of the earlier state, and averaged over texts. The first
places, which are attention sinks, and the last one are left out.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.errors import InputError, first_line
from jacobian_lab.maps.jacobians import COLUMNS, attention_by_formula
from jacobian_lab.maps.replay import freeze, run_block
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt

SKIPPED = 16
"""Places at the beginning of a text that no mean includes."""
KEY = "J.{}"
"""Name of a layer's matrix in a file; the published files have a dictionary ``J`` of them."""


@dataclass(frozen=True, eq=False)
class Lens:
    """Mean Jacobians J̄_{l→last} of a model.

    Attributes:
        jacobians: By layer, ``J[i, j]`` = mean of ∂h_last[i] / ∂h_l[j].
        texts: Number of texts that the mean is over.
    """

    jacobians: Mapping[int, Float[Tensor, "d_model d_model"]]
    texts: int

    def save(self, path: Path) -> None:
        """Write the matrices in half precision, as the published files have them.

        Args:
            path: The file, of safetensors: ``J.<layer>``, with ``n_prompts``, ``source_layers`` and ``d_model`` beside.
        """
        half = {KEY.format(layer): J.to("cpu", torch.float16).contiguous() for layer, J in self.jacobians.items()}
        layers = sorted(self.jacobians)
        content = {"n_prompts": self.texts, "source_layers": layers, "d_model": len(self.jacobians[layers[0]])}
        save_file(half, path, {name: json.dumps(value) for name, value in content.items()})

    @classmethod
    def load(cls, path: Path) -> "Lens":
        """Read a file that `save` has written.

        Args:
            path: The file.

        Returns:
            The lens, in float32.

        Raises:
            InputError: If it is no such file.
        """
        try:
            with safe_open(path, "pt") as file:
                content = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
                layers = content["source_layers"]
                matrices = {layer: file.get_tensor(KEY.format(layer)).float() for layer in layers}
                return cls(matrices, content["n_prompts"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise InputError(
                f"expected a lens in {path}, got {first_line(error)}: give a .safetensors file with the matrices "
                "J.<layer> and n_prompts, source_layers and d_model in its metadata"
            ) from error


def fit_lens(
    model: LanguageModel,
    texts: Iterable[Prompt],
    layers: Sequence[int],
    *,
    skipped: int = SKIPPED,
    progress: Callable[[], object] | None = None,
) -> Lens:
    """Average the Jacobians from layers to the last one over texts.

    Args:
        model: The model.
        texts: Rows of tokens (`jacobian_lab.model.corpus.token_rows`); those too short for any place are left out.
        layers: Ascending layers below the last.
        skipped: Places at the beginning that are left out.
        progress: Called after every text.

    Returns:
        The lens, in float32 or better.

    Raises:
        InputError: If a layer is not below the last, or no text is long enough.
    """
    last = model.n_layers - 1
    if list(layers) != sorted(set(layers)) or not layers or layers[0] < 0 or layers[-1] >= last:
        raise InputError(f"expected ascending layers from 0 to {last - 1}, got {list(layers)}: choose others")
    dtype = torch.promote_types(model.dtype, torch.float32)
    sums = {layer: torch.zeros(model.d_model, model.d_model, dtype=dtype, device=model.device) for layer in layers}
    count = 0
    for text in texts:
        if len(text.ids) > skipped + 1:
            for layer, J in _jacobians(model, text, layers, skipped).items():
                sums[layer] += J.to(sums[layer])
            count += 1
        if progress is not None:
            progress()
    if not count:
        raise InputError(f"expected a text of more than {skipped + 1} tokens, got none: give longer ones")
    return Lens({layer: total / count for layer, total in sums.items()}, count)


def _jacobians(
    model: LanguageModel, text: Prompt, layers: Sequence[int], skipped: int
) -> dict[int, Float[Tensor, "d_model d_model"]]:
    """Mean over places of one text."""
    frozen = freeze(model, [replace(text, decisive=0)], layers[:1])
    hidden = frozen.tails[layers[0]].detach().requires_grad_()
    inputs = [hidden]
    with torch.enable_grad(), attention_by_formula():
        for layer in range(layers[0] + 1, model.n_layers):
            hidden = run_block(frozen, layer, hidden)
            if layer in layers:
                inputs.append(hidden)
        output = hidden[0, skipped:-1].sum(0)
    rows: list[tuple[Tensor, ...]] = []
    for cotangents in torch.eye(model.d_model, dtype=output.dtype, device=output.device).split(COLUMNS):
        pulled = torch.func.vmap(lambda one: torch.autograd.grad(output, inputs, one, retain_graph=True))(cotangents)
        rows.append(tuple(gradient[:, 0, skipped:-1].mean(1) for gradient in pulled))
    return {layer: torch.cat(parts) for layer, parts in zip(layers, zip(*rows, strict=True), strict=True)}
