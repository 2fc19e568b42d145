"""What every method that trains can do, and its training carried on from where a killed process left it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jacobian_lab.caching import written_whole
from jacobian_lab.progress import note

SECONDS = 30.0
"""Training is put away when this has passed since it was last, and at its end."""


class Trainer(Protocol):
    """A method that trains, at work on a model, facts and settings."""

    def train(self, advance: Callable[[int], Any] = ...) -> Iterator[Any]:
        """Train on what is left.

        Args:
            advance: Told of facts.

        Yields:
            Something, whenever all that goes on is in `state` and nothing of it on the model.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """All that goes on, as tensors."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what another was that was made alike.

        Args:
            state: Its `state`.
        """
        ...

    def edited(self, advance: Callable[[int], Any] = ...) -> AbstractContextManager[None]:
        """The model edited within, and bit for bit as it was without.

        Args:
            advance: Told of facts.
        """
        ...

    def told(self) -> dict[str, Any]:
        """What is to be known of the training and of the edit, within `edited`.

        Returns:
            By the names under which runs store them: a number, one for each fact or block, or a list for each fact.
        """
        ...

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write what was made, for `jacobian-lab apply`.

        Args:
            path: The file.
            config: Everything that decided it, as JSON can hold it.

        Raises:
            InputError: If it is asked for what it cannot give.
        """
        ...


def carry_on(trainer: Trainer, path: Path, advance: Callable[[int], Any] = lambda _: None) -> None:
    """Train to the end, from what is there of an earlier start.

    Args:
        trainer: The method.
        path: Where its state is kept, under a name that says all that decides it; put away now and then, whole or not
            at all, and read back when the training is begun again.
        advance: Told of facts.
    """
    if path.is_file():
        try:
            kept = load_file(path)
        except (OSError, SafetensorError) as error:
            note(f"{path} cannot be read ({type(error).__name__}): the training begins anew")
        else:
            trainer.restore(kept)
    last = time.monotonic()
    for _ in trainer.train(advance):
        if time.monotonic() - last > SECONDS:
            _put_away(trainer, path)
            last = time.monotonic()
    _put_away(trainer, path)


def _put_away(trainer: Trainer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trainer.state().items()}, partial)
