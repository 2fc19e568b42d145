"""A session: a model, facts and settings, with C, λ, anchors and targets, each made once when it is first needed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, SCHEMES, method
from jacobian_lab.editing.anchors import AnchorSettings, CoordinationSettings
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import ObservedEdit
from jacobian_lab.editing.methods import MethodEdit, Refit, edit_with
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import DAMPING, Targets, make_targets
from jacobian_lab.editing.solving import Eigh, advice, factored, null_space, remembered_eigh, suited_ridge
from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.parallel.executor import SERIAL, Executor
from jacobian_lab.session.descents import (
    ANCHOR,
    Batching,
    Labels,
    Recorder,
    anchor_descent,
    descend,
    shift_descent,
)

Moments = Mapping[int, Float[Tensor, "d_mlp d_mlp"]]


@dataclass(eq=False)
class Session:
    """All that edits of some facts are made with.

    Attributes:
        rows: The facts as the model reads them, and the model.
        layers: The decisive layers, ascending, the last of them L.
        anchor: How anchors are optimized.
        take_moments: Gives C of the decisive layers, from the cache where it is there.
        coordination: How coordinated replay shares the effort over the layers.
        rules: What the update rules leave open.
        fixed_ridge: λ; none where it follows from what is realised.
        damping: μ of the scheme jacobian-pullback.
        batch_size: Facts in a descent's batch at the most; what the model and memory allow by default.
        apart: Indices of facts that have batches of their own.
        executor: Who does work that is divided by facts.
        progress: Whether to show progress bars.
    """

    rows: FactRows
    layers: Layers
    anchor: AnchorSettings
    take_moments: Callable[[], Moments]
    coordination: CoordinationSettings = field(default_factory=CoordinationSettings)
    rules: RuleSettings = field(default_factory=RuleSettings)
    fixed_ridge: float | None = None
    damping: float = DAMPING
    batch_size: int | None = None
    apart: frozenset[int] = frozenset()
    executor: Executor = SERIAL
    progress: bool = True

    @property
    def model(self) -> LanguageModel:
        """The model."""
        return self.rows.model

    @property
    def anchor_layers(self) -> Layers:
        """The layers that anchors are optimized at: the first and the last."""
        return tuple(sorted({self.layers[0], self.layers[-1]}))

    @property
    def descent_dtype(self) -> torch.dtype | None:
        """Dtype of the copy of the model that descents run in, if it is another than the model's."""
        dtype = None if self.anchor.dtype is None else getattr(torch, self.anchor.dtype)
        return None if dtype == self.model.dtype else dtype

    @cached_property
    def moments(self) -> Moments:
        """C of the decisive layers."""
        return self.take_moments()

    @cached_property
    def ridge(self) -> float:
        """λ: what was given, or suits the model at hand by what is realised."""
        if self.fixed_ridge is not None:
            return self.fixed_ridge
        self._check_factors(1.0)
        return suited_ridge(self._unweighted.eases(self.layers))

    @cached_property
    def setting(self) -> Setting:
        """Rows, C, λ and μ of an edit of these facts."""
        return replace(self._unweighted, ridge=self.ridge)

    @cached_property
    def _unweighted(self) -> Setting:
        """The same at λ = 0; all settings made of it share the factors of C."""
        return Setting(self.rows, self.moments, 0.0, self.damping, self.executor)

    @cached_property
    def eigh(self) -> Eigh:
        """Eigendecomposition that remembers each C's."""
        return remembered_eigh(self.model.device)

    def check_solvable(self, columns: int) -> None:
        """Refuse a singular λC where it is to be solved with fewer keys than it is wide.

        Raises:
            InputError: If one is singular.
        """
        if columns < self.model.d_mlp:
            self._check_factors(self.ridge)

    def _check_factors(self, ridge: float) -> None:
        """Factor C where λ is above zero, which every later solve reuses; only the message names λC."""
        for layer, matrix in self.moments.items():
            with suppress(InputError):
                self._unweighted.cholesky(layer)
                if ridge > 0:
                    continue
            factored(ridge * matrix.to(self.model.device), f"λC at layer {layer}", advice(matrix, ridge))

    def check_null_spaces(self, layers: Iterable[int], threshold: float | None = None) -> None:
        """Refuse a C without a null space for a rule that projects on it, with the rules' threshold or another.

        Raises:
            InputError: If one has none.
        """
        threshold = self.rules.alphaedit_threshold if threshold is None else threshold
        relative = self.rules.alphaedit_relative
        for layer in layers:
            null_space(self.moments[layer], threshold, relative=relative, eigh=self.eigh, name=f"C at layer {layer}")

    @property
    def _batching(self) -> Batching:
        return Batching(self.rows, self.batch_size, self.descent_dtype, self.executor, self.apart)

    def anchors(
        self, recorder: Recorder, layers: Sequence[int], name: str = ANCHOR, facts: Sequence[int] | None = None
    ) -> dict[int, Float[Tensor, "fact d_model"]]:
        """Anchors of the model as it is now, by layer; what is not recorded is optimized.

        Args:
            recorder: Keeps them.
            layers: The anchor layers.
            name: The name under which they are recorded.
            facts: Indices of the facts; all of them by default.

        Returns:
            Anchors of these facts, in float32 or better.
        """
        descents = [anchor_descent(self.rows, self.anchor, layer, name) for layer in layers]
        states = descend(self._batching, descents, recorder, facts, progress=self.progress)
        return dict(zip(layers, states, strict=True))

    def shifts(
        self, recorder: Recorder, layers: Layers | None = None, where: Labels | None = None
    ) -> Float[Tensor, "fact layer d_model"]:
        """Coordinated shifts of the unedited model; what is not recorded is optimized.

        Args:
            recorder: Keeps them.
            layers: The layers; all decisive ones by default.
            where: Where they are recorded, beside the facts.

        Returns:
            δ_l, in float32 or better.
        """
        layers = layers or self.layers
        descent = shift_descent(
            self.rows, self.anchor, layers, self.coordination, lambda: self.setting.eases(layers), where or {}
        )
        (shifts,) = descend(self._batching, [descent], recorder, progress=self.progress)
        return shifts

    def targets(self, recorder: Recorder, schemes: Iterable[str]) -> Targets:
        """Targets of all kinds that some schemes need.

        Args:
            recorder: Keeps anchors and shifts.
            schemes: The schemes.

        Returns:
            The targets.
        """
        anchors = self.anchors(recorder, self.anchor_layers)
        shifts = self.shifts(recorder) if any_coordinated(schemes) else None
        return make_targets(self.rows, self.layers, anchors, shifts)

    @contextmanager
    def edited(
        self,
        name: str,
        targets: Targets,
        *,
        setting: Setting | None = None,
        rules: RuleSettings | None = None,
        size: int | None = None,
        refit: Refit | None = None,
        done: Callable[[int], Any] = lambda _: None,
        look_on: Callable[[ObservedEdit], Any] | None = None,
    ) -> Iterator[MethodEdit]:
        """Edit with a method that is a pair; the weights are back bit for bit on leaving.

        Args:
            name: The method's name.
            targets: The targets of all facts.
            setting: What the edit is made with, if it is not the session's own.
            rules: What the rules leave open, likewise.
            size: Facts in a batch of edits; all of them in one by default.
            refit: Optimizes anchors on the model as it is, for methods that need it.
            done: Told of every batch's number of facts.
            look_on: Shown every layer's edit just after it.

        Yields:
            What the edit did to the weights.
        """
        with restored(self.model, self.layers):
            yield edit_with(
                method(name),
                setting or self.setting,
                targets,
                rules or self.rules,
                eigh=self.eigh,
                size=size,
                refit=refit,
                done=done,
                look_on=look_on,
            )


def any_coordinated(schemes: Iterable[str]) -> bool:
    """Tell whether some scheme needs coordinated shifts."""
    return any(SCHEMES[name].kind == COORDINATED for name in schemes)
