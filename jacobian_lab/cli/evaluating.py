"""The command that asks saved edits and the unedited model the same: tasks, and texts."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from jacobian_lab.applying import apply
from jacobian_lab.caching import write_text
from jacobian_lab.catalogue import UNEDITED
from jacobian_lab.cli import say
from jacobian_lab.cli.parsing import Runnable
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.generation import MEASURES, TOKENS, generate
from jacobian_lab.evaluation.tasks import Task, builtin_tasks, task_scores
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import BUILTIN, read_facts
from jacobian_lab.harness import BATCH_SIZE, Harness
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.sources import DEFAULT_MODEL
from jacobian_lab.progress import note
from jacobian_lab.report import answers
from jacobian_lab.report.writing import write_csv, write_table
from jacobian_lab.training.saved import load_base

TASKS_CAPTION = (
    "Scores of the unedited model and of each edit × 100, with 95 % intervals: bootstrap over items, or by standard "
    "errors where lm-evaluation-harness computes them. Changes are against the unedited model, paired by item."
)
TEXTS_CAPTION = "Texts written greedily after the prompts of the {count} edited facts, means with 95 % intervals."


@dataclass(frozen=True)
class Evaluate(Runnable):
    """Ask saved edits, and the unedited model, the same tasks, and let each write.

    Attributes:
        delta: The files or adapters' folders that jacobian-lab edit saved of one base model, each evaluated by itself.
        out: Folder for tables and texts.
        facts: "builtin", "builtin-reasoning", or a file: the facts that were edited.
        slice: Part of the facts, as A:B; all of them by default.
        tasks: "builtin", the package's own suite, and names or YAML files of tasks of lm-evaluation-harness.
        texts: Facts whose texts stand side by side on a page; 0 for no texts.
        tokens: Tokens of a text at the most.
        shots: Examples before each question of the harness; by default as each task says.
        limit: Documents of each task of the harness at the most, to try it out.
        harness_batch_size: Requests of the harness that are run side by side.
        model: The base model, named as in jacobian-lab edit.
        device: auto, cpu, cuda, cuda:N or, for a model divided over several cards, cuda:M-N.
    """

    delta: tuple[Path, ...]
    out: Path
    facts: str = BUILTIN
    slice: str | None = None
    tasks: tuple[str, ...] = (BUILTIN,)
    texts: int = 20
    tokens: int = TOKENS
    shots: int | None = None
    limit: int | None = None
    harness_batch_size: int = BATCH_SIZE
    model: str = DEFAULT_MODEL
    device: str = "auto"

    def run(self) -> None:
        """Evaluate every model, write the tables, and print them."""
        if self.texts < 0 or self.tokens < 1:
            raise InputError(
                f"expected ⟨texts⟩ from zero and ⟨tokens⟩ from one, got {self.texts} and {self.tokens}: give others"
            )
        edited = read_facts(self.facts, self.slice).facts
        harness = self._harness
        base = load_base(self.delta, self.model, self.device)
        self.out.mkdir(parents=True, exist_ok=True)
        suite = builtin_tasks(base, edited) if BUILTIN in self.tasks else ()
        looks = {}
        for name, context in self._models(base):
            with context:
                note(f"evaluating {name}")
                looks[name] = self._look(base, edited, suite, harness)
        self._write_tasks(looks, suite)
        if self.texts:
            self._write_texts(looks, edited)

    @cached_property
    def _harness(self) -> Harness | None:
        names = tuple(name for name in self.tasks if name != BUILTIN)
        return Harness(names, self.shots, self.limit, self.harness_batch_size) if names else None

    def _models(self, base: LanguageModel) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
        """The unedited model and each edit of it, by name."""
        yield UNEDITED, nullcontext()
        names = [path.stem.removeprefix("delta-") for path in self.delta]
        for path, name in zip(self.delta, names, strict=True):
            yield name if names.count(name) == 1 else str(path), apply(base, path)

    def _look(
        self, model: LanguageModel, edited: tuple[Fact, ...], suite: tuple[Task, ...], harness: Harness | None
    ) -> dict[str, Any]:
        """Answers and texts of the model as it is."""
        scores = {task: values.tolist() for task, values in task_scores(model, suite).items()}
        measured = [vars(score) for score in harness.scores(model)] if harness else []
        generated = generate(model, edited, self.tokens) if self.texts else []
        return {"scores": scores, "harness": measured, "generated": generated}

    def _write_tasks(self, looks: dict[str, dict[str, Any]], suite: tuple[Task, ...]) -> None:
        chances = {task.name: task.chance for task in suite}
        parts = [answers.task_numbers({name: look["scores"] for name, look in looks.items()}, chances)]
        parts.append(answers.harness_numbers({name: look["harness"] for name, look in looks.items()}))
        numbers = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        if len(numbers):
            write_csv(self.out / "tasks.csv", numbers)
            say(write_table(self.out / "tasks", answers.task_table(numbers), TASKS_CAPTION))

    def _write_texts(self, looks: dict[str, dict[str, Any]], edited: tuple[Fact, ...]) -> None:
        records = [
            {"edit": name, "fact": str(fact.id), "text": generated.text} | generated.values
            for name, look in looks.items()
            for fact, generated in zip(edited, look["generated"], strict=True)
        ]
        numbers = pd.DataFrame(records)
        write_csv(self.out / "generation.csv", numbers)
        table = answers.generation_table(numbers, list(MEASURES))
        say("\n" + write_table(self.out / "generation", table, TEXTS_CAPTION.format(count=len(edited))))
        rows = [{"prompt": f.text, "new": f.target_new, "true": f.target_true} for f in edited[: self.texts]]
        texts = {name: [generated.text for generated in look["generated"]] for name, look in looks.items()}
        write_text(self.out / "texts.html", answers.texts_page(f"Texts of {self.out.resolve().name}", rows, texts))
        say(f"\nTexts: {self.out / 'texts.html'}")
