"""RLEdit's hypernetwork: from keys and gradients to low-rank changes of many matrices of one shape, and back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobian_lab.model.language_model import LanguageModel, matrix

NEAR_ZERO = 1.2e-7
"""What is added to a standard deviation."""


class Normalizer:
    """Mean and standard deviation of all rows so far, independent of their batches.

    The published code adds the unbiased variance of each batch. For small batches that is too much; after a batch of
    one row it is NaN for ever.

    Attributes:
        count: Rows seen.
        mean: Their mean, ``[in + out]``.
        squares: Sum of their squared distances from it.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=dtype, device=device)
        self.squares = torch.zeros_like(self.mean)

    def see(self, rows: Float[Tensor, "row width"]) -> None:
        """Take rows into account."""
        if not len(rows):
            return
        mean, count = rows.mean(0), self.count + len(rows)
        apart = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + apart**2 * self.count * len(rows) / count
        self.mean += apart * len(rows) / count
        self.count = count

    def __call__(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Subtract the mean and divide by the standard deviation; rows stay as they are until there are two."""
        if self.count < 2:
            return rows
        return (rows - self.mean) / ((self.squares / (self.count - 1)).sqrt() + NEAR_ZERO)

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {"count": torch.tensor(self.count), "mean": self.mean.clone(), "squares": self.squares.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what another was."""
        self.count = int(state["count"])
        self.mean, self.squares = (state[n].to(self.mean, copy=True) for n in ("mean", "squares"))


class Hypernetwork(nn.Module):
    """One network for all matrices of one shape.

    From standardised keys and gradients z = [k; g] of the answers' tokens, blocks ``y ← y + scale ⊙ relu(y A B + bias)
    + shift``, whose scales and shifts belong to a matrix and whose A, B and biases to all. At first it is the identity.

    Attributes:
        scale: ``[block, matrix, in + out]``; so is ``shift``.
        log_ridge: λ of each matrix, whose exponential is added to KᵀK.
        rate: η of each matrix.
    """

    def __init__(
        self,
        matrices: int,
        inputs: int,
        outputs: int,
        *,
        rank: int,
        blocks: int,
        rate: float,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        width, generator = inputs + outputs, torch.Generator().manual_seed(seed)
        self.inputs = inputs
        down = torch.randn(blocks, width, rank, generator=generator, dtype=torch.float64)
        self.down = nn.Parameter(down.to(dtype))
        self.up = nn.Parameter(torch.zeros(blocks, rank, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(blocks, width, dtype=dtype))
        self.scale = nn.Parameter(torch.ones(blocks, matrices, width, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(blocks, matrices, width, dtype=dtype))
        self.log_ridge = nn.Parameter(torch.zeros(matrices, dtype=dtype))
        self.rate = nn.Parameter(torch.full((matrices,), rate, dtype=dtype))

    def forward(
        self, number: int, keys: Float[Tensor, "token in"], standard: Float[Tensor, "token width"]
    ) -> Float[Tensor, "token out"]:
        """Value that each token wants of a matrix: v = −η ⟨k, k̃⟩ g̃."""
        hidden = standard
        for block in range(len(self.down)):
            inner = hidden @ self.down[block] @ self.up[block] + self.bias[block]
            hidden = hidden + self.scale[block, number] * inner.relu() + self.shift[block, number]
        imagined, gradients = hidden.split([self.inputs, hidden.shape[1] - self.inputs], dim=1)
        return -self.rate[number] * (keys * imagined).sum(1, keepdim=True) * gradients


@dataclass(frozen=True, eq=False)
class Solve:
    """Least-squares change that realizes the tokens' values V: Δ = (KᵀK + e^λ I)⁻¹ KᵀV, ``[in, out]``.

    Attributes:
        keys: K, a row a token.
        ridge: e^λ.
    """

    keys: Float[Tensor, "token in"]
    ridge: Float[Tensor, ""]

    def change(self, values: Float[Tensor, "token out"]) -> Float[Tensor, "in out"]:
        """Δ of V, by the smaller of two equal forms."""
        K, (tokens, inputs) = self.keys, self.keys.shape
        if tokens < inputs:
            gram = K @ K.T + self.ridge * torch.eye(tokens, dtype=K.dtype, device=K.device)
            return K.T @ torch.cholesky_solve(values, torch.linalg.cholesky(gram))
        return self._over(K.T @ values)

    def pull(self, gradient: Float[Tensor, "in out"]) -> Float[Tensor, "token out"]:
        """∂L/∂V of ∂L/∂Δ: K (KᵀK + e^λ I)⁻¹ G."""
        return self.keys @ self._over(gradient)

    def pull_ridge(self, gradient: Float[Tensor, "in out"], change: Float[Tensor, "in out"]) -> Float[Tensor, ""]:
        """∂L/∂λ of ∂L/∂Δ: −e^λ ⟨(KᵀK + e^λ I)⁻¹ G, Δ⟩."""
        return -self.ridge * (self._over(gradient) * change).sum()

    def _over(self, right: Float[Tensor, "in out"]) -> Float[Tensor, "in out"]:
        """(KᵀK + e^λ I)⁻¹ of a matrix, by Woodbury where there are fewer tokens than inputs."""
        K, (tokens, inputs) = self.keys, self.keys.shape
        if tokens < inputs:
            gram = K @ K.T + self.ridge * torch.eye(tokens, dtype=K.dtype, device=K.device)
            return (right - K.T @ torch.cholesky_solve(K @ right, torch.linalg.cholesky(gram))) / self.ridge
        gram = K.T @ K + self.ridge * torch.eye(inputs, dtype=K.dtype, device=K.device)
        return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


def pull_back(
    network: Hypernetwork,
    number: int,
    keys: Float[Tensor, "token in"],
    standard: Float[Tensor, "token width"],
    gradient: Float[Tensor, "in out"],
    penalty: float = 0.0,
) -> None:
    """Carry a loss's gradient with regard to one matrix's change back to the network, and add it there."""
    values = network(number, keys, standard)
    with torch.no_grad():
        solve = Solve(keys, network.log_ridge[number].exp())
        change = solve.change(values)
        whole = gradient + 2 * penalty * change
        pulled, ridge = solve.pull(whole), solve.pull_ridge(whole, change)
    values.backward(pulled)
    if network.log_ridge.grad is None:
        network.log_ridge.grad = torch.zeros_like(network.log_ridge)
    network.log_ridge.grad[number] += ridge


def total_norm(networks: Sequence[Hypernetwork]) -> Float[Tensor, ""]:
    """Norm of all gradients together."""
    gradients = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))


def changes_by_block(
    model: LanguageModel,
    modules: Mapping[str, nn.Module],
    before: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
) -> dict[str, list[float]]:
    """Size and rank of each block's change, and the share of it that its dtype lost."""
    names = ("changed_norm", "changed_rank", "changed_unstored")
    changes = {name: [math.nan] * model.n_layers for name in names}
    for layer in range(model.n_layers):
        own = {model.projection(layer), *model.inner(layer)}
        changed = [name for name, module in modules.items() if module in own]
        if not changed:
            continue
        exact = [deltas[name].double() for name in changed]
        stored = [matrix(modules[name]).double() - before[name].double() for name in changed]
        length = _size(exact)
        changes["changed_norm"][layer] = length / _size(before[name] for name in changed)
        changes["changed_rank"][layer] = float(max(torch.linalg.matrix_rank(delta) for delta in exact))
        lost = _size(delta - now for delta, now in zip(exact, stored, strict=True))
        changes["changed_unstored"][layer] = lost / length if length else 0.0
    return changes


def _size(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
