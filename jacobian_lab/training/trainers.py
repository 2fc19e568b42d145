"""Protocol of the methods that train, and training that resumes after a kill."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jacobian_lab.caching import written_whole
from jacobian_lab.editing.deltas import Form
from jacobian_lab.errors import InputError
from jacobian_lab.progress import note

SECONDS = 30.0
"""Seconds between saves of a training; it is saved at its end too."""

FORMAT = "jacobian_lab training 1"


def _nobody(_count: int) -> None:
    """Ignore progress."""


class Trainer(Protocol):
    """A method that trains, with its model, facts and settings."""

    def train(self, advance: Callable[[int], Any] = ...) -> Iterator[Any]:
        """Train on the facts that are left."""
        ...

    @property
    def finished(self) -> int:
        """Number of facts in the training so far."""
        ...

    def state(self) -> dict[str, Tensor]:
        """State of the training, as tensors."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another that was made with the same arguments."""
        ...

    def edited(self, advance: Callable[[int], Any] = ...) -> AbstractContextManager[None]:
        """The model edited within, and bit for bit as it was without."""
        ...

    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics of the training and of the edit, within `edited`."""
        ...

    def save(self, form: Form, path: Path, config: Mapping[str, Any]) -> None:
        """Save the edit as a delta, for `jacobian-lab apply`, or in another form."""
        ...


def carry_on(trainer: Trainer, path: Path, about: Mapping[str, str], advance: Callable[[int], Any] = _nobody) -> None:
    """Train to the end, from the state that an earlier start left."""
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
    """Save everything that was trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.state().items()}
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, **about})


def load_training(trainer: Trainer, path: Path, about: Mapping[str, str]) -> None:
    """Restore a training that was saved with the same arguments."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    if metadata.get("format") != FORMAT:
        raise InputError(f"expected what a method was trained to, got another file, {path}: give another")
    if changed := [name for name, value in about.items() if metadata.get(name) != value]:
        raise InputError(
            f"expected a training with the same {changed[0]}, got {metadata.get(changed[0])!r} in {path} instead of "
            f"{about[changed[0]]!r}: give the model, facts and settings that it was made with"
        )
    trainer.restore(tensors)
