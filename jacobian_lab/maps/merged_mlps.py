"""The one optimisation of the sweep: an MLP's small Jacobian in place of its large matrices."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from jacobian_lab.model.language_model import LanguageModel, matrix


@contextmanager
def merged_mlps(model: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Let the MLPs hand back cotangents through their own small Jacobian.

    Of a single token it is W_out·Σ_i diag(c_i)·W_i, with the W_i at the MLP's entrance and c_i the
    derivative of the key by what they give out: one product of large matrices a block, in place of
    one for each of them. Only for single tokens, and only for first derivatives.
    """
    with ExitStack() as stack:
        for layer in layers:
            entrances: list[Tensor] = []
            jacobians: list[Tensor] = []

            def cut(_module: Any, _inputs: Any, output: Tensor, entrances: list[Tensor] = entrances) -> Tensor:
                entrances.append(output.detach().requires_grad_())
                return entrances[-1]

            def merge(
                module: Any,
                inputs: tuple[Tensor, ...],
                layer: int = layer,
                entrances: list[Tensor] = entrances,
                jacobians: list[Tensor] = jacobians,
            ) -> None:
                slopes = [slope[0, 0, :, None] for slope in torch.autograd.grad(inputs[0].sum(), entrances)]
                first, *others = (matrix(inner) for inner in model.inner(layer))
                key = slopes[0] * first
                for slope, other in zip(slopes[1:], others, strict=True):
                    key.addcmul_(slope, other)
                jacobians.append(matrix(module) @ key)

            def replace(
                _module: Any, inputs: tuple[Tensor, ...], output: Tensor, jacobians: list[Tensor] = jacobians
            ) -> Tensor:
                return output.detach() + (inputs[0] - inputs[0].detach()) @ jacobians[0].T

            for module in model.inner(layer):
                stack.callback(module.register_forward_hook(cut).remove)
            stack.callback(model.projection(layer).register_forward_pre_hook(merge).remove)
            stack.callback(model.mlp(layer).register_forward_hook(replace).remove)
        yield
