"""Changes of an MLP's write u, the output of its projection, and the changes of the stream that follow.

In most families u joins the stream as it is. In others N(u) does, with N the norm behind the MLP:

    N(u) = g ⊙ u / sqrt(mean(u²) + ε)

A *write shift* δ is a change of u at the decisive token: an edit ΔW of the projection realises δ = ΔW k. The stream
moves by δ, or by N(u + δ) − N(u). Where u is multiplied before it joins (Granite), shifts are those of the stream, and
an edit's change of u is one over the multiplier as large.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.maps.hooks import decisive_states, decisive_writes
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.tokens import Prompt


def joined(model: LanguageModel, layer: int, writes: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """Part of the stream that a write becomes: N(u), or u itself.

    Args:
        model: The model.
        layer: The block's index.
        writes: u.

    Returns:
        In the dtype and on the device of `writes`.
    """
    norm = model.output_norm(layer)
    if norm is None:
        return writes
    return norm(writes.to(next(norm.parameters()).device)).to(writes)


def moved(
    model: LanguageModel,
    layer: int,
    writes: Float[Tensor, "*row d_model"] | None,
    shifts: Float[Tensor, "*row d_model"],
) -> Float[Tensor, "*row d_model"]:
    """Change of the stream when an MLP writes u + δ in place of u: N(u + δ) − N(u), or δ itself.

    Args:
        model: The model.
        layer: The block's index.
        writes: u; nobody reads it where there is no norm.
        shifts: δ; gradients flow through.

    Returns:
        In the dtype of `shifts`.
    """
    if writes is None or model.output_norm(layer) is None:
        return shifts
    writes = writes.to(shifts)
    return joined(model, layer, writes + shifts) - joined(model, layer, writes)


def moved_at(
    model: LanguageModel,
    layers: Layers,
    writes: Float[Tensor, "*row layer d_model"] | None,
    shifts: Float[Tensor, "*row layer d_model"],
) -> Float[Tensor, "*row layer d_model"]:
    """Changes of the stream at several layers, each from its own write, by `moved`.

    Args:
        model: The model.
        layers: The layers.
        writes: u of each; none where there is no norm.
        shifts: δ of each.

    Returns:
        In the dtype of `shifts`.
    """
    if writes is None:
        return shifts
    changes = [moved(model, layer, writes[..., i, :], shifts[..., i, :]) for i, layer in enumerate(layers)]
    return torch.stack(changes, dim=-2)


def normed_writes(
    model: LanguageModel, rows: Sequence[Prompt], layers: Sequence[int]
) -> Float[Tensor, "row layer d_model"] | None:
    """Writes u of the decisive tokens where a norm follows them.

    Args:
        model: The model.
        rows: The rows.
        layers: The layers.

    Returns:
        u; none in families where it joins the stream as it is.
    """
    return decisive_writes(model, rows, layers) if model.family.output_norm else None


def shifted_states(
    model: LanguageModel, rows: Sequence[Prompt], layer: int, shifts: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    """Hidden states of the decisive tokens once their MLP writes u + δ.

    Args:
        model: The model.
        rows: The rows.
        layer: The layer.
        shifts: δ of each row.

    Returns:
        The states, in the dtype of the shifts or a wider one.
    """
    writes = normed_writes(model, rows, [layer])
    return decisive_states(model, rows, [layer])[:, 0] + moved(
        model, layer, None if writes is None else writes[:, 0], shifts
    )


def rms(vectors: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
    """Root of the mean square along the last axis.

    Args:
        vectors: Vectors.

    Returns:
        A number for each.
    """
    return vectors.square().mean(-1).sqrt()
