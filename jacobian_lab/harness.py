"""Adapter to EleutherAI's lm-evaluation-harness: it evaluates a model that is in memory, edited or not.

The package is the extra ``harness``. Its tasks download their data, except those of your own files.
"""

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jacobian_lab.errors import InputError, first_line
from jacobian_lab.model.language_model import LanguageModel

BATCH_SIZE = 8
"""Requests that are run side by side."""


@dataclass(frozen=True)
class HarnessScore:
    """Metric of a task, or of a group of tasks.

    Attributes:
        task: Name of the task or group.
        metric: Name of the metric, such as ``"acc"``, ``"acc_norm"``, ``"f1"`` or ``"mcc"``.
        value: Its value.
        stderr: Its standard error by the harness; NaN where that gives none.
        documents: Documents that it was computed from.
    """

    task: str
    metric: str
    value: float
    stderr: float
    documents: int


@dataclass(frozen=True, eq=False)
class Harness:
    """Tasks of the harness, found once and asked of any model.

    Attributes:
        tasks: Names of tasks, groups or tags as the harness lists them, or YAML files of one's own.
        shots: Examples before each question; by default as many as the task says.
        limit: Documents of each task at the most, to try it out.
        batch_size: Requests that are run side by side. A memory, such as WISE's, judges rows with their padding: 1.
    """

    tasks: tuple[str, ...]
    shots: int | None = None
    limit: int | None = None
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        named = [name for name in self.tasks if not _is_file(name)]
        unknown = [name for name in named if not self._manager.match_tasks([name])]
        unknown += [name for name in self.tasks if _is_file(name) and not Path(name).is_file()]
        if unknown or not self.tasks:
            raise InputError(
                f"expected tasks of lm-evaluation-harness or YAML files, got {', '.join(unknown) or 'none'}: "
                "lm_eval ls tasks lists them"
            )

    @cached_property
    def _manager(self) -> Any:
        """The index of tasks; the harness's own ten thousand files are read only if one of them is named."""
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise InputError(
                f"expected the package lm_eval for tasks of lm-evaluation-harness, got {first_line(error)}: "
                "pip install 'jacobian_lab[harness]'"
            ) from error
        return TaskManager(include_defaults=not all(map(_is_file, self.tasks)))

    def scores(self, model: LanguageModel) -> list[HarnessScore]:
        """Evaluate a model as it is now.

        Args:
            model: The model, edited or not; its prompts are put into its chat template if they are elsewhere.

        Returns:
            Every metric of every task and group.

        Raises:
            InputError: If the harness is not installed, or data cannot be had.
        """
        manager = self._manager
        from lm_eval import simple_evaluate

        try:
            results = simple_evaluate(
                model=wrapped(model, self.batch_size),
                tasks=list(self.tasks),
                num_fewshot=self.shots,
                limit=self.limit,
                task_manager=manager,
                apply_chat_template=model.chat is not None,
                log_samples=False,
            )
        except (OSError, ValueError) as error:  # data that cannot be had
            raise InputError(
                f"expected tasks whose data can be read, got {first_line(error)} from {', '.join(self.tasks)}: check "
                "the file or the network"
            ) from error
        assert results is not None
        return [score for task, values in results["results"].items() for score in _scores(task, values, results)]


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def wrapped(model: LanguageModel, batch_size: int) -> Any:
    """Wrap a loaded model as the harness has it, with a copy of the tokenizer, which it gives a padding token.

    Args:
        model: The model.
        batch_size: Requests that are run side by side.

    Returns:
        An ``HFLM`` around the model in memory.
    """
    from lm_eval.models.huggingface import HFLM

    tokenizer = copy.deepcopy(model.tokenizer)
    return HFLM(pretrained=model.hf, tokenizer=tokenizer, batch_size=batch_size, max_length=model.max_tokens)


def _scores(task: str, values: dict[str, Any], results: dict[str, Any]) -> list[HarnessScore]:
    """Metrics of a task: keys are ``metric,filter``, and ``metric_stderr,filter`` beside it."""
    documents = results["n-samples"].get(task, {}).get("effective", 0)
    scores = []
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = values.get(f"{metric}_stderr,{filtered}", math.nan)
            error = float(stderr) if isinstance(stderr, int | float) else math.nan
            scores.append(HarnessScore(task, metric, float(value), error, documents))
    return scores
