"""Counts of the pieces that all work is made of."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Work:
    """Counts of pieces of work; they add up, and a multiple is so often the same.

    Attributes:
        passes: Blocks that are run forward, however many tokens run through each.
        tokens: Tokens through blocks forward: each counts once a block.
        back_passes: Blocks that are run forward and back.
        back_tokens: Tokens through blocks forward and back.
        logits: Rows of logits with their log-softmax.
        back_logits: Rows of logits through which gradients are taken.
        model_products: Floating-point operations of large products in the model's dtype.
        single_products: The same in float32.
        double_products: The same in float64.
        cholesky: Cubes of the widths of matrices that are factored.
        spectra: Cubes of the widths of matrices whose eigenvalues or singular values are taken.
        eigenvectors: Cubes of the widths of matrices whose own eigenvectors are sought, on the processor.
        moved: Bytes that are read, hashed or written.
    """

    passes: float = 0.0
    tokens: float = 0.0
    back_passes: float = 0.0
    back_tokens: float = 0.0
    logits: float = 0.0
    back_logits: float = 0.0
    model_products: float = 0.0
    single_products: float = 0.0
    double_products: float = 0.0
    cholesky: float = 0.0
    spectra: float = 0.0
    eigenvectors: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(count + further for count, further in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(count * times for count in astuple(self)))

    def at(self, prices: "Work") -> float:
        """Add up the counts, each at its price."""
        return float(sum(count * price for count, price in zip(astuple(self), astuple(prices), strict=True)))


def total(works: Iterable[Work]) -> Work:
    """Add up counts."""
    return sum(works, Work())


@dataclass(frozen=True)
class Stage:
    """A stage of a job.

    Attributes:
        name: Its name.
        work: Its counts.
        held: Bytes that it holds where the model is, beside the weights.
        least: The same, however its facts are divided; ``held`` by default.
        host: Bytes that it holds on the host in any case.
        shared: Whether workers share it.
    """

    name: str
    work: Work = Work()
    held: int = 0
    least: int | None = None
    host: int = 0
    shared: bool = False
