"""A plan: the stages of a job with what each takes, told to a person or a program, and what does not fit refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jacobian_lab.errors import InputError
from jacobian_lab.planning.costs import Stage

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a job is going to take.

    Attributes:
        machine: On what.
        stages: Stage by stage.
        disk: Bytes of the run's folder.
    """

    machine: str
    stages: Sequence[Stage]
    disk: int

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum((stage.seconds for stage in self.stages), 0.0)

    @property
    def host(self) -> int:
        """The most that a stage holds of the host."""
        return max((stage.host for stage in self.stages), default=0)

    @property
    def device(self) -> int:
        """The most that a stage holds of the card."""
        return max((stage.device for stage in self.stages), default=0)

    def as_json(self) -> dict[str, Any]:
        """For programs: ``stages`` with ``name, seconds, host_bytes, device_bytes``, and the totals."""
        stages = [
            {"name": each.name, "seconds": each.seconds, "host_bytes": each.host, "device_bytes": each.device}
            for each in self.stages
        ]
        return {
            "machine": self.machine,
            "stages": stages,
            "total_seconds": self.seconds,
            "host_bytes": self.host,
            "device_bytes": self.device,
            "disk_bytes": self.disk,
        }

    def lines(self) -> list[str]:
        """For a person: a line a stage, and the total."""
        rows = [(each.name, told(each.seconds), _size(each.host), _size(each.device)) for each in self.stages]
        rows.append(("all", told(self.seconds), _size(self.host), _size(self.device)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = [
            "  ".join([
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ])
            for row in rows
        ]
        return [f"On {self.machine}: time, memory of the host, memory of the card", *table, f"Disk: {_size(self.disk)}"]

    def sentence(self) -> str:
        """In one line: what it takes, and the stages that take most of it."""
        longest = sorted(self.stages, key=lambda each: -each.seconds)[:3]
        told_stages = ", ".join(f"{each.name} {told(each.seconds)}" for each in longest)
        memory = f"{_size(self.host)} of memory" + (f", {_size(self.device)} of the card's" if self.device else "")
        return f"about {told(self.seconds)} ({told_stages}); {memory}"

    def check_fits(self, host: int, card: int | None) -> None:
        """Refuse what memory cannot hold however it is divided."""
        there, where = (host, "the host's") if card is None else (card, "the card's")
        for stage in self.stages:
            if card is not None and stage.host > host:
                raise InputError(
                    f"expected {_size(stage.host)} of the host's memory for {stage.name}, got {_size(host)}: take "
                    "fewer ⟨layers⟩ or ⟨workers⟩, a smaller model, or another machine"
                )
            if stage.least > there:
                halved = max(each.half for each in self.stages)
                fits = f"⟨dtype⟩ bfloat16, which takes {_size(halved)}, " if 0 < halved <= there else ""
                most, owner = _size(max(each.least for each in self.stages)), "machine" if card is None else "card"
                divided = "" if card is None else ", or divide it over more cards, ⟨device⟩ cuda:0-N"
                raise InputError(
                    f"expected {_size(stage.least)} of {where} memory for {stage.name}, got {_size(there)}: choose "
                    f"{fits}a smaller model or a {owner} with {most}{divided}"
                )

    def tight(self, host: int, card: int | None) -> list[str]:
        """The stages that memory holds only in smaller pieces than they are taken in."""
        there = host if card is None else card
        return [stage.name for stage in self.stages if (stage.host if card is None else stage.device) > there]


def told(seconds: float) -> str:
    """Seconds as a person says them."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size else "-"
