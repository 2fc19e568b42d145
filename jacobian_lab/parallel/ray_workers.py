"""Workers that hold the model too: Ray actors, on this machine or on a cluster."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError, first_line
from jacobian_lab.memory import BatchQueue, Tell, free_memory, out_of_memory
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.loading import load_model
from jacobian_lab.parallel.cluster import ray_package, start
from jacobian_lab.parallel.executor import SERIAL, Batch, Executor, Result, called, no_notice
from jacobian_lab.parallel.settings import ExecutorConfig
from jacobian_lab.progress import note

PATIENCE = 120
"""Seconds within which a worker's process is to have begun."""

DEATHS = 3
"""How often a piece is tried again whose worker dies."""

SILENCE = 600.0
"""Seconds after which a piece is told that is not finished, unless others take so long too."""

SLOWER = 4.0
"""How many times as long as the slowest that is finished it may take before that."""


def start_executor(settings: ExecutorConfig, model: LanguageModel, layers: Layers, dtype: str) -> Executor:
    """The executor that some settings name; workers are started when there is first something for them to do."""
    if settings.workers == 1 and settings.ray is None:
        return SERIAL
    return RayExecutor(settings, model, layers, dtype)


def device_of(gpus: float) -> str:
    """Name a worker's device; Ray shows it its own cards alone."""
    if gpus > 1:
        return f"cuda:0-{int(gpus) - 1}"
    return "cuda" if gpus else "cpu"


@dataclass(eq=False)
class RayExecutor:
    """Ray actors that hold the model, until they are released.

    A worker that dies is replaced, and its piece done again; a piece that kills one after another is halved. Whoever is
    ready is given the next piece, so that a slow worker holds up nobody. Where the model's weights have been edited
    here, they go with the work.

    Attributes:
        settings: How many, and where.
        model: The model, as it was loaded.
        layers: The layers whose weights are edited in the course of the work.
        dtype: As `load_model` was given it.
    """

    settings: ExecutorConfig
    model: LanguageModel
    layers: Layers
    dtype: str
    here: bool = field(default=False, init=False)
    free: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.load, self.free = self.settings.load(self.model.cards), free_memory(self.model.devices)
        self._loaded = _copies(self.model, self.layers)
        self._sent: tuple[Mapping[int, Tensor], Any] | None = None
        self._actors: list[Any] = []
        self._owns_ray = False

    def of(self, layers: Layers) -> Executor:
        """The same for other edited layers; to be asked for before anything is edited."""
        return replace(self, layers=layers)

    def release(self) -> None:
        """End the workers, and Ray if it was started here."""
        ray, actors = ray_package(), self._actors
        self._actors, self._sent = [], None
        for actor in actors:
            ray.kill(actor)
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    def map(
        self,
        pieces: Sequence[Batch],
        work: Callable[[Batch], Result],
        tell: Tell = no_notice,
        named: Callable[[Batch], str] = called,
    ) -> Iterator[tuple[Batch, Result]]:
        """Work on the pieces, in the order in which they are finished."""
        if not pieces:
            return
        ray, idle = ray_package(), list(self._hired())
        packed, weights = [ray.put(work)], self._weights()  # in a list nothing is unpacked before the model is there
        queue, running, longest = BatchQueue(pieces, tell), dict[Any, _Task](), 0.0
        deaths = Counter[Batch]()
        while queue or running:
            while idle and queue:
                actor, piece = idle.pop(), queue.take()
                running[actor.do.remote(packed, piece, weights)] = _Task(actor, piece, max(SILENCE, SLOWER * longest))
            ready = _first(running, named)
            task = running.pop(ready)
            piece, longest = task.piece, max(longest, task.age())
            idle.append(task.actor)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayError as error:
                cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
                if cause is not None and (len(piece) == 1 or not out_of_memory(cause)):
                    raise cause from error
                if cause is None:
                    _revive(task.actor)
                    deaths[tuple(piece)] += 1
                if cause is None and deaths[tuple(piece)] <= DEATHS:
                    queue.put_back(piece)
                    continue
                if len(piece) == 1:
                    raise InputError(
                        f"expected workers that stay alive, got {DEATHS + 1} that died of {named(piece)} "
                        f"({first_line(error)}): give each more memory, choose fewer ⟨workers⟩, or leave that out"
                    ) from error
                queue.halve(piece)
            else:
                yield piece, result

    def _hired(self) -> list[Any]:
        """The actors; hired when they are first wanted."""
        if self._actors:
            return self._actors
        ray, settings = ray_package(), self.settings
        cpus = settings.worker_cpus or (1 if settings.ray else max(1, (os.cpu_count() or 1) // settings.workers))
        gpus = settings.gpus(self.model.cards)
        if not ray.is_initialized():
            start(settings, cpus)
            self._owns_ray = True
        _check_room(settings.workers, {"CPU": cpus, "GPU": gpus})
        ray.util.register_serializer(LanguageModel, serializer=_reference, deserializer=_resident)
        hired = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1)(_Worker)
        name = str(Path(self.model.name).resolve()) if Path(self.model.name).exists() else self.model.name
        arguments = (name, self.dtype, device_of(gpus)), self.model.fingerprint, self.layers, cpus
        note(f"{settings.workers} workers, {cpus} threads each")
        self._actors = [hired.remote(*arguments) for _ in range(settings.workers)]
        begun = [actor.ready.remote() for actor in self._actors]
        placed, waiting = ray.wait(begun, num_returns=len(begun), timeout=PATIENCE)
        if waiting:
            raise InputError(
                f"expected room for {len(begun)} workers, got it for {len(placed)} within {PATIENCE} s: choose fewer "
                "⟨workers⟩, ⟨worker_cpus⟩ or ⟨worker_gpus⟩"
            )
        return self._actors

    def _weights(self) -> list[Any] | None:
        """Weights that go with the work: the edited ones, or none where they are as loaded."""
        now = {layer: self.model.weight(layer) for layer in self.layers}
        if _same(now, self._loaded):
            return None
        if self._sent is None or not _same(now, self._sent[0]):
            copies = _copies(self.model, self.layers)
            self._sent = copies, [ray_package().put({layer: weight.cpu() for layer, weight in copies.items()})]
        return self._sent[1]


@dataclass(eq=False)
class _Task:
    """A piece that a worker is at.

    Attributes:
        actor: The worker.
        piece: The piece.
        patience: Seconds after which it is told that the piece is not finished.
        begun: When it was given.
    """

    actor: Any
    piece: Batch
    patience: float
    begun: float = field(default_factory=time.monotonic)

    def age(self) -> float:
        """Seconds since it was given."""
        return time.monotonic() - self.begun


def _first(running: Mapping[Any, _Task], named: Callable[[Batch], str]) -> Any:
    """The first piece that is finished; what is not for long is told meanwhile, ever more rarely."""
    while True:
        soonest = min(task.patience - task.age() for task in running.values())
        ready, _ = ray_package().wait(list(running), num_returns=1, timeout=max(0.0, soonest))
        if ready:
            return ready[0]
        for task in running.values():
            if (age := task.age()) >= task.patience:
                task.patience = 2 * age
                note(
                    f"a worker has been at {named(task.piece)} for {age:.0f} s: if `ps` shows a process "
                    "ray::_Worker that is stopped or takes no time, end it with `kill -9`, and another does its work"
                )


def _revive(actor: Any) -> None:
    """Wait until a worker that has died is there again: what is given to it before fails as if it had killed it."""
    ray, end = ray_package(), time.monotonic() + PATIENCE
    while True:
        try:
            ray.get(actor.ready.remote(), timeout=PATIENCE)
        except ray.exceptions.RayError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"expected a worker in the place of one that died within {PATIENCE} s, got none "
                    f"({first_line(error)}): give the command again, with fewer ⟨workers⟩"
                ) from error
            time.sleep(0.2)
        else:
            return


