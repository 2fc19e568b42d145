"""A session: a model, facts and settings, with C, λ, anchors and targets, each made once when it is first needed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, JOINT, RESTARTED, SCHEMES, SEPARATE, Kind, method
from jacobian_lab.editing.delivery import delivered_shares
from jacobian_lab.editing.descent import Conditions
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import ObservedEdit
from jacobian_lab.editing.methods import BatchEdits, MethodEdit, Refit, edit_with
from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.editing.schemes import DAMPING, Targets, make_targets
from jacobian_lab.editing.settings import AnchorSettings, CoordinationSettings, ReplaySettings
from jacobian_lab.editing.solving import Eigh, advice, factored, null_space, remembered_eigh, suited_ridge
from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows, fact_rows
from jacobian_lab.model.templates import sample_templates
from jacobian_lab.parallel.executor import SERIAL, Executor
from jacobian_lab.session.descents import (
    ANCHOR,
    FIRSTS,
    INNER_ANCHOR,
    LOSS,
    Batching,
    Labels,
    Recorder,
    anchor_descent,
    descend,
    joint_descent,
    restarted_descent,
    shift_descent,
    spread,
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
        replay: How the controls of forward replay are made.
        rules: What the update rules leave open.
        fixed_ridge: λ; none where it follows from what is realised.
        damping: μ of the scheme jacobian-pullback.
        seed: Seed of what descents draw.
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
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    rules: RuleSettings = field(default_factory=RuleSettings)
    fixed_ridge: float | None = None
    damping: float = DAMPING
    seed: int = 0
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
        descents = [
            anchor_descent(self.rows, self.anchor, layer, name, partial(self._delivered, (layer,))) for layer in layers
        ]
        states = descend(self._batching, descents, recorder, facts, progress=self.progress) if layers else []
        return dict(zip(layers, states, strict=True))

    def shifts(
        self,
        recorder: Recorder,
        layers: Layers | None = None,
        where: Labels | None = None,
        facts: Sequence[int] | None = None,
    ) -> Float[Tensor, "fact layer d_model"]:
        """Coordinated shifts of the model as it is now; what is not recorded is optimized.

        Args:
            recorder: Keeps them.
            layers: The layers; all decisive ones by default.
            where: Where they are recorded, beside the facts.
            facts: Indices of the facts; all of them by default.

        Returns:
            δ_l, in float32 or better.
        """
        layers = layers or self.layers
        conditions = partial(self._conditions, recorder, layers, facts)
        descent = shift_descent(self.rows, self.anchor, layers, self.coordination, conditions, where or {})
        (shifts,) = descend(self._batching, [descent], recorder, facts, progress=self.progress)
        return shifts

    @cached_property
    def held_out(self) -> FactRows:
        """The facts in contexts that no key and no anchor is made of: sampled with the next seed."""
        _, contexts = sample_templates(self.model, (self.seed + 1) % 2**63)
        return fact_rows(self.model, self.rows.facts, (contexts,))

    def transfers(self, layers: Layers) -> Float[Tensor, "fact layer"]:
        """Mean share of a shift that a solve gives to the facts' keys in held-out contexts.

        Args:
            layers: Decisive layers, ascending.

        Returns:
            The shares of every fact and layer, on the model as it is now.
        """
        return self._unweighted.transfers(layers, self.held_out)

    def _conditions(self, recorder: Recorder, layers: Layers, facts: Sequence[int] | None) -> Conditions:
        """Conditions of coordinated shifts, as far as their settings need them."""
        eases, limits = None, None
        delivered = self._delivered(layers, measure=self.coordination.needs_transfers)
        if self.coordination.needs_eases:
            eases = self.setting.eases(layers).cpu()
        if self.coordination.end == "anchor":
            self.anchors(recorder, layers[:1], facts=facts)
            indices = range(len(self.rows)) if facts is None else facts
            losses = recorder.get(LOSS.format(ANCHOR), {"anchor_layer": layers[0]}, indices).cpu()
            limits = spread(losses, facts, len(self.rows))
        return replace(delivered, eases=eases, limits=limits)

    def _delivered(self, layers: Layers, *, measure: bool = False) -> Conditions:
        """Shares at which descents take their loss, with what of a shift arrives at held-out contexts if needed."""
        measure = measure or self.anchor.needs_transfers
        transfers = self.transfers(layers).cpu() if measure else None
        shares = delivered_shares(self.rows, len(layers), self.anchor, self.seed, transfers)
        return Conditions(transfers=transfers, delivered=shares)

    def targets(
        self,
        recorder: Recorder,
        schemes: Iterable[str],
        facts: Sequence[int] | None = None,
        anchored: Layers | None = None,
    ) -> Targets:
        """Targets, of the model as it is now, of all kinds that some schemes need.

        Args:
            recorder: Keeps anchors and shifts.
            schemes: The schemes.
            facts: Indices of the facts; all of them by default.
            anchored: Layers that anchors are optimized at; the first and the last by default.

        Returns:
            The targets of these facts.
        """
        kinds, rows = kinds_of(schemes), self.rows if facts is None else self.rows.select(facts)
        anchors = self.anchors(recorder, self.anchor_layers if anchored is None else anchored, facts=facts)
        shifts = self.shifts(recorder, facts=facts) if COORDINATED in kinds else None
        inner = self.inner_anchors(recorder, facts) if SEPARATE in kinds else None
        firsts = {kind: self.first_anchors(recorder, kind, facts) for kind in FIRSTS if kind in kinds}
        return make_targets(rows, self.layers, anchors, shifts, inner, firsts)

    def optimize(self, recorder: Recorder, name: str, facts: Sequence[int] | None = None) -> None:
        """Optimize what is not recorded of a descent of further targets.

        Args:
            recorder: Keeps anchors.
            name: The name under which it is recorded, one of those of `places_of`.
            facts: Indices of the facts; all of them by default.
        """
        kinds = {name: kind for kind, name in FIRSTS.items()}
        if name in kinds:
            self.first_anchors(recorder, kinds[name], facts)
        else:
            self.inner_anchors(recorder, facts)

    def inner_anchors(
        self, recorder: Recorder, facts: Sequence[int] | None = None
    ) -> dict[int, Float[Tensor, "fact d_model"]]:
        """Anchors between the ends of the decisive layers, by layer; what is not recorded is optimized.

        Args:
            recorder: Keeps them.
            facts: Indices of the facts; all of them by default.

        Returns:
            Anchors, in float32 or better.
        """
        return self.anchors(recorder, self.layers[1:-1], INNER_ANCHOR, facts)

    def first_anchors(
        self, recorder: Recorder, kind: Kind, facts: Sequence[int] | None = None
    ) -> Float[Tensor, "fact d_model"]:
        """Further anchors at the first layer; what is not recorded is optimized.

        Args:
            recorder: Keeps them, and the anchors that they are drawn to.
            kind: The kind of the targets that are replayed from them.
            facts: Indices of the facts; all of them by default.

        Returns:
            Anchors, in float32 or better.
        """
        first, last = self.layers[0], self.layers[-1]

        def aims() -> Conditions:
            states = spread(self.anchors(recorder, (last,), facts=facts)[last].cpu(), facts, len(self.rows))
            delivered = self._delivered((first,))
            return replace(delivered, aims=states, aim_layer=last, aim_weight=self.replay.joint)

        descents = {
            RESTARTED: restarted_descent(
                self.rows, self.anchor, first, self.replay, self.seed, partial(self._delivered, (first,))
            ),
            JOINT: joint_descent(self.rows, self.anchor, first, aims),
        }
        (states,) = descend(self._batching, [descents[kind]], recorder, facts, progress=self.progress)
        return states

    @contextmanager
    def edited_in_batches(self, name: str, *, several: bool, old_keys: bool) -> Iterator[BatchEdits]:
        """Edit with a method that is a pair, batch by batch; the weights are back bit for bit on leaving.

        Args:
            name: The method's name.
            several: True where there is to be more than one batch.
            old_keys: True where the keys of earlier batches stay in the solve.

        Yields:
            What edits the next batch.
        """
        setting = self.setting
        if self.anchor.needs_transfers or self.coordination.needs_transfers:
            _ = self.held_out  # of the unedited model, for anchors that are made on an edited one
        with restored(self.model, self.layers):
            yield BatchEdits(
                method(name), setting, self.layers, self.rules, eigh=self.eigh, several=several, old_keys=old_keys
            )

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
        if method(name).refit and self.anchor.needs_transfers:
            _ = self.held_out  # of the unedited model, for anchors that are refitted
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


def kinds_of(schemes: Iterable[str]) -> tuple[Kind, ...]:
    """List the kinds of the targets that some schemes need, each once, in the order of the schemes."""
    return tuple(dict.fromkeys(SCHEMES[name].kind for name in schemes))


def any_coordinated(schemes: Iterable[str]) -> bool:
    """Tell whether some scheme needs coordinated shifts."""
    return COORDINATED in kinds_of(schemes)
