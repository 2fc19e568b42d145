"""Saved edits of any kind, put on their base model and asked."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jacobian_lab.editing.deltas import add_delta, common_dtype, load_delta, read_metadata, summed
from jacobian_lab.errors import InputError
from jacobian_lab.model.chat import chat_of
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.loading import load_model
from jacobian_lab.model.templates import write
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.memories import ORIGINAL, Memory, load_memory, memory_metadata


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
        """The edited model within.

        Yields:
            Nothing.
        """
        if self.memory is None:
            yield
            return
        with self.memory.serving(self.model):
            yield

    @torch.no_grad()
    def continuation(self, text: str, tokens: int) -> str:
        """What the edited model says after a prompt, greedily, whatever its own generation settings are.

        Args:
            text: The prompt.
            tokens: Tokens of the answer.

        Returns:
            The answer; of a model with a memory, whether that served is said behind it.
        """
        row = self.model.text_prompt(text)
        ids = torch.tensor([row.ids], device=self.model.device)
        with self.serving():
            out = write(self.model, ids, max_new_tokens=tokens, do_sample=False)
        said = self.model.tokenizer.decode(out[0, len(row.ids) :], skip_special_tokens=True)
        return said if self.memory is None else f"{said} ({self._served(row)})"

    def _served(self, row: Prompt) -> str:
        assert self.memory is not None
        found = self.memory.judge(self.model, [row])
        (side,) = self.memory.route(found.T).tolist() if self.memory.sides else (ORIGINAL,)
        what = "the model's own matrix served" if side == ORIGINAL else "the memory served"
        return f"{what}: distance over the threshold {float(self.memory.reach(found)):.3g}"


def load_edited(paths: Sequence[Path], model: str, device: str) -> Loaded:
    """Load a base model with saved edits.

    Args:
        paths: Files that jacobian-lab edit saved: deltas of one base model, to be added up, or one memory.
        model: The base model, named as it was then.
        device: As `load_model` has it.

    Returns:
        The model with the edits.

    Raises:
        InputError: If they do not go together, or not with the model.
    """
    told = [memory_metadata(path) for path in paths]
    memories = [each for each in told if each is not None]
    if not memories:
        base = _with_chat(load_model(model, common_dtype(paths), device), [read_metadata(path) for path in paths])
        add_delta(base, summed([load_delta(path, base) for path in paths]))
        return Loaded(base, None)
    if len(paths) > 1:
        raise InputError(f"expected deltas, or one memory, got {len(paths)} files, a memory among them: name it alone")
    base = _with_chat(load_model(model, memories[0]["dtype"], device), memories)
    return Loaded(base, load_memory(paths[0], base))


def _with_chat(model: LanguageModel, told: Sequence[Mapping[str, str]]) -> LanguageModel:
    """The model with its chat template around prompts, if that was around those of an edit."""
    chats = ["chat" in json.loads(each.get("config", "{}")) for each in told]
    return replace(model, chat=chat_of(model.tokenizer, model.name)) if any(chats) else model
