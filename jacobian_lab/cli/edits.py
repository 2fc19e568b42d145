"""The command that puts saved edits on their base model."""

from dataclasses import dataclass
from pathlib import Path

from jacobian_lab.cli import say
from jacobian_lab.cli.parsing import Runnable
from jacobian_lab.editing.folders import check_new_folder, save_model
from jacobian_lab.errors import InputError
from jacobian_lab.model.sources import DEFAULT_MODEL
from jacobian_lab.progress import note
from jacobian_lab.training.saved import load_edited
from jacobian_lab.training.wise_memory import memory_metadata


@dataclass(frozen=True)
class Apply(Runnable):
    """Put saved edits on their base model.

    Attributes:
        delta: The file or the adapter's folder that jacobian-lab edit saved, or several that it saved of one base
            model, to be added up; WISE's memory alone.
        out: A new or empty folder for the model; a memory has none, since no plain model asks which matrix is to serve.
        prompt: Prompts that the edited model is to go on with, greedily.
        tokens: Tokens of an answer at the most.
        model: The base model, named as in jacobian-lab edit.
        device: auto, cpu, cuda, cuda:N or, for a model divided over several cards, cuda:M-N.
    """

    delta: tuple[Path, ...]
    out: Path | None = None
    prompt: tuple[str, ...] = ()
    tokens: int = 16
    model: str = DEFAULT_MODEL
    device: str = "auto"

    def run(self) -> None:
        """Ask the edited model, or write it as a folder that transformers loads."""
        self._check()
        edited = load_edited(self.delta, self.model, self.device)
        if self.prompt and edited.model.chat is not None:
            note(f"prompts are put into {edited.model.chat}, as the edit was made")
        for text in self.prompt:
            say(f"{text} →{edited.continuation(text, self.tokens)}")
        if self.out is not None:
            save_model(edited.model, self.out)
            say(f"Edited model: {self.out}")

    def _check(self) -> None:
        memories = [path for path in self.delta if memory_metadata(path) is not None]
        if memories and self.out is not None:
            raise InputError(
                f"expected ⟨prompt⟩ for the memory {memories[0]}, got ⟨out⟩: no plain model asks which matrix is to "
                "serve"
            )
        if self.out is None and not self.prompt:
            raise InputError(
                "expected ⟨out⟩, ⟨prompt⟩ or both, got neither: say what is to be done with the edited model"
            )
        if self.tokens < 1:
            raise InputError(f"expected a number above zero, got ⟨tokens⟩ {self.tokens}: give another")
        if self.out is not None:
            check_new_folder(self.out)
