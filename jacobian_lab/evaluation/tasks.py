"""Task suite without a download: facts that nobody edited, completion, arithmetic and syllogisms.

Every item asks for the likelier continuation of a prompt, by the mean −log P of its tokens. The items were written for
this project, and there are few of them: a score goes with its interval.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.evaluation.metrics import accuracy, answers, predicting_states
from jacobian_lab.facts.fact import Fact
from jacobian_lab.facts.reading import BUILTIN, load_facts
from jacobian_lab.model.edited import check_unedited
from jacobian_lab.model.language_model import LanguageModel

FACTS = "facts"
"""Name of the task of built-in facts, which depends on the model and on what is edited."""

WRITTEN = ("completion", "arithmetic", "syllogisms")
"""Names of the tasks whose items are files of the package."""


@dataclass(frozen=True)
class Item:
    """Prompt with a right continuation and wrong ones.

    Attributes:
        prompt: The prompt.
        choices: The right continuation, then the wrong ones. If there is none of these, the right one has to be what
            the model would write.
        join: Text between the two, where the record gives one.
    """

    prompt: str
    choices: tuple[str, ...]
    join: str | None = None


@dataclass(frozen=True)
class Task:
    """Items of one kind.

    Attributes:
        name: Name of the task.
        about: Description in a sentence.
        items: The items.
    """

    name: str
    about: str
    items: tuple[Item, ...]

    @property
    def chance(self) -> float:
        """Expected score of a random choice, from 0 to 1; 0 if the right continuation has to be written."""
        shares = [1 / len(item.choices) for item in self.items if len(item.choices) > 1]
        return sum(shares) / len(self.items) if self.items else math.nan


def builtin_tasks(model: LanguageModel, edited: Sequence[Fact] = ()) -> tuple[Task, ...]:
    """Make the suite for a model that is going to be edited.

    Args:
        model: The model, unedited.
        edited: The facts that are going to be edited.

    Returns:
        The task of built-in facts, which the edit leaves out and the model knows, and those of `WRITTEN`.

    Raises:
        InputError: If the model is edited already.
    """
    return retained_facts(model, edited), *(written_task(name) for name in WRITTEN)


def written_task(name: str) -> Task:
    """Read a task of the package.

    Args:
        name: One of `WRITTEN`.

    Returns:
        The task.
    """
    record = json.loads(resources.files("jacobian_lab.evaluation").joinpath(f"data/{name}.json").read_text("utf-8"))
    items = tuple(Item(item["prompt"], tuple(item["choices"])) for item in record["items"])
    return Task(name, record["about"], items)


def retained_facts(model: LanguageModel, edited: Sequence[Fact] = ()) -> Task:
    """Make a task of the built-in facts that the model answers and that no edit is about.

    Args:
        model: The model, unedited: what it answers is what can be lost.
        edited: The facts that are going to be edited; every fact about one of their subjects is left out.

    Returns:
        The task; the unedited model's score is 1.

    Raises:
        InputError: If the model is edited already.
    """
    check_unedited(model, "choose built-in facts by")
    subjects = {fact.subject.casefold() for fact in edited}
    others = [fact for fact in load_facts(BUILTIN) if fact.subject.casefold() not in subjects]
    rows = [model.text_prompt(fact.text, fact.target_true, fact.join) for fact in others]
    answered = [fact for fact, right in zip(others, accuracy(model, rows).tolist(), strict=True) if right]
    items = tuple(Item(fact.text, (fact.target_true,), fact.join) for fact in answered)
    return Task(FACTS, "True answer of built-in facts that the unedited model gives and nobody edited.", items)


def task_scores(model: LanguageModel, tasks: Sequence[Task]) -> dict[str, Float[Tensor, " item"]]:
    """Score a model on tasks, item by item.

    Args:
        model: The model, edited or not.
        tasks: The tasks.

    Returns:
        For each task 1 for an item that is answered right, else 0, in float64; a tie is wrong.
    """
    return {task.name: _right(model, task.items) for task in tasks}


def _right(model: LanguageModel, items: Sequence[Item]) -> Float[Tensor, " item"]:
    """Score items: the first choice is the likeliest, or is written where it stands alone."""
    rows = [model.text_prompt(item.prompt, choice, item.join) for item in items for choice in item.choices]
    if not rows:
        return torch.zeros(0, dtype=torch.float64)
    scores = answers(model, rows, predicting_states(model, rows))
    counts = [len(item.choices) for item in items]
    pairs = zip(scores.nll.split(counts), scores.share.split(counts), strict=True)
    right = [nll[0] < nll[1:].min() if len(nll) > 1 else share[0] == 1 for nll, share in pairs]
    return torch.stack(right).double()