def _check_room(workers: int, shares: Mapping[str, float], wait: float = 20.0) -> None:
    """Refuse workers that Ray could not place; what others have just given back takes it a moment to see."""
    ray, end = ray_package(), time.monotonic() + wait
    while True:
        there = ray.available_resources()
        lacking = [kind for kind, share in shares.items() if there.get(kind, 0) < workers * share]
        if not lacking:
            return
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    kind = lacking[0]
    raise InputError(
        f"expected {workers * shares[kind]:g} free {kind}s for {workers} workers, got {there.get(kind, 0):g}: choose "
        f"fewer ⟨workers⟩ or a smaller ⟨worker_{kind.lower()}s⟩"
    )


class _Worker:
    """The model in a worker's process, and work done with it."""

    def __init__(self, source: tuple[str, str, str], fingerprint: str, layers: Layers, threads: int) -> None:
        torch.set_num_threads(threads)
        self.source, self.fingerprint, self.layers = source, fingerprint, layers
        self.held: dict[str, Any] = {}

    def ready(self) -> bool:
        """Tell that the process has begun."""
        return True

    @cached_property
    def loaded(self) -> dict[int, Float[Tensor, "d_model d_mlp"]]:
        """Weights of the layers that are edited, as loaded; the model is there from here on."""
        model = load_model(*self.source)
        if model.fingerprint != self.fingerprint:
            raise InputError(f"expected the same model on every machine, got another {self.source[0]!r}: copy it there")
        _RESIDENT[self.fingerprint] = model
        return _copies(model, self.layers)

    def do(self, packed: Sequence[Any], piece: Batch, weights: Sequence[Any] | None) -> Any:
        """Work on a piece."""
        loaded = self.loaded
        self._hold("weights", weights or (), lambda edited: self._put(loaded if edited is None else edited))
        return self._hold("work", packed)(piece)

    def _hold(self, name: str, packed: Sequence[Any], use: Callable[[Any], Any] = lambda content: content) -> Any:
        """Fetch what Ray stores and use it once; nothing is held for what Ray has not."""
        place = packed[0].hex() if packed else ""
        if self.held.get(name, (None,))[0] != place:
            self.held.pop(name, None)
            self.held[name] = place, use(ray_package().get(packed[0]) if packed else None)
        return self.held[name][1]

    @torch.no_grad()
    def _put(self, weights: Mapping[int, Tensor]) -> None:
        for layer, weight in weights.items():
            _RESIDENT[self.fingerprint].weight(layer).copy_(weight)


_RESIDENT: dict[str, LanguageModel] = {}
"""In a worker's process: the model that it holds, by its fingerprint."""


def _reference(model: LanguageModel) -> tuple[str, Any]:
    """A reference that is sent in a model's place."""
    return model.fingerprint, model.chat


def _resident(reference: tuple[str, Any]) -> LanguageModel:
    """The worker's own model, in the place of the one that was meant."""
    fingerprint, chat = reference
    return replace(_RESIDENT[fingerprint], chat=chat)


def _copies(model: LanguageModel, layers: Layers) -> dict[int, Float[Tensor, "d_model d_mlp"]]:
    return {layer: model.weight(layer).clone() for layer in layers}


def _same(weights: Mapping[int, Tensor], others: Mapping[int, Tensor]) -> bool:
    return all(torch.equal(weight, others[layer]) for layer, weight in weights.items())
