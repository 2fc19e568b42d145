"""Keys of ascending layers by one forward pass, which rests before a layer's output projection and goes on later.

A layer's key does not depend on that layer's output projection. So the weight may be edited while the pass rests, and
what follows is run with the new one: every block once, instead of all blocks below each layer anew.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import at_decisive, batches, forward, halt
from jacobian_lab.model.footprint import carried_bytes
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt


@dataclass(frozen=True, eq=False)
class _Rest:
    """State of a pass before the output projection of a layer.

    Attributes:
        layer: The layer.
        outputs: Outputs of the block below and of the layer's attention, as the modules returned them.
        key: Input of the projection, ``[row, token, d_mlp]``, or with all tokens of all rows on one axis.
    """

    layer: int
    outputs: dict[nn.Module, Any]
    key: Float[Tensor, "*token d_mlp"]


class StepwisePass:
    """A forward pass of rows that stops at the keys of one layer after another.

    Args:
        model: The model. Between two calls of `keys` only the output projection of the first one's layer may change.
        rows: The rows; what follows the decisive token is not run.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[Prompt]) -> None:
        self.model, self.rows = model, [row.cut() for row in rows]
        self._groups = batches(self.rows)
        self._rests: dict[int, _Rest] = {}

    @property
    def size(self) -> int:
        """Bytes of the states that the pass carries from one layer to the next, padding among them."""
        model, rows = self.model, self.rows
        tokens = sum(len(group) * max(len(rows[index].ids) for index in group) for group in self._groups)
        return tokens * carried_bytes(model.d_model, model.d_mlp, model.dtype.itemsize)

    @property
    def resting(self) -> bool:
        """True while it carries states."""
        return bool(self._rests)

    @torch.no_grad()
    def keys(self, layer: int, *, carry: bool = True) -> Float[Tensor, "row d_mlp"]:
        """Run to the key of a layer, with the weights as they are now.

        Args:
            layer: The layer, above that of the call before.
            carry: Whether to hold the states of all tokens, so that the next call goes on from them; else it runs the
                rows anew.

        Returns:
            Keys of the decisive tokens in the order of the rows, in the model's dtype.

        Raises:
            InputError: If the pass is at this layer already, or beyond.
        """
        model = self.model
        keys = torch.empty(len(self.rows), model.d_mlp, dtype=model.dtype, device=model.device)
        for number, group in enumerate(self._groups):
            rows = [self.rows[index] for index in group]
            rest = _advance(model, rows, self._rests.pop(number, None), layer)
            keys[group] = at_decisive(rest.key.to(model.device), rows)
            if carry:
                self._rests[number] = rest
        return keys


def decisive_keys(model: LanguageModel, rows: Sequence[Prompt], layer: int) -> Float[Tensor, "row d_mlp"]:
    """Keys of the decisive tokens.

    Args:
        model: The model.
        rows: The rows; what follows the decisive token does not matter and is not run.
        layer: Layer whose key to read.

    Returns:
        In the order of `rows`, in the model's dtype.
    """
    return StepwisePass(model, rows).keys(layer, carry=False)


def _advance(model: LanguageModel, rows: Sequence[Prompt], rest: _Rest | None, layer: int) -> _Rest:
    """Run rows from where they rest, or from the embedding, to the key of a layer."""
    if rest is not None and rest.layer >= layer:
        raise InputError(f"expected a layer above {rest.layer}, got {layer}: ask for keys in ascending order")
    outputs: dict[nn.Module, Any] = {}
    keys: list[Tensor] = []

    def stop_at_key(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        keys.append(inputs[0])
        halt()

    with ExitStack() as stack:
        if rest is not None:
            stack.enter_context(_resumed(model, rest))
        for module in [*model.blocks[max(0, layer - 1) : layer], *_attention(model, layer)]:
            stack.callback(module.register_forward_hook(partial(_note, outputs)).remove)
        stack.callback(model.projection(layer).register_forward_pre_hook(stop_at_key).remove)
        forward(model, rows)
    return _Rest(layer, outputs, keys[0])


@contextmanager
def _resumed(model: LanguageModel, rest: _Rest) -> Iterator[None]:
    """Let the modules that a resting pass has behind it return what they did; the projection is run anew."""
    layer = rest.layer
    output = model.projection(layer)(rest.key)
    with ExitStack() as stack:
        for block in model.blocks[:layer]:  # whatever those further below return is not read
            stack.enter_context(_standing_in(block, lambda: rest.outputs[model.blocks[layer - 1]]))
        for module in _attention(model, layer):
            stack.enter_context(_standing_in(module, partial(rest.outputs.__getitem__, module)))
        stack.enter_context(_standing_in(model.mlp(layer), lambda: output))
        yield


def _attention(model: LanguageModel, layer: int) -> list[nn.Module]:
    """Parts of a block beside its MLP that multiply by matrices; norms, which do not, are run anew."""
    children = (child for child in model.blocks[layer].children() if child is not model.mlp(layer))
    return [child for child in children if any(weight.dim() > 1 for weight in child.parameters())]


@contextmanager
def _standing_in(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return what a function gives, whatever its input."""
    own = vars(module)
    before = own.get("forward")  # that of a model on several cards is the instance's own
    own["forward"] = lambda *_, **__: output()
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _note(outputs: dict[nn.Module, Any], module: nn.Module, _inputs: Any, output: Any) -> None:
    outputs[module] = output
