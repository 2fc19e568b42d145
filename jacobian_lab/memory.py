"""How much memory there is, and what to do where it does not suffice."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
Tell = Callable[[int, int], None]
"""Told how many items did not fit together, and how many are tried together from here on."""

_FAILED_ON_CPU = ("can't allocate memory", "not enough memory")
"""What torch's allocator of host memory says, in a plain RuntimeError."""

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_GROUP = Path("/sys/fs/cgroup")
_LIMIT = ("memory.max", "memory/memory.limit_in_bytes")
"""Where a process's group has its limit: in the second version of control groups, and in the first."""
_CURRENT = ("memory.current", "memory/memory.usage_in_bytes")
_STAT = ("memory.stat", "memory/memory.stat")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on the card or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FAILED_ON_CPU)


def available_memory() -> int:
    """Memory of the host that can still be had, within the limit of the process's group if it has one."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _limit()
    return free if limit is None else max(0, min(free, limit - _held_by_group()))


def memory_of(devices: Sequence[torch.device]) -> tuple[int, int | None]:
    """What a process can hold of the host and of a card in all, what it holds already among it."""
    host, limit = available_memory() + _held(), _limit()
    host = host if limit is None else min(host, limit)
    if devices[0].type != "cuda":
        return host, None
    return host, min(torch.cuda.mem_get_info(card)[0] + torch.cuda.memory_reserved(card) for card in devices)


def peak_memory(devices: Sequence[torch.device]) -> int:
    """The most memory that this process ever held: of one card, where the model is on any, else of the host."""
    if devices[0].type == "cuda":
        return max(map(torch.cuda.max_memory_allocated, devices))
    return _kilobytes("VmHWM")


def _limit() -> int | None:
    """The limit of the process's group; none where there is no such group, or one without a limit."""
    return min((int(text) for text in _of_group(_LIMIT) if text.strip().isdecimal()), default=None)


def _held_by_group() -> int:
    """Memory that the process's group holds, without what it keeps of files and would give back."""
    held, stat = next(_of_group(_CURRENT), ""), next(_of_group(_STAT), "")
    if not held.strip().isdecimal():
        return _held()
    files = [line.split() for line in stat.splitlines()]
    return int(held) - max((int(size) for name, size in files if name.endswith("inactive_file")), default=0)


def _of_group(names: Sequence[str]) -> Iterator[str]:
    """What files of the process's group hold, those that are there."""
    for name in names:
        with suppress(OSError):
            yield (_GROUP / name).read_text()


def _held() -> int:
    """Memory of the host that this process holds, as far as the system says."""
    return _kilobytes("VmRSS")


def _kilobytes(name: str) -> int:
    """An entry of this process's status, in bytes; 0 where there is none."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def free_memory(devices: Sequence[torch.device]) -> int:
    """Memory that can still be had where a model is."""
    if devices[0].type != "cuda":
        return available_memory()
    return min(
        torch.cuda.mem_get_info(card)[0] + torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card)
        for card in devices
    )


def halving(
    batches: Sequence[Sequence[int]], work: Callable[[Sequence[int]], Result], tell: Tell
) -> Iterator[tuple[Sequence[int], Result]]:
    """Work on batches one after another; one that memory does not hold is halved, and so are those after it."""
    waiting, size = deque(batches), max(map(len, batches), default=0)
    while waiting:
        batch = waiting.popleft()
        if len(batch) > size:
            waiting.extendleft((batch[size:], batch[:size]))
            continue
        result = _attempt(batch, work)
        if result:
            yield batch, result[0]
        else:
            size = len(batch) // 2
            tell(len(batch), size)
            waiting.appendleft(batch)


def _attempt(batch: Sequence[int], work: Callable[[Sequence[int]], Result]) -> tuple[Result] | None:
    """The result, if memory sufficed; all that a failed attempt held is free again when this returns."""
    try:
        return (work(batch),)
    except (MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not out_of_memory(error):
            raise
        return None
