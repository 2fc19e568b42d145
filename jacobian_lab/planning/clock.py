"""How long the pieces take that all work is made of: measured on the machine at hand in a second or two."""

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from jacobian_lab.maps.replay import Frozen, freeze, trajectory
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.planning.sketch import BLOCKS, two_blocks

BATCHES = (1, 16, 128, 1024)
"""Tokens side by side at which a block is measured; between them seconds are interpolated."""

LONGEST = 0.5
"""Seconds that a batch may take to be measured; larger ones are taken to grow in proportion."""

RATES = {"float32": torch.float32, "float64": torch.float64}

PREFIX = 8
"""Tokens before the decisive one of the prompt that is measured."""


@dataclass(frozen=True)
class Clock:
    """Seconds of the pieces of work, on one machine and for one model.

    Attributes:
        machine: What it was measured on.
        card: Whether that is a card.
        blocks: By tokens side by side: seconds of one block, forward, and forward and back.
        logits: Seconds a row of logits and their log-softmax in float64, forward, and forward and back.
        rates: Floating-point operations a second in large products: of the model's dtype, float32 and float64.
        cubes: Seconds over the cube of the width, in float64: ``spectra`` (eigenvalues of S and singular values
            of J), ``eigenvectors`` (of J, on the processor), ``cholesky``.
        moved: Bytes a second that are read and hashed.
        descents: As ``blocks``, of the copy of the model in another dtype that descents run in; none if they do not.
    """

    machine: str
    card: bool
    blocks: Mapping[int, tuple[float, float]]
    logits: tuple[float, float]
    rates: Mapping[str, float]
    cubes: Mapping[str, float]
    moved: float
    descents: Mapping[int, tuple[float, float]] | None = None

    def descent(self, tokens: int, *, back: bool = False) -> float:
        """One block over tokens side by side, in the dtype that descents run in."""
        own = self if self.descents is None else replace(self, blocks=self.descents)
        return own.block(tokens, back=back)

    def slowdown(self) -> float:
        """How many times as long a descent takes for its dtype, where most tokens were measured side by side."""
        most = max(self.blocks) if self.descents is None else max(self.descents)
        return self.descent(most, back=True) / self.block(most, back=True)

    def block(self, tokens: int, *, back: bool = False) -> float:
        """One block over tokens side by side."""
        sizes = sorted(self.blocks)
        seconds = [self.blocks[size][back] for size in sizes]
        if tokens <= sizes[-1]:
            return float(np.interp(tokens, sizes, seconds))
        slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        return seconds[-1] + (tokens - sizes[-1]) * max(slope, seconds[-1] / sizes[-1] / 2)

    def passes(self, tokens: int, at_once: int, *, back: bool = False) -> float:
        """One block over tokens, so many of them side by side at the most."""
        return self.block(min(tokens, at_once), back=back) * max(1.0, tokens / at_once) if tokens else 0.0


def measured(model: LanguageModel, words: int | None = None, descents: torch.dtype | None = None) -> Clock:
    """Measure the pieces for a model, or for a small one with the same blocks."""
    words = words or int(model.hf.config.vocab_size)
    if model.n_layers < BLOCKS:
        model = two_blocks(model, model.device)
    return Clock(
        machine=name_of(model.devices),
        card=model.device.type == "cuda",
        blocks=_blocks(model),
        logits=_logits(model, words),
        rates={"model": _rate(model.dtype, model.device)}
        | {name: _rate(dtype, model.device) for name, dtype in RATES.items()},
        cubes=seconds_over_cube(model.device),
        moved=bytes_moved(),
        descents=None if descents is None else _blocks(two_blocks(model, model.device, descents)),
    )


def name_of(devices: Sequence[torch.device]) -> str:
    """What a machine is called in a plan."""
    if devices[0].type == "cuda":
        return f"{len(devices)} × " * (len(devices) > 1) + torch.cuda.get_device_name(devices[0])
    return f"{torch.get_num_threads()} threads of this processor"


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """How long some work takes, once it has been done once."""

    def once() -> float:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    first, again = once(), once()
    return again if first > LONGEST else statistics.median([again, *(once() for _ in range(repeats - 1))])


def _blocks(model: LanguageModel) -> dict[int, tuple[float, float]]:
    """One block over a token of every row, forward and back, until a batch takes too long."""
    frozen = freeze(model, [Prompt((0,) * (PREFIX + 1), PREFIX)], [0], 1)
    found: dict[int, tuple[float, float]] = {}
    for size in BATCHES:
        rows = frozen.select(torch.zeros(size, dtype=torch.long, device=model.device))
        states = rows.states(0).clone().requires_grad_()

        def forward(rows: Frozen = rows, states: torch.Tensor = states) -> torch.Tensor:
            return trajectory(rows, 0, states, 1)[1]

        def back(forward: Callable[[], torch.Tensor] = forward, states: torch.Tensor = states) -> None:
            torch.autograd.grad(forward().sum(), states)

        with torch.no_grad():
            there = seconds_of(forward, model.device)
        found[size] = there, seconds_of(back, model.device)
        if found[size][1] > LONGEST and len(found) > 1:
            break
    return found


def _logits(model: LanguageModel, words: int, rows: int = 32) -> tuple[float, float]:
    states = _numbers(rows, model.d_model).to(model.device, model.dtype).requires_grad_()

    def forward() -> torch.Tensor:
        return model.head(model.norm(states)).double().log_softmax(-1)

    with torch.no_grad():
        there = seconds_of(forward, model.device)
    both = seconds_of(lambda: torch.autograd.grad(forward()[:, 0].sum(), states), model.device)
    scale = words / model.hf.config.vocab_size / rows
    return there * scale, both * scale


def _numbers(*shape: int) -> torch.Tensor:
    """Random numbers, torch's own state left as it was."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@cache
def _rate(dtype: torch.dtype, device: torch.device) -> float:
    size = 4096 if device.type == "cuda" else 1024
    square = _numbers(size, size).to(device, dtype)
    return 2 * size**3 / seconds_of(partial(torch.matmul, square, square), device)


@cache
def seconds_over_cube(device: torch.device, width: int | None = None) -> dict[str, float]:
    """What grows with the cube of a matrix's width, measured at one width."""
    width = width or (2048 if device.type == "cuda" else 256)
    J = torch.eye(width, device=device, dtype=torch.float64)
    J += 0.3 * _numbers(width, width).to(J) / width**0.5
    S, host = J @ J.T, J.cpu().numpy()

    def spectra() -> None:
        torch.linalg.svdvals(J)
        torch.linalg.eigvalsh(S)

    works: Mapping[str, Callable[[], Any]] = {
        "spectra": spectra,
        "cholesky": lambda: torch.linalg.cholesky(S),
    }
    found = {name: seconds_of(work, device) / width**3 for name, work in works.items()}
    host = host[:256, :256]
    return found | {"eigenvectors": seconds_of(lambda: np.linalg.eig(host), torch.device("cpu")) / len(host) ** 3}


@cache
def bytes_moved(size: int = 2**25) -> float:
    """How fast the host hashes."""
    content = np.zeros(size, dtype=np.uint8)
    return size / seconds_of(lambda: hashlib.sha256(content.data), torch.device("cpu"))
