"""Seconds of each piece of work: measured on the machine at hand, or known of a card."""

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.planning.shape import Shape, two_blocks
from jacobian_lab.planning.work import Work

FEW, MANY, MANY_ON_CARD = 16, 512, 8192
"""Tokens at which blocks are measured; a pass takes what these two say of its tokens and of itself."""

ROW = 16
"""Tokens of a row that is measured."""

LONGEST = 0.5
"""Seconds of work that is measured once alone."""

FORWARD = 1 / 3
"""The share of a block's time, forward and back, that is taken to be forward: a third of its products are."""


@dataclass(frozen=True)
class Rates:
    """A machine's seconds for each piece of work with one model.

    Attributes:
        machine: The machine in words.
        card: Whether the model is on a card.
        seconds: Seconds of one of each.
    """

    machine: str
    card: bool
    seconds: Work


@dataclass(frozen=True)
class Card:
    """A card that need not be here.

    Attributes:
        name: Its name.
        memory: Bytes.
        rates: Floating-point operations a second in large products, by dtype; none where they were not measured.
        launched: Seconds of one block forward and back however few the tokens.
        spectra: Seconds of a verdict by the matrix, over the cube of the width.
        solve: Seconds of a solve, over the cube of d_mlp.
    """

    name: str
    memory: int
    rates: Mapping[str, float]
    launched: float
    spectra: float
    solve: float

    def of(self, model: LanguageModel, count: int = 1) -> Rates:
        """Foretell the seconds of work with a model, whose weights are not looked at."""
        shape = Shape.of(model)
        own = self.rates[str(model.dtype).removeprefix("torch.")]
        logits = 2 * shape.d_model * shape.vocabulary / self.rates["float32"]
        token = 4 * shape.block / own
        seconds = Work(
            passes=FORWARD * self.launched,
            tokens=FORWARD * token,
            back_passes=self.launched,
            back_tokens=token,
            logits=logits,
            back_logits=2 * logits,
            model_products=1 / own,
            single_products=1 / self.rates["float32"],
            double_products=1 / self.rates["float64"],
            cholesky=self.solve,
            spectra=self.spectra,
            eigenvectors=_cubes(torch.device("cpu"))["eigenvectors"],
            moved=_moved(),
        )
        return Rates(f"one {self.name}" if count == 1 else f"{count} {self.name}s", True, seconds)


H200 = Card(
    "NVIDIA H200",
    150_754_820_096,
    {"float32": 50.3e12, "float64": 62e12, "bfloat16": 735e12, "float16": 735e12},
    launched=0.607 / (3 * 27),
    spectra=1.493 / 4096**3,
    solve=2.47 / 14336**3,
)
"""Measured with a model of Llama-3-8B's shape (``benchmarks/results``); float16 is taken to be as fast as bfloat16."""

H100 = Card("NVIDIA H100", 81_559 * 2**20, H200.rates, H200.launched, H200.spectra, H200.solve)
"""A card with an H200's arithmetic, whose rates these are, and less memory."""

CARDS: Mapping[str, Card] = {"h200": H200, "h100": H100}
"""Cards that a plan can be made for, by the name that ``--card`` takes."""

MEMORY: Mapping[str, int] = {
    "16 GB (T4)": 15 * 2**30,
    "24 GB (A10, L4, RTX 4090)": 23 * 2**30,
    "40 GB (A100)": 39 * 2**30,
    "48 GB (L40S, A6000)": 45 * 2**30,
    "80 GB (A100, H100)": H100.memory,
    "141 GB (H200)": H200.memory,
}
"""Usable bytes of the cards that are sold, the smallest first."""


def smallest_card(needed: int) -> str:
    """Name the smallest card with so much memory."""
    return next((name for name, memory in MEMORY.items() if memory >= needed), "more than one card")


