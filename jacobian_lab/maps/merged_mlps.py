"""The one optimisation of the sweep: an MLP's small Jacobian in place of its large matrices.

For a single token x an MLP is ``y = W_out·k(a_1, …, a_n) + b``, with the ``a_i = W_i·x`` at its
entrance and a key k that is elementwise in them. Its derivative is one ``[d_model, d_model]`` matrix,

    ∂y/∂x = W_out · Σ_i diag(∂k/∂a_i) · W_i,

made once a block; every cotangent is then one product with it, in place of a product with each of
the n + 1 matrices of ``d_model·d_mlp`` entries. A fused matrix at the entrance is several W_i.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.model.language_model import LanguageModel, matrix


@contextmanager
def merged_mlps(model: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Let MLPs hand back cotangents through their own small Jacobian ∂y/∂x (the module's formula).

    Only for forward passes of a single token, ``[1, 1, d_model]``, with gradients enabled, and only
    for first derivatives in reverse mode; what is computed forward does not change. Experts are left as they are.

    Args:
        model: The model.
        layers: The blocks whose MLPs are to do so.

    Yields:
        Nothing; the MLPs are as they were afterwards.
    """
    with ExitStack() as stack:
        for layer in layers if model.family.inner else ():
            merged = _Merged(model, layer)
            for module in model.inner(layer):
                stack.callback(module.register_forward_hook(merged.keep_entrance).remove)
            stack.callback(model.projection(layer).register_forward_pre_hook(merged.keep_jacobian).remove)
            stack.callback(model.projection(layer).register_forward_hook(merged.replace_derivative).remove)
        yield


class _Merged:
    """The hooks of one MLP, in the order in which a forward pass meets them; it is made for one pass."""

    def __init__(self, model: LanguageModel, layer: int) -> None:
        self.outer = matrix(model.projection(layer))
        self.inner = [part for module in model.inner(layer) for part in matrix(module).split(self.outer.shape[1])]
        self.entrances: list[Float[Tensor, "*one d_a"]] = []

    def keep_entrance(self, _module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Behind each W_i: a_i, cut off from x, so that ∂k/∂a_i can be asked for."""
        self.input = inputs[0]
        self.entrances.append(output.detach().requires_grad_())
        return self.entrances[-1]

    def keep_jacobian(self, _module: Any, inputs: tuple[Tensor, ...]) -> None:
        """Before W_out, whose input is k: since k is elementwise, the gradient of its sum is the diagonal."""
        slopes = torch.autograd.grad(inputs[0].sum(), self.entrances)
        diagonals = [part for slope in slopes for part in slope.view(-1, 1).split(self.outer.shape[1])]
        through = diagonals[0] * self.inner[0]
        for diagonal, inner in zip(diagonals[1:], self.inner[1:], strict=True):
            through.addcmul_(diagonal, inner)  # in place: these are the largest arrays of a sweep
        self.jacobian: Float[Tensor, "d_model d_model"] = self.outer @ through

    def replace_derivative(self, _module: Any, _inputs: Any, output: Tensor) -> Tensor:
        """Behind W_out: the same output y, and ∂y/∂x as its derivative by the MLP's input x."""
        return output.detach() + (self.input - self.input.detach()) @ self.jacobian.T
