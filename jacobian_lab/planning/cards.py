"""Cards that a plan can be made for without having one: what `benchmarks/gpu.py` measured on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.planning.clock import BATCHES, RATES, Clock, bytes_moved, seconds_over_cube
from jacobian_lab.planning.sketch import Sizes

LARGEST = 4096
"""Tokens side by side up to which a block is told."""

FORWARD = 1 / 3
"""The share of a block's time, forward and back, that is taken to be forward: a third of its products are."""


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        name: Its name.
        memory: Bytes.
        rates: Floating-point operations a second in large products, by dtype.
        launched: Seconds of one block forward and back however few the tokens: an anchor by itself, over its passes
            and blocks.
        spectra: Seconds of a verdict by the matrix, over the cube of the width.
        solve: Seconds of a solve, over the cube of d_mlp.
    """

    name: str
    memory: int
    rates: Mapping[str, float]
    launched: float
    spectra: float
    solve: float

    def clock(self, model: LanguageModel, count: int = 1, descents: torch.dtype | None = None) -> Clock:
        """Its clock for a model; what its host does is taken to be done as fast as on the host at hand."""
        sizes, host = Sizes.of(model), torch.device("cpu")
        rate, logits = self._rate(model.dtype), 2 * sizes.width * sizes.words / self.rates["float32"]

        def blocks(rate: float) -> dict[int, tuple[float, float]]:
            both = {n: max(4 * sizes.block * n / rate, self.launched) for n in (*BATCHES, LARGEST)}
            return {tokens: (FORWARD * seconds, seconds) for tokens, seconds in both.items()}

        cubes = {"spectra": self.spectra, "cholesky": self.solve}
        return Clock(
            machine=f"one {self.name}" if count == 1 else f"{count} {self.name}s",
            card=True,
            blocks=blocks(rate),
            logits=(logits, 2 * logits),
            rates={"model": rate} | {name: self.rates[name] for name in RATES},
            cubes=cubes | {"eigenvectors": seconds_over_cube(host)["eigenvectors"]},
            moved=bytes_moved(),
            descents=None if descents is None else blocks(self._rate(descents)),
        )

    def _rate(self, dtype: torch.dtype) -> float:
        return self.rates[str(dtype).removeprefix("torch.")]


H200 = Card(
    "NVIDIA H200",
    150_754_820_096,
    {"float32": 50.3e12, "float64": 62e12, "bfloat16": 735e12, "float16": 735e12},
    launched=0.607 / (3 * 27),
    spectra=1.493 / 4096**3,
    solve=2.47 / 14336**3,
)
"""Measured with a model of Llama-3-8B's shape (``benchmarks/results``); float16 is taken to be as fast as bfloat16."""

CARDS: Mapping[str, Card] = {"h200": H200, "h100": replace(H200, name="NVIDIA H100", memory=81_559 * 2**20)}
"""By the name that ``--card`` takes. An H100 has an H200's arithmetic, whose rates these are, and less memory."""
