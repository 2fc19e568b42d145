"""Settings of edits one after another."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from jacobian_lab.jobs.config import RARE, Above, EvaluationConfig, Positive

TargetsName = Literal["current", "unedited"]
TARGETS: tuple[TargetsName, ...] = ("current", "unedited")
"""Models that the targets of later batches are made on: as earlier batches left it, or unedited."""


@dataclass(frozen=True)
class SequenceConfig(EvaluationConfig):
    """Edits of facts in batches, one after another.

    Attributes:
        methods: Methods, or pairs rule@scheme; none that trains. A run holds those that it was begun with.
        targets: Model that each batch's targets are made on: current, as earlier batches left it; unedited; or both,
            each method both ways.
        edits_per_batch: Facts that are edited jointly.
        old_keys: keep the keys of earlier batches in the solve, or drop them.
        look_every: Batches after which the model is looked at; after the last batch it is anyway.
        stop_perplexity: Perplexity of the held-out text, over the unedited model's, beyond which a method's edits end.
        stop_norm: Norm of a layer's change, over the weight's, beyond which they end.
        observe: Facts of each batch whose Jacobians are examined just before its edit; what the edit does to all its
            facts is then split into J·δ, curvature and leakage. None of this by default.
        greedy: Check Accuracy by real greedy decoding too; off here, since there are many looks.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.SequenceConfig(edits_per_batch=8, targets="both").old_keys
        'keep'
    """

    methods: tuple[str, ...] = ("memit", "memit+fe", "memit+cr", "alphaedit", "alphaedit+fe", "alphaedit+cr")
    targets: TargetsName | Literal["both"] = "current"
    edits_per_batch: Positive | None = 16
    old_keys: Literal["keep", "drop"] = "keep"
    look_every: Positive = 1
    stop_perplexity: Annotated[float, Gt(1)] | Literal["never"] = 10.0
    stop_norm: Above | Literal["never"] = field(default=10.0, metadata=RARE)
    observe: Annotated[int, Ge(0)] = 0
    greedy: bool = False

    @property
    def modes(self) -> tuple[TargetsName, ...]:
        """Models that targets are made on."""
        return TARGETS if self.targets == "both" else (self.targets,)

    def deciding(self) -> dict[str, Any]:
        """Settings that decide a number, beside those of any evaluation."""
        return {
            "targets": self.targets,
            "old_keys": self.old_keys,
            "look_every": self.look_every,
            "stop_perplexity": self.stop_perplexity,
            "stop_norm": self.stop_norm,
            **({"observe": self.observe} if self.observe else {}),
        }
