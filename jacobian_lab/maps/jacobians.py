"""J_{l→L} = ∂h_L/∂h_l at the decisive token: dense, as jvp and vjp, as a linear operator.

The dense sweep runs the single token forward once, pulls the d unit cotangents of the last layer
back through the blocks together, and reads them off at every layer on the way: all J_{l→L} for the
price of the deepest, at the speed of matrix products.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jacobian_lab.errors import InputError
from jacobian_lab.maps.merged_mlps import merged_mlps
from jacobian_lab.maps.replay import RESIDUAL, Frozen, Site, trajectory
from jacobian_lab.model.footprint import sweep_bytes

MEMORY_BUDGET = 2**30
"""Bytes that a sweep may hold beside the model and its result, unless told otherwise."""

COLUMNS = 256
"""Columns of a matrix that one product takes at once."""


def dense_jacobians(
    frozen: Frozen,
    layers: Sequence[int],
    last: int,
    states: Float[Tensor, "row d_model"] | None = None,
    *,
    site: Site = RESIDUAL,
    budget: int = MEMORY_BUDGET,
) -> Float[Tensor, "row layer d_model d_model"]:
    """J_{l→last} of every row, from every layer, in one sweep (paper §3; methods.md §0).

    Args:
        frozen: Rows frozen with the lowest of `layers` among their starts, up to `last` or above.
        layers: Ascending layers, none above `last`.
        last: The layer L.
        states: Decisive states at the lowest layer to linearise at; the unmodified ones by default.
        site: The residual stream, or the MLPs' outputs: then J maps a change of what the MLP of l
            adds to the change of what the MLP of `last` adds.
        budget: Bytes that one sweep may hold beside its result and a small Jacobian for each MLP;
            cotangents are taken in chunks that fit.

    Returns:
        ``J[row, layer, i, j] = ∂h_last[i] / ∂h_layer[j]``, in the model's dtype; the identity at `last`.

    Raises:
        ValueError: If a layer is above `last`, where h_last does not depend on it.
    """
    if max(layers) > last:
        raise ValueError(f"expected layers up to {last}, got {max(layers)}")
    states = frozen.states(layers[0]) if states is None else states
    width, below = states.shape[1], [layer for layer in layers if layer < last]
    result = torch.empty(len(frozen), len(layers), width, width, dtype=frozen.model.dtype, device=states.device)
    identity = torch.eye(width, dtype=result.dtype, device=states.device)
    result[:, len(below) :] = identity
    chunk = max(1, min(width, budget // _bytes_per_cotangent(frozen, last - layers[0])))
    for row in range(len(frozen)) if below else ():
        one = frozen.select(torch.tensor([row], device=states.device))
        state = states[row : row + 1].detach().requires_grad_()
        with torch.enable_grad(), attention_by_formula(), merged_mlps(frozen.model, range(below[0] + 1, last + 1)):
            along = trajectory(one, below[0], state, last, site)
        inputs = [along[layer] for layer in below]
        for cotangents, rows in zip(identity[:, None, None].split(chunk), result[row].split(chunk, 1), strict=True):
            for place, values in enumerate(_pulled_back(along[last], inputs, cotangents)):
                rows[place] = values[:, 0, 0]
    return result


def layer_factors(
    frozen: Frozen, layers: Sequence[int], states: Float[Tensor, "row d_model"] | None = None
) -> Iterator[Float[Tensor, "row d_model d_model"]]:
    """The factors J_{i→i+1} between neighbours in a list of layers, whose product is J_{l→L}.

    Args:
        frozen: Rows frozen with the lowest of `layers` among their starts.
        layers: Ascending layers.
        states: Decisive states at the lowest layer; the unmodified ones by default.

    Yields:
        One factor for each neighbouring pair, in ascending order, each at the state that the one
        below leads to; of the residual stream, since MLP outputs alone do not determine what follows.
    """
    states = frozen.states(layers[0]) if states is None else states
    with torch.no_grad():
        along = trajectory(frozen, layers[0], states, layers[-1])
    for lower, upper in pairwise(layers):
        yield dense_jacobians(frozen, [lower], upper, along[lower][:, 0])[:, 0]


def jvp(
    frozen: Frozen,
    layer: int,
    last: int,
    directions: Float[Tensor, "row d_model"],
    states: Float[Tensor, "row d_model"] | None = None,
    *,
    site: Site = RESIDUAL,
) -> Float[Tensor, "row d_model"]:
    """J·δ by forward-mode differentiation.

    Args:
        frozen: The rows.
        layer: The layer l.
        last: The layer L.
        directions: One δ a row.
        states: Decisive states to linearise at; the unmodified ones by default.
        site: The residual stream or the MLPs' outputs.

    Returns:
        One J·δ a row, in the model's dtype.
    """
    through, states = _map(frozen, layer, last, states, site)
    return torch.func.jvp(through, (states,), (directions.to(states.dtype),))[1]


def vjp(
    frozen: Frozen,
    layer: int,
    last: int,
    cotangents: Float[Tensor, "row d_model"],
    states: Float[Tensor, "row d_model"] | None = None,
    *,
    site: Site = RESIDUAL,
) -> Float[Tensor, "row d_model"]:
    """Jᵀ·u by reverse-mode differentiation.

    Args:
        frozen: The rows.
        layer: The layer l.
        last: The layer L.
        cotangents: One u a row.
        states: Decisive states to linearise at; the unmodified ones by default.
        site: The residual stream or the MLPs' outputs.

    Returns:
        One Jᵀ·u a row, in the model's dtype.
    """
    through, states = _map(frozen, layer, last, states, site)
    pull_back: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(through, states)[1]
    return pull_back(cotangents.to(states.dtype))[0]


def linear_operator(
    frozen: Frozen,
    row: int,
    layer: int,
    last: int,
    state: Float[Tensor, " d_model"] | None = None,
    *,
    site: Site = RESIDUAL,
) -> LinearOperator:
    """J_{layer→last} of one row as SciPy sees it, for what is too large to hold.

    Args:
        frozen: The rows.
        row: Which of them.
        layer: The layer l.
        last: The layer L.
        state: The decisive state to linearise at; the unmodified one by default.
        site: The residual stream or the MLPs' outputs.

    Returns:
        A square operator with ``matvec`` (J·δ) and ``rmatvec`` (Jᵀ·u), in float64 if the model is, else in float32;
        ``matmat`` and ``rmatmat`` take `COLUMNS` at once.
    """
    one = frozen.select(torch.tensor([row], device=frozen.start.device))
    through, here = _map(one, layer, last, None if state is None else state[None], site)
    pull_back: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(through, here)[1]

    def push(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        return torch.func.jvp(through, (here,), (vector[None],))[1][0]

    def pull(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        return pull_back(vector[None])[0][0]

    def products(product: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda vectors: to_numpy(by_columns(product, to_torch(vectors, here)))

    forward, backward = products(push), products(pull)
    return LinearOperator(
        (here.shape[1],) * 2,
        matvec=forward,
        rmatvec=backward,
        matmat=forward,
        rmatmat=backward,
        dtype=to_numpy(here).dtype,
    )


def by_columns(
    product: Callable[[Float[Tensor, " d_model"]], Float[Tensor, " d_model"]], vectors: Float[Tensor, "d_model *column"]
) -> Float[Tensor, "d_model *column"]:
    """Products with a vector, or with each column of a matrix, `COLUMNS` of them at once.

    Args:
        product: The product with a vector.
        vectors: The vector, or some as columns, of which there may be none.

    Returns:
        Of the same shape.
    """
    if vectors.ndim == 1:
        return product(vectors)
    return torch.func.vmap(product, 1, 1, chunk_size=COLUMNS)(vectors) if vectors.shape[1] else vectors


def to_torch(values: np.ndarray | Tensor, like: Tensor) -> Tensor:
    """Numbers as torch has them.

    Args:
        values: Real numbers of any type and layout.
        like: A tensor whose dtype and device they are to have.

    Returns:
        A tensor without gradients.

    Raises:
        InputError: If they are not real numbers.
    """
    if not isinstance(values, Tensor) and values.dtype.kind in "biuf":
        values = torch.from_numpy(np.ascontiguousarray(values, np.float64))  # torch knows fewer types and layouts
    if not isinstance(values, Tensor) or values.is_complex():
        raise InputError(f"expected real numbers, got {values.dtype}: give floats")
    return values.detach().to(like)


def to_numpy(values: Tensor) -> np.ndarray:
    """A tensor as NumPy has it.

    Args:
        values: On any device.

    Returns:
        On the CPU, in float32 or better.
    """
    return values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32)).numpy()


def precision(dtype: torch.dtype) -> float:
    """ε of the Jacobians that a model computes, as `definiteness` asks for it.

    Args:
        dtype: The model's.

    Returns:
        The dtype's own, but never finer than that of float32, in which transformers computes norms whatever the dtype.
    """
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _map(
    frozen: Frozen, layer: int, last: int, states: Tensor | None, site: Site
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function to differentiate, and where."""
    states = frozen.states(layer) if states is None else states

    def through(state: Tensor) -> Tensor:
        with attention_by_formula():
            return trajectory(frozen, layer, state, last, site)[last][:, 0]

    return through, states.to(frozen.model.dtype)


def _pulled_back(
    output: Float[Tensor, "1 1 d_model"],
    inputs: Sequence[Float[Tensor, "1 1 d_model"]],
    cotangents: Float[Tensor, "cotangent 1 1 d_model"],
) -> tuple[Float[Tensor, "cotangent 1 1 d_model"], ...]:
    """All cotangents at once, by functorch's rules: those of `is_grads_batched` lack layer norms and attention."""
    return torch.func.vmap(lambda one: torch.autograd.grad(output, inputs, one, retain_graph=True))(cotangents)


def attention_by_formula() -> AbstractContextManager[None]:
    """Attention by its formula: the fused kernels have no forward mode and no batched backward.

    Returns:
        A context manager.
    """
    return sdpa_kernel(SDPBackend.MATH)


def _bytes_per_cotangent(frozen: Frozen, blocks: int) -> int:
    """Bytes that a sweep holds for one cotangent."""
    model = frozen.model
    prefix = max((keys[0].numel() for keys, _ in frozen.prefix.values()), default=0)
    return sweep_bytes(blocks, model.d_model, model.d_mlp, model.dtype.itemsize, prefix)
