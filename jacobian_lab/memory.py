"""Memory of the host and of cards, and batches that are halved where it does not suffice."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    import torch  # only where a model is: the command line's help is to be there at once

Result = TypeVar("Result")
Batch = Sequence[int]
Tell = Callable[[int, int], None]
"""Told how many items did not fit together, and how many are tried together from here on."""

_SHORT = ("out of memory", "can't allocate memory", "not enough memory")
"""Words of torch's allocators, of cards and of the host, in a RuntimeError."""

_STATUS = Path("/proc/self/status")
_GROUP = Path("/sys/fs/cgroup")
_LIMIT = ("memory.max", "memory/memory.limit_in_bytes")
"""Files with the limit of a process's group: in the second version of control groups, and in the first."""
_CURRENT = ("memory.current", "memory/memory.usage_in_bytes")
_STAT = ("memory.stat", "memory/memory.stat")


def out_of_memory(error: BaseException) -> bool:
    """Tell lack of memory, on a card or on the host, from other errors."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)
    )


def available_memory() -> int:
    """Memory of the host that can still be had, within the limit of the process's group if it has one."""
    free, limit = psutil.virtual_memory().available, _limit()
    return free if limit is None else max(0, min(free, limit - _held_by_group()))


def memory_of(devices: "Sequence[torch.device]") -> tuple[int, int | None]:
    """Memory that this process can hold in all, on the host and on a card: allocated plus free."""
    host, limit = available_memory() + _held(), _limit()
    host = host if limit is None else min(host, limit)
    return host, min(map(_unallocated, devices)) if devices[0].type == "cuda" else None


def free_memory(devices: "Sequence[torch.device]") -> int:
    """Memory that can still be had where a model is."""
    if devices[0].type != "cuda":
        return available_memory()
    from torch import cuda

    return min(_unallocated(card) - cuda.memory_allocated(card) for card in devices)


def peak_memory(devices: "Sequence[torch.device]") -> int:
    """The most memory that this process ever held: of one card, where the model is on any, else of the host."""
    if devices[0].type == "cuda":
        from torch import cuda

        return max(map(cuda.max_memory_allocated, devices))
    with suppress(OSError):  # `getrusage` counts what the parent held when this process began
        peak = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
        return int(peak[1]) * 1024 if peak else 0
    return 0


def _unallocated(card: "torch.device") -> int:
    """Memory of a card that is free or this process's own."""
    from torch import cuda

    return cuda.mem_get_info(card)[0] + cuda.memory_reserved(card)


def _held() -> int:
    """Memory of the host that this process holds."""
    return int(psutil.Process().memory_info().rss)


def _limit() -> int | None:
    """The limit of the process's group; none where there is no such group, or one without a limit."""
    return min((int(text) for text in _of_group(_LIMIT) if text.strip().isdecimal()), default=None)


def _held_by_group() -> int:
    """Memory that the process's group holds, without what it keeps of files and would give back."""
    held, stat = next(_of_group(_CURRENT), ""), next(_of_group(_STAT), "")
    if not held.strip().isdecimal():
        return _held()
    return int(held) - max(map(int, re.findall(r"inactive_file (\d+)", stat)), default=0)


def _of_group(names: Sequence[str]) -> Iterator[str]:
    """Contents of those files of the process's group that are there."""
    for name in names:
        with suppress(OSError):
            yield (_GROUP / name).read_text()


class BatchQueue:
    """Batches that wait to be worked on; one that memory does not hold is halved, and so are those after it.

    Args:
        batches: The batches.
        tell: Hears of every halving.
    """

    def __init__(self, batches: Sequence[Batch], tell: Tell) -> None:
        self._waiting, self._size, self._tell = deque(batches), max(map(len, batches), default=0), tell

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Batch:
        """Take the next batch, or as much of it as may fit."""
        batch = self._waiting.popleft()
        if len(batch) > self._size:
            self.put_back(batch[self._size :])
        return batch[: self._size]

    def put_back(self, batch: Batch) -> None:
        """Put a batch at the front, to be taken next."""
        self._waiting.appendleft(batch)

    def halve(self, batch: Batch) -> None:
        """Put back a batch that did not fit, and let none be larger than its half from here on."""
        if len(batch) <= self._size:  # else a smaller one did not fit meanwhile
            self._size = -(-len(batch) // 2)
            self._tell(len(batch), self._size)
        self.put_back(batch)


def halving(batches: Sequence[Batch], work: Callable[[Batch], Result], tell: Tell) -> Iterator[tuple[Batch, Result]]:
    """Work on batches one after another; one that memory does not hold is halved, and so are those after it."""
    queue = BatchQueue(batches, tell)
    while queue:
        batch = queue.take()
        result = _attempt(batch, work)
        if result:
            yield batch, result[0]
        else:
            queue.halve(batch)


def _attempt(batch: Batch, work: Callable[[Batch], Result]) -> tuple[Result] | None:
    """The result, if memory sufficed; all that a failed attempt held is free again when this returns."""
    try:
        return (work(batch),)
    except (MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not out_of_memory(error):
            raise
        return None
