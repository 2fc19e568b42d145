"""Settings of how work is divided, and what plans have to know of them."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt

from jacobian_lab.errors import InputError


class Load(NamedTuple):
    """Models that workers hold, as batches and plans have to know of them.

    Attributes:
        beside: Workers' models on one card, or on this host, beside this process's own.
        sharing: Number that the time of shared work is divided by: workers on machines or cards of their own.
            Workers of one processor share what one process has anyway.
        worker_cards: Cards that a worker's model is divided over.
    """

    beside: int = 0
    sharing: float = 1.0
    worker_cards: int = 1


UNSHARED = Load()


@dataclass(frozen=True)
class ExecutorConfig:
    """Choice of who does the work; changes no number beyond rounding.

    Attributes:
        workers: Processes that share the work on facts, each holding the model; 1: this process alone.
        ray: Address of a Ray cluster whose machines the workers are on, or auto; by default they are on this machine.
        worker_cpus: Threads of a worker; by default this machine's are divided, and one on a cluster.
        worker_gpus: Cards of a worker: a share of one, or several over which its model is divided; by default as many
            as this process has its model on.
    """

    workers: Annotated[int, Gt(0)] = 1
    ray: str | None = None
    worker_cpus: Annotated[int, Gt(0)] | None = None
    worker_gpus: Annotated[float, Gt(0)] | None = None

    def gpus(self, cards: int) -> float:
        """Count the cards of a worker."""
        gpus = self.worker_gpus or float(cards)
        if gpus > 1 and gpus != int(gpus):
            raise InputError(f"expected ⟨worker_gpus⟩ up to 1, or a whole number, got {gpus:g}: choose {int(gpus)}")
        return gpus

    def load(self, cards: int) -> Load:
        """Count workers' models, where this process's own is divided over so many cards; 0 where it is on none."""
        if self.workers == 1 and self.ray is None:
            return UNSHARED
        gpus = self.gpus(cards)
        if not gpus:
            threads = self.workers * (self.worker_cpus or 1) / torch.get_num_threads()
            return Load(1 if self.ray else self.workers, threads if self.ray else 1.0)
        share = min(1.0, gpus)  # whoever has several cards is no faster for it
        return Load(min(self.workers, int(1 / share)), max(1.0, self.workers * share), max(1, int(gpus)))
