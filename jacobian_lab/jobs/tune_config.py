"""Settings of a search over windows of layers, λ, learning rate and passes."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from jacobian_lab.jobs.config import RARE, Above, EvaluationConfig, Positive
from jacobian_lab.tries import CriterionName


@dataclass(frozen=True)
class TuneConfig(EvaluationConfig):
    """A search over windows of layers, λ, learning rate and passes, on facts that will not be edited.

    Attributes:
        methods: Methods, or pairs rule@scheme; all get the same tries.
        windows: Windows of layers, as 3-7 5-9; by default the model's own layers, and five windows spread over the
            first two thirds of its blocks.
        width: Layers of a window that is spread; as many as the model's own layers by default.
        ridges: The values of λ; 0.3 to 30 times what suits each window, in five steps, by default.
        lrs: Learning rates; the model's own and 0.4 of it by default. Windows are compared at the first.
        passes: Passes of a descent; the model's own and twice as many by default. Windows are compared at the first.
        criterion: bound (the best generalisation within the bound of D_KL) or frontier (layers, learning rate and
            passes by the best generalisation averaged over bounds of D_KL, a tenth to ten times that one).
        kl_bound: Largest mean D_KL, in nats; the median of all methods' finalists along λ by default.
        finalists: Windows of each method that go on to be evaluated along λ.
        greedy: Check Accuracy by real greedy decoding too; off here, since there are many tries.
        held_out_tokens: Tokens of the held-out text.

    Examples:
        >>> from jacobian_lab.jobs.tune_config import TuneConfig
        >>> import jacobian_lab as jl
        >>> jl.TuneConfig(windows=("3-7", "5-9")).finalists
        3
    """

    methods: tuple[str, ...] = ("memit", "memit+fe", "memit+cr")
    windows: tuple[str, ...] | None = None
    width: Positive | None = None
    ridges: tuple[Above, ...] | None = None
    lrs: tuple[Above, ...] | None = None
    passes: tuple[Annotated[int, Gt(1)], ...] | None = None
    criterion: CriterionName = "bound"
    kl_bound: Above | None = None
    finalists: Positive = 3
    greedy: bool = False
    held_out_tokens: Positive = field(default=512, metadata=RARE)