def measured(model: LanguageModel, devices: Sequence[torch.device]) -> Rates:
    """Measure the pieces of work with a model's blocks, whose weights need not be there."""
    device, shape = devices[0], Shape.of(model)
    small = two_blocks(model, device)
    many = MANY_ON_CARD if device.type == "cuda" else MANY
    forward, back = _line(small, many, back=False), _line(small, many, back=True)
    logits, back_logits = _logits(small, shape.vocabulary)
    seconds = Work(
        passes=forward[0],
        tokens=forward[1],
        back_passes=back[0],
        back_tokens=back[1],
        logits=logits,
        back_logits=back_logits,
        model_products=_product(model.dtype, device),
        single_products=_product(torch.float32, device),
        double_products=_product(torch.float64, device),
        **_cubes(device),
        moved=_moved(),
    )
    return Rates(name_of(devices), device.type == "cuda", seconds)


def name_of(devices: Sequence[torch.device]) -> str:
    """Name a machine: its card, with their number if there are several, or the threads of its processor."""
    if devices[0].type == "cuda":
        return f"{len(devices)} × " * (len(devices) > 1) + torch.cuda.get_device_name(devices[0])
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)} of this processor"


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Time some work once it has been done once; the median of some repeats."""

    def once() -> float:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    first, again = once(), once()
    return again if first > LONGEST else statistics.median([again, *(once() for _ in range(repeats - 1))])


def _line(small: LanguageModel, many: int, *, back: bool) -> tuple[float, float]:
    """Seconds of one block by itself, and of each token through it, from few and from many tokens."""
    few_seconds, many_seconds = (_block(small, tokens, back=back) for tokens in (FEW, many))
    token = max(many_seconds - few_seconds, 0.1 * many_seconds) / (many - FEW)
    return max(0.0, few_seconds - FEW * token), token


def _block(small: LanguageModel, tokens: int, *, back: bool) -> float:
    """Seconds of one block over so many tokens side by side."""
    states = _numbers(tokens // ROW, ROW, small.d_model).to(small.device, small.dtype).requires_grad_(back)

    def through() -> torch.Tensor:
        return small.hf.base_model(inputs_embeds=states, use_cache=False).last_hidden_state

    def work() -> None:
        if back:
            torch.autograd.grad(through().sum(), states)
        else:
            through()

    with torch.set_grad_enabled(back):
        return seconds_of(work, small.device) / small.n_layers


def _logits(small: LanguageModel, vocabulary: int, rows: int = 32) -> tuple[float, float]:
    """Seconds of a row of logits and their log-softmax in float64, forward, and forward and back."""
    states = _numbers(rows, small.d_model).to(small.device, small.dtype).requires_grad_()

    def forward() -> torch.Tensor:
        return small.head(small.norm(states)).double().log_softmax(-1)

    with torch.no_grad():
        there = seconds_of(forward, small.device)
    both = seconds_of(lambda: torch.autograd.grad(forward()[:, 0].sum(), states), small.device)
    scale = vocabulary / small.hf.config.vocab_size / rows
    return there * scale, both * scale


def _numbers(*shape: int) -> torch.Tensor:
    """Random numbers, torch's own state left as it was."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@cache
def _product(dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a floating-point operation in large products."""
    size = 4096 if device.type == "cuda" else 768
    square = _numbers(size, size).to(device, dtype)
    return seconds_of(partial(torch.matmul, square, square), device) / (2 * size**3)


@cache
def _cubes(device: torch.device) -> dict[str, float]:
    """Seconds that grow with the cube of a matrix's width, over that cube."""
    width = 2048 if device.type == "cuda" else 256
    J = torch.eye(width, device=device, dtype=torch.float64)
    J += 0.3 * _numbers(width, width).to(J) / width**0.5
    S, host = J @ J.T, J[:256, :256].cpu().numpy()

    def spectra() -> None:
        torch.linalg.svdvals(J)
        torch.linalg.eigvalsh(S)

    return {
        "cholesky": seconds_of(lambda: torch.linalg.cholesky(S), device) / width**3,
        "spectra": seconds_of(spectra, device) / width**3,
        "eigenvectors": seconds_of(lambda: np.linalg.eig(host), torch.device("cpu")) / len(host) ** 3,
    }


@cache
def _moved(size: int = 2**24) -> float:
    """Seconds in which the host hashes a byte."""
    content = np.zeros(size, dtype=np.uint8)
    return seconds_of(lambda: hashlib.sha256(content.data), torch.device("cpu")) / size
