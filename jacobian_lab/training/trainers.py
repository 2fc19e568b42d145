"""What every method that trains can do, and its training carried on from where a killed process left it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.caching import written_whole
from jacobian_lab.errors import InputError
from jacobian_lab.progress import note

SECONDS = 30.0
"""Training is put away when this has passed since it was last, and at its end."""


FORMAT = "jacobian_lab training 1"


def _nobody(_count: int) -> None:
    """Hears of facts, and does nothing."""


class Trainer(Protocol):
    """A method that trains, at work on a model, facts and settings."""

    def train(self, advance: Callable[[int], Any] = ...) -> Iterator[Any]:
        """Train on what is left."""
        ...

    @property
    def finished(self) -> int:
        """Facts that are trained on, or with, so far."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that goes on, as tensors."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what another was that was made alike."""
        ...

    def edited(self, advance: Callable[[int], Any] = ...) -> AbstractContextManager[None]:
        """The model edited within, and bit for bit as it was without."""
        ...

    def told(self) -> dict[str, Any]:
        """What is to be known of the training and of the edit, within `edited`."""
        ...

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write what was made, for `jacobian-lab apply`."""
        ...


def carry_on(trainer: Trainer, path: Path, about: Mapping[str, str], advance: Callable[[int], Any] = _nobody) -> None:
    """Train to the end, from what is there of an earlier start."""
    if path.is_file():
        try:
            load_training(trainer, path, about)
        except (OSError, SafetensorError) as error:
            note(f"{path} cannot be read ({type(error).__name__}): the training begins anew")
    advance(trainer.finished)
    last = time.monotonic()
    for _ in trainer.train(advance):
        if time.monotonic() - last > SECONDS:
            save_training(trainer, path, about)
            last = time.monotonic()
    save_training(trainer, path, about)


def save_training(trainer: Trainer, path: Path, about: Mapping[str, str]) -> None:
    """Put away all that was trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.state().items()}
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, **about})


def load_training(trainer: Trainer, path: Path, about: Mapping[str, str]) -> None:
    """Have a method become what another was that was made alike."""
    with safe_open(path, framework="pt") as file:
        told = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    if told.get("format") != FORMAT:
        raise InputError(f"expected what a method was trained to, got another file, {path}: give another")
    if changed := [name for name, value in about.items() if told.get(name) != value]:
        raise InputError(
            f"expected a training with the same {changed[0]}, got {told.get(changed[0])!r} in {path} instead of "
            f"{about[changed[0]]!r}: give the model, facts and settings that it was made with"
        )
    trainer.restore(tensors)
