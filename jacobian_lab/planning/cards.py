"""Cards that a plan can be made for without having one: what was measured of them (`benchmarks/gpu.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass

from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.planning.clock import BATCHES, Clock
from jacobian_lab.planning.sketch import Sizes


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        name: Its name.
        memory: Bytes.
        rates: Floating-point operations a second in large products, by dtype.
        launched: Seconds of one block however few the tokens, forward, and forward and back.
        read: Bytes a second that it reads.
        cubes: As `Clock` has them; eigenvectors are its host's.
        moved: Bytes a second that its host hashes.
    """

    name: str
    memory: int
    rates: Mapping[str, float]
    launched: tuple[float, float]
    read: float
    cubes: Mapping[str, float]
    moved: float

    def clock(self, model: LanguageModel) -> Clock:
        """Its clock for a model.

        Args:
            model: The model; its weights are not looked at.

        Returns:
            The clock.
        """
        sizes, dtype = Sizes.of(model), str(model.dtype).removeprefix("torch.")
        rate, bytes_of = self.rates[dtype], sizes.block * model.dtype.itemsize

        def block(tokens: int, back: int) -> float:
            work, read = 2 * (1 + back) * sizes.block * tokens / rate, (1 + back) * bytes_of / self.read
            return max(work, read, self.launched[back])

        logits = 2 * sizes.width * sizes.words / self.rates["float32"] + 40 * sizes.words / self.read
        return Clock(
            machine=self.name,
            card=True,
            blocks={tokens: (block(tokens, 0), block(tokens, 1)) for tokens in (*BATCHES, 4096)},
            logits=(logits, 2 * logits),
            rates={"model": rate, "float32": self.rates["float32"], "float64": self.rates["float64"]},
            cubes=self.cubes,
            moved=self.moved,
        )


CARDS: Mapping[str, Card] = {
    "h200": Card(
        "one NVIDIA H200",
        150_754_820_096,
        {"float32": 50.5e12, "float64": 62.5e12, "bfloat16": 735e12, "float16": 735e12},
        (2.5e-3, 7.0e-3),
        4.3e12,
        {"spectra": 2.2e-11, "eigenvectors": 2.5e-9, "cholesky": 6e-13, "eigh": 3e-11},
        1e9,
    )
}
"""By the name that ``--card`` takes."""
