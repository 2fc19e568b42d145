"""A plan: the stages of a job with the seconds and bytes of each, and what does not fit refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jacobian_lab.errors import InputError
from jacobian_lab.planning.rates import Rates, smallest_card
from jacobian_lab.planning.work import Stage

GIB = 2**30

PROCESS = 700 * 2**20
"""Bytes of the process itself, the interpreter and its libraries: what `benchmarks/plan.py` saw beside the rest."""


@dataclass(frozen=True)
class Resident:
    """Bytes that a job holds from its beginning to its end.

    Attributes:
        weights: Bytes of the model's weights, and of workers' on the same host or card.
        host: Bytes that the host keeps beside them.
        workers: Workers that hold their models beside this process's.
        sharing: By how many workers the time of shared stages is divided.
    """

    weights: int
    host: int = 0
    workers: int = 0
    sharing: float = 1.0


@dataclass(frozen=True)
class Plan:
    """An estimate of a job, within a factor of two on a quiet machine.

    Attributes:
        rates: The machine's.
        stages: The job's, one after another.
        resident: Bytes that it holds throughout.
        disk: Bytes of the run's folder.
    """

    rates: Rates
    stages: Sequence[Stage]
    resident: Resident
    disk: int

    def seconds_of(self, stage: Stage) -> float:
        """Estimate the seconds of a stage."""
        return stage.work.at(self.rates.seconds) / (self.resident.sharing if stage.shared else 1.0)

    def bytes_of(self, stage: Stage, *, least: bool = False) -> tuple[int, int]:
        """Count the bytes of the host and of the card that a stage holds."""
        times = max(1, self.resident.workers) if stage.shared else 1
        held = times * (stage.least if least and stage.least is not None else stage.held) + self.resident.weights
        host = self.resident.host + stage.host + PROCESS * (1 + self.resident.workers)
        return (host, held) if self.rates.card else (host + held, 0)

    @property
    def seconds(self) -> float:
        """Seconds of all stages together."""
        return sum(map(self.seconds_of, self.stages), 0.0)

    def most(self, *, least: bool = False) -> tuple[int, int]:
        """Count the most bytes of the host and of the card that any stage holds."""
        sizes = [self.bytes_of(stage, least=least) for stage in self.stages] or [(0, 0)]
        return max(host for host, _ in sizes), max(card for _, card in sizes)

    def as_json(self) -> dict[str, Any]:
        """Give it to a program: ``stages`` with ``name, seconds, host_bytes, device_bytes``, and the totals."""
        stages = []
        for stage in self.stages:
            host, card = self.bytes_of(stage)
            stages.append({
                "name": stage.name,
                "seconds": self.seconds_of(stage),
                "host_bytes": host,
                "device_bytes": card,
            })
        host, card = self.most()
        return {
            "machine": self.rates.machine,
            "stages": stages,
            "total_seconds": self.seconds,
            "host_bytes": host,
            "device_bytes": card,
            "disk_bytes": self.disk,
            "smallest_card": self._card(),
        }

    def _card(self) -> str:
        """The smallest card that has room for what the job holds where the model is."""
        beside = (self.bytes_of(stage, least=True) for stage in self.stages)
        base = 0 if self.rates.card else self.resident.host + PROCESS * (1 + self.resident.workers)
        return smallest_card(max((card or host - base for host, card in beside), default=0))

    def lines(self) -> list[str]:
        """Give it to a person: a line a stage, the total, the disk and the smallest card."""
        rows = [
            (stage.name, spoken(self.seconds_of(stage)), *map(_size, self.bytes_of(stage))) for stage in self.stages
        ]
        rows.append(("all", spoken(self.seconds), *map(_size, self.most())))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = [
            "  ".join([
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ])
            for row in rows
        ]
        return [
            f"On {self.rates.machine}: time, memory of the host, memory of the card",
            *table,
            f"Disk: {_size(self.disk)}",
            f"Smallest card: {self._card()}",
        ]

    def sentence(self) -> str:
        """Say in one line how long it takes, the stages that take most of it, and the memory."""
        longest = sorted(self.stages, key=lambda stage: -self.seconds_of(stage))[:3]
        stages = ", ".join(f"{stage.name} {spoken(self.seconds_of(stage))}" for stage in longest)
        host, card = self.most()
        memory = f"{_size(host)} of memory" + (f", {_size(card)} of the card's" if card else "")
        return f"about {spoken(self.seconds)} ({stages}); {memory}"

    def check_fits(self, host: int, card: int | None) -> None:
        """Refuse a stage that so many bytes of host and card cannot hold, however it is divided."""
        for stage in self.stages:
            on_host, on_card = self.bytes_of(stage, least=True)
            if on_host > host:
                raise InputError(
                    f"expected {_size(on_host)} of the host's memory for {stage.name}, got {_size(host)}: choose "
                    "⟨dtype⟩ bfloat16, fewer ⟨layers⟩ or ⟨workers⟩, a smaller model, or another machine"
                )
            if card is not None and on_card > card:
                raise InputError(
                    f"expected {_size(on_card)} of the card's memory for {stage.name}, got {_size(card)}: choose "
                    f"⟨dtype⟩ bfloat16, a smaller model, a card of {self._card()}, or divide it over more cards, "
                    "⟨device⟩ cuda:0-N"
                )


def spoken(seconds: float) -> str:
    """Say seconds as a person does: in seconds, minutes, hours or days, with two digits at the least."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size else "-"
