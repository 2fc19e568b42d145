"""Saved edits of any kind, loaded with their base model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jacobian_lab.editing.deltas import add_delta, chat_in, common_dtype, load_delta, read_metadata, summed
from jacobian_lab.errors import InputError
from jacobian_lab.model.chat import Chat
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.templates import write
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.wise_memory import ORIGINAL, Memory, load_wise, memory_metadata


@dataclass(frozen=True, eq=False)
class Loaded:
    """A base model with saved edits.

    Attributes:
        model: The model; deltas are on it.
        memory: What is to stand beside it, if that was saved.
    """

    model: LanguageModel
    memory: Memory | None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The edited model within."""
        if self.memory is None:
            yield
            return
        with self.memory.serving(self.model):
            yield

    @torch.no_grad()
    def continuation(self, text: str, tokens: int) -> str:
        """Greedy continuation of a prompt by the edited model; its own generation settings are ignored."""
        row = self.model.text_prompt(text)
        ids = torch.tensor([row.ids], device=self.model.device)
        with self.serving():
            out = write(self.model, ids, max_new_tokens=tokens, do_sample=False)
        said = self.model.tokenizer.decode(out[0, len(row.ids) :], skip_special_tokens=True)
        return said if self.memory is None else f"{said} ({self._served(row)})"

    def _served(self, row: Prompt) -> str:
        assert self.memory is not None
        distances = self.memory.judge(self.model, [row])
        (side,) = self.memory.route(distances.T).tolist() if self.memory.sides else (ORIGINAL,)
        what = "the model's own matrix served" if side == ORIGINAL else "the memory served"
        return f"{what}: distance over the threshold {float(self.memory.reach(distances)):.3g}"


def load_edited(paths: Sequence[Path], model: str, device: str) -> Loaded:
    """Load a base model with saved edits."""
    memories = [path for path in paths if memory_metadata(path) is not None]
    if memories and len(paths) > 1:
        raise InputError(
            f"expected deltas, or one memory, got {len(paths)} files, of which {memories[0]} is a memory: name it alone"
        )
    base = load_base(paths, model, device)
    if memories:
        return Loaded(base, load_wise(paths[0], base))
    add_delta(base, summed([load_delta(path, base) for path in paths]))
    return Loaded(base, None)


def load_base(paths: Sequence[Path], model: str, device: str) -> LanguageModel:
    """Load the base model of saved edits, unedited."""
    deltas = [path for path in paths if memory_metadata(path) is None]
    dtype = common_dtype(deltas) if deltas or not paths else _metadata(paths[0])["dtype"]
    return _as_made(load_model(model, dtype, device), paths)


def saved_chat(path: Path | str) -> Chat | None:
    """The chat template that the prompts of a saved edit were put into: what `LanguageModel.chat` is to be."""
    return chat_in(_metadata(path), path)


def _metadata(path: Path | str) -> dict[str, str]:
    return memory_metadata(path) or read_metadata(path)


def _as_made(model: LanguageModel, paths: Sequence[Path]) -> LanguageModel:
    """The model with prompts put into its chat template as those of all the edits were; else as they stand."""
    first, *others = (saved_chat(path) for path in paths)
    return model if any(other != first for other in others) else replace(model, chat=first)
