"""Who does work that is divided by facts: this process, or workers that hold the model too, by Ray."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Protocol, TypeVar

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.memory import Tell, halving, out_of_memory
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.loading import load_model
from jacobian_lab.progress import note

Result = TypeVar("Result")
Piece = Sequence[int]
"""Indices of the facts that are worked on together."""

DEATHS = 3
"""How often a piece is tried whose worker dies."""


@dataclass(frozen=True)
class CrewSettings:
    """Who does the work; changes no number beyond rounding.

    Attributes:
        workers: Processes that share the work on facts, each holding the model; 1: this process alone.
        ray: Address of a Ray cluster whose machines the workers are on, or auto; by default they are on this machine.
        worker_gpus: Cards that a worker is given, where the model is on one; a fraction where several share one.
    """

    workers: Annotated[int, Gt(0)] = 1
    ray: str | None = None
    worker_gpus: Annotated[float, Gt(0)] = 1.0


def _untold(_failed: int, _next: int) -> None:
    """Of pieces of one item nothing has to be told: one that does not fit ends the work."""


class Crew(Protocol):
    """Who does the work.

    Attributes:
        here: Whether this process does, so that work can tell how it goes.
    """

    here: bool

    def map(
        self, pieces: Sequence[Piece], work: Callable[[Piece], Result], tell: Tell = _untold
    ) -> Iterator[tuple[Piece, Result]]:
        """Do some work on every piece, with the model as it is now.

        Args:
            pieces: The pieces; one that memory does not hold is halved.
            work: What is done with a piece; a function of a module or a `functools.partial` of one, whose results are
                on the host.
            tell: Called whenever a piece does not fit.

        Returns:
            Every piece, or every part of one, with the result, in any order.
        """


class Alone:
    """This process does the work."""

    here = True

    def map(
        self, pieces: Sequence[Piece], work: Callable[[Piece], Result], tell: Tell = _untold
    ) -> Iterator[tuple[Piece, Result]]:
        """As `Crew` has it; in the order of the pieces.

        Args:
            pieces: The pieces.
            work: What is done with one.
            tell: Called whenever one does not fit.

        Returns:
            Every piece with its result.
        """
        return halving(pieces, work, tell)


ALONE: Crew = Alone()


def hire(settings: CrewSettings, model: LanguageModel, layers: Layers, dtype: str, device: str) -> Crew:
    """The crew that some settings name; workers are started when there is first something for them to do.

    Args:
        settings: The settings.
        model: The model, as it was loaded.
        layers: The layers whose weights are edited in the course of the work.
        dtype: As `load_model` was given it.
        device: As `load_model` was given it.

    Returns:
        The crew.

    Raises:
        InputError: If workers are wanted and Ray is not installed.
    """
    if settings.workers == 1 and settings.ray is None:
        return ALONE
    _ray()
    return Workers(settings, model, layers, dtype, device)


@dataclass(eq=False)
class Workers:
    """Ray actors that hold the model; they end when this is let go of.

    A worker that dies is replaced, and its piece done again. Whoever is ready is given the next piece, so that a slow
    worker holds up nobody. Where the model's weights have been edited here, they go with the work.

    Attributes:
        settings: How many, and where.
        model: The model, as it was loaded.
        layers: The layers whose weights are edited in the course of the work.
        dtype: As `load_model` was given it.
        device: As `load_model` was given it.
    """

    settings: CrewSettings
    model: LanguageModel
    layers: Layers
    dtype: str
    device: str
    here: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._loaded = _copies(self.model, self.layers)
        self._sent: tuple[Mapping[int, Tensor], Any] | None = None

    def map(
        self, pieces: Sequence[Piece], work: Callable[[Piece], Result], tell: Tell = _untold
    ) -> Iterator[tuple[Piece, Result]]:
        """As `Crew` has it; in the order in which they are finished.

        Args:
            pieces: The pieces.
            work: What is done with one.
            tell: Called whenever one does not fit.

        Yields:
            Every piece with its result.

        Raises:
            InputError: If a piece costs one worker after another its life.
        """
        if not pieces:
            return
        ray, idle = _ray(), list(self._actors)
        given, weights = [ray.put(work)], self._weights()  # in a list it is not unpacked before the model is there
        waiting, size, running = deque(pieces), max(map(len, pieces)), dict[Any, tuple[Any, Piece]]()
        while waiting or running:
            while idle and waiting:
                piece = waiting.popleft()
                if len(piece) > size:
                    waiting.extendleft((piece[size:], piece[:size]))
                    continue
                actor = idle.pop()
                running[actor.do.remote(given, piece, weights)] = actor, piece
            (ready,), _ = ray.wait(list(running), num_returns=1)
            actor, piece = running.pop(ready)
            idle.append(actor)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if len(piece) == 1 or not out_of_memory(error.cause):
                    raise error.cause from error
                size = min(size, len(piece) // 2)
                tell(len(piece), size)
                waiting.appendleft(piece)
            except ray.exceptions.RayActorError as error:
                raise InputError(
                    f"expected workers that stay alive, got {DEATHS + 1} that died of {len(piece)} facts: give each "
                    "more memory, or choose fewer ⟨workers⟩ or a smaller ⟨batch_size⟩"
                ) from error
            else:
                yield piece, result

    @cached_property
    def _actors(self) -> list[Any]:
        ray, settings = _ray(), self.settings
        if not ray.is_initialized():
            where = {"num_cpus": settings.workers} if settings.ray is None else {"address": settings.ray}
            ray.init(**where, include_dashboard=False, log_to_driver=False, logging_level="error")
        ray.util.register_serializer(LanguageModel, serializer=_reference, deserializer=_resident)
        on_card = self.model.device.type == "cuda"
        threads = max(1, (os.cpu_count() or 1) // settings.workers) if settings.ray is None else 0
        hired = ray.remote(
            num_cpus=1,
            num_gpus=settings.worker_gpus if on_card else 0,
            max_restarts=-1,
            max_task_retries=DEATHS,
        )(_Worker)
        device = "cuda" if on_card else self.device  # Ray shows a worker its own cards alone
        given = (self.model.name, self.dtype, device), self.model.fingerprint, self.layers, threads
        note(f"{settings.workers} workers")
        return [hired.remote(*given) for _ in range(settings.workers)]

    def _weights(self) -> Any:
        """What goes with the work: the edited weights, or nothing where they are as loaded."""
        now = {layer: self.model.weight(layer) for layer in self.layers}
        if _same(now, self._loaded):
            return None
        if self._sent is None or not _same(now, self._sent[0]):
            copies = _copies(self.model, self.layers)
            self._sent = copies, _ray().put({layer: weight.cpu() for layer, weight in copies.items()})
        return self._sent[1]


class _Worker:
    """In a worker's process: the model, and work done with it."""

    def __init__(self, given: tuple[str, str, str], fingerprint: str, layers: Layers, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.given, self.fingerprint, self.layers = given, fingerprint, layers

    @cached_property
    def loaded(self) -> dict[int, Float[Tensor, "d_model d_mlp"]]:
        """Weights of the layers that are edited, as loaded; the model is there from here on."""
        model = load_model(*self.given)
        if model.fingerprint != self.fingerprint:
            raise InputError(f"expected the same model on every machine, got another {self.given[0]!r}: copy it there")
        _RESIDENT[self.fingerprint] = model
        return _copies(model, self.layers)

    def do(self, given: Sequence[Any], piece: Piece, weights: Mapping[int, Tensor] | None) -> Any:
        """Work on a piece.

        Args:
            given: Where the work is kept that is done with it.
            piece: The piece.
            weights: The edited weights, if they are not as loaded.

        Returns:
            The result.
        """
        with torch.no_grad():
            for layer, loaded in self.loaded.items():
                _RESIDENT[self.fingerprint].weight(layer).copy_(loaded if weights is None else weights[layer])
        return _ray().get(given[0])(piece)


_RESIDENT: dict[str, LanguageModel] = {}
"""In a worker's process: the model that it holds, by its fingerprint."""


def _reference(model: LanguageModel) -> tuple[str, Any]:
    """What is sent in a model's place."""
    return model.fingerprint, model.chat


def _resident(reference: tuple[str, Any]) -> LanguageModel:
    """The worker's own model, in the place of the one that was meant."""
    fingerprint, chat = reference
    return replace(_RESIDENT[fingerprint], chat=chat)


def _copies(model: LanguageModel, layers: Layers) -> dict[int, Float[Tensor, "d_model d_mlp"]]:
    return {layer: model.weight(layer).clone() for layer in layers}


def _same(ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor]) -> bool:
    return all(torch.equal(weight, theirs[layer]) for layer, weight in ours.items())


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "expected the package ray for ⟨workers⟩ and ⟨ray⟩, got none: pip install 'jacobian_lab[ray]'"
        ) from error
    return ray
