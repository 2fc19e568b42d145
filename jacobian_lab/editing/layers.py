"""The one loop over layers; any rule of `jacobian_lab.editing.rules` goes with any scheme."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.catalogue import Scheme
from jacobian_lab.editing.paper_rules import memit
from jacobian_lab.editing.problems import CarriedStates, Problem, Rule, Update
from jacobian_lab.editing.reachable import reachable_changes
from jacobian_lab.editing.residuals import assigned_residuals
from jacobian_lab.editing.schemes import DAMPING, Targets
from jacobian_lab.editing.solving import Factor, Factored, remembered_factor
from jacobian_lab.editing.transfer import transferred
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.replay import FrozenGroups
from jacobian_lab.maps.stepwise import StepwisePass
from jacobian_lab.memory import free_memory
from jacobian_lab.model.edited import sole_edit
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.model.rows import FactRows
from jacobian_lab.parallel.executor import SERIAL, Executor, called

KEYS_AT_ONCE = 64
"""Facts whose keys are taken together."""

CARRIED_SHARE = 0.25
"""Share of the free memory that states on their way from one decisive layer to the next may take."""


@dataclass(frozen=True, eq=False)
class Setting:
    """Facts, second moments and weights of the solve that every method edits with.

    `dataclasses.replace` hands the factors of C on, so that each is made once for all methods and values of λ.

    Attributes:
        rows: The facts as the model reads them, and the model.
        moments: C of each decisive layer, ``[d_mlp, d_mlp]``.
        ridge: λ, the weight of C in the solve.
        damping: μ, for the schemes that pull residuals back through J.
        executor: Who takes the keys.
        factor: Factors C, once a layer.
    """

    rows: FactRows
    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    ridge: float
    damping: float = DAMPING
    executor: Executor = SERIAL
    factor: Factor = field(default_factory=remembered_factor, repr=False)

    @property
    def model(self) -> LanguageModel:
        """The model."""
        return self.rows.model

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts."""
        return self.rows.facts

    def eases(self, layers: Layers) -> Float[Tensor, "fact layer"]:
        """kᵀC⁻¹k of every fact, on the model as it is now.

        Args:
            layers: Decisive layers, ascending.

        Returns:
            `ease` of each.
        """
        walk = KeyWalk(self.rows, layers, self.executor)
        return torch.stack([self.ease(layer, walk.keys(layer)) for layer in layers], dim=1)

    def transfers(self, layers: Layers, others: FactRows) -> Float[Tensor, "fact layer"]:
        """Mean share of a shift that a solve gives to the facts' keys in other contexts (`transferred`).

        Args:
            layers: Decisive layers, ascending.
            others: The same facts in these contexts.

        Returns:
            k'ᵀC⁻¹k / kᵀC⁻¹k of every fact and layer, on the model as it is now.

        Raises:
            InputError: If C is singular.
        """
        own, other = (KeyWalk(rows, layers, self.executor) for rows in (self.rows, others))

        def shares(layer: int) -> Float[Tensor, " fact"]:
            factor, keys = self.cholesky(layer), own.keys(layer)

            def solve(columns: Float[Tensor, "d_mlp fact"]) -> Float[Tensor, "d_mlp fact"]:
                return torch.cholesky_solve(columns, factor.to(columns.device))

            return transferred(keys, other.keys(layer)[:, None], solve)[:, 0]  # linear in k': the mean of the shares

        return torch.stack([shares(layer) for layer in layers], dim=1)

    def ease(self, layer: int, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, " fact"]:
        """kᵀC⁻¹k of some keys.

        Args:
            layer: The keys' layer.
            keys: k of each fact, in float64.

        Returns:
            As `eases` has it; NaN where C is singular.
        """
        try:
            return eases(keys, self.cholesky(layer))
        except InputError:
            return torch.full_like(keys[:, 0], torch.nan)

    def factored_moment(self, layer: int) -> Factored:
        """C, factored once a layer.

        Args:
            layer: A decisive layer.

        Returns:
            The matrix, with its factor on the host.

        Raises:
            InputError: If C is singular.
        """
        return self.factor(self.moments[layer], f"C at layer {layer}", self.model.device)

    def cholesky(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """L with C = L Lᵀ, computed once a layer.

        Args:
            layer: A decisive layer.

        Returns:
            L, on the host.

        Raises:
            InputError: If C is singular.
        """
        return self.factored_moment(layer).factor

    def select(self, facts: Sequence[int]) -> "Setting":
        """Select some of the facts.

        Args:
            facts: Their indices.

        Returns:
            The setting of an edit of these.
        """
        return replace(self, rows=self.rows.select(facts))


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """One layer's edit, just after it was made.

    Attributes:
        layer: The layer l.
        last: The last decisive layer L.
        frozen: The facts' bare prompts, frozen just before the edit, from l to L.
        full_residual: Residuals before the scheme divided or pulled them back, ``[fact, d_model]``.
        assigned_residual: Residuals that the layer was given, ``[fact, d_model]``.
        out_of_reach: Share of them that no write u can give, ``[fact]``; zero unless a norm follows the MLP.
        keys: k_l just before the edit, ``[fact, d_mlp]``, in float64.
        solved_residual: R as the rule was given it, a column for each fact with a finite target.
        update: What the rule made of them.
        update_norm: ‖ΔW‖ / ‖W‖ in the Frobenius norm.
        unstored: Share of ΔW that the weight's dtype did not take, in the Frobenius norm.
    """

    layer: int
    last: int
    frozen: FrozenGroups
    full_residual: Float[Tensor, "fact d_model"]
    assigned_residual: Float[Tensor, "fact d_model"]
    out_of_reach: Float[Tensor, " fact"]
    keys: Float[Tensor, "fact d_mlp"]
    solved_residual: Float[Tensor, "d_model solved"]
    update: Update
    update_norm: float
    unstored: float


@contextmanager
def restored(model: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Put the weights of the MLP output projections back bit for bit on leaving, whatever happens within.

    Args:
        model: The model.
        layers: The layers whose weights may be changed within.

    Yields:
        Nothing.

    Raises:
        InputError: If the model is edited already.
    """
    with sole_edit(model):
        before = {layer: model.weight(layer).clone() for layer in layers}
        try:
            yield
        finally:
            for layer, weight in before.items():
                model.weight(layer).copy_(weight)


@torch.no_grad()
def edit_layers(
    setting: Setting,
    scheme: Scheme,
    targets: Targets,
    rule: Rule = memit,
    carried: CarriedStates | None = None,
) -> Iterator[LayerEdit]:
    """Edit all facts jointly, layer after layer, and leave the model edited (use within `restored`).

    Keys and hidden states of a layer are those of the model as the layers before have left it. A fact whose target is
    not finite keeps its place and takes no part in the solve.

    Args:
        setting: What the edit is made with.
        scheme: Which residual each layer is given.
        targets: The targets, of the unedited model.
        rule: What is done with keys and residuals.
        carried: Where these facts are one batch of several: what the rule handed on after the batch before, by
            layer; what it hands on now takes its place.

    Yields:
        Every layer's edit just after it; the next layer is not looked at before it is asked for.

    Raises:
        InputError: If no fact has a finite target, or a solve is singular.
    """
    model, rows = setting.model, setting.rows
    layers, last = scheme.edited(targets.layers), targets.layers[-1]
    usable, walk = targets.usable(scheme.kind), KeyWalk(rows, layers, setting.executor)
    for index, layer in enumerate(layers):
        residuals = assigned_residuals(rows, scheme, targets, index, setting.damping)
        frozen, full, assigned = residuals.frozen, residuals.full, residuals.assigned
        keys, old = walk.keys(layer), model.copied_weight(layer)
        changes, out_of_reach = reachable_changes(model, layer, frozen.writes(layer), assigned)
        problem = Problem(layer, keys[usable].T, changes[usable].T, setting.moments[layer], old, setting.ridge)
        if carried is not None:
            once = partial(setting.factored_moment, layer)
            problem = replace(problem, carried=carried.get(layer), has_next=True, factored_moment=once)
        update = rule(problem)
        if carried is not None and update.carried is not None:
            carried[layer] = update.carried
        stored = write_weight(model, layer, old, update.delta)
        yield LayerEdit(layer, last, frozen, full, assigned, out_of_reach, keys, problem.residuals, update, **stored)


def write_weight(
    model: LanguageModel,
    layer: int,
    old: Float[Tensor, "d_model d_mlp"],
    delta: Float[Tensor, "d_model d_mlp"],
) -> dict[str, float]:
    """Write ``old + delta`` into a layer's weight, added up in float64, and say what that did to it.

    Args:
        model: The model.
        layer: The layer.
        old: What its weight was.
        delta: The change that is asked for, in float32 or float64.

    Returns:
        ``update_norm`` and ``unstored`` as `LayerEdit` has them.

    Raises:
        InputError: If the weight's dtype does not hold the sum.
    """
    weight, new = model.weight(layer), old.double() + delta.double()
    weight.copy_(new.to(weight.dtype))
    if not torch.isfinite(weight).all():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"expected an edit that {dtype} holds, got NaN or infinity in the weight of layer {layer}: "
            "lower ⟨anchor.clamp⟩, raise ⟨ridge⟩ or edit in float32"
        )
    size, lost = torch.linalg.matrix_norm(delta.double()), torch.linalg.matrix_norm(new - weight.to(new))
    return {
        "update_norm": float(size / torch.linalg.matrix_norm(old.double())),
        "unstored": float(lost / size),
    }


class KeyWalk:
    """Keys of all facts at ascending layers, averaged over their contexts (methods.md §3), while layers are edited.

    This process carries the states of a piece of facts from layer to layer, so that every block is run once. It runs a
    piece anew for each layer where the states would take more than `CARRIED_SHARE` of the free memory. Workers, which
    hold nothing between two layers, run all pieces anew.

    Args:
        rows: The facts.
        layers: The layers whose keys are asked for, ascending. Their weights may change once the keys are taken.
        executor: Who takes the keys.
    """

    def __init__(self, rows: FactRows, layers: Layers, executor: Executor = SERIAL) -> None:
        self.rows, self.last = rows, layers[-1]
        self._pieces = [range(at, min(at + KEYS_AT_ONCE, len(rows))) for at in range(0, len(rows), KEYS_AT_ONCE)]
        self._executor = executor if len(self._pieces) > 1 else SERIAL  # for one piece weights need not be sent
        self._room = int(CARRIED_SHARE * free_memory(rows.model.devices)) if len(layers) > 1 else 0
        self._passes: dict[Sequence[int], StepwisePass] = {}

    def keys(self, layer: int) -> Float[Tensor, "fact d_mlp"]:
        """Take the keys of a layer, with the weights as they are now.

        Args:
            layer: The next of the layers.

        Returns:
            One key a fact, in float64.
        """
        rows = self.rows
        work = partial(self._carried, layer) if self._executor.here else partial(_keys, rows, layer)
        named = partial(called, labels=[fact.id for fact in rows.facts])
        keys = torch.empty(len(rows), rows.model.d_mlp, dtype=torch.float64, device=rows.model.device)
        for piece, averages in self._executor.map(self._pieces, work, self._drop, named):
            keys[list(piece)] = averages.to(keys.device)
        return keys

    def _carried(self, layer: int, piece: Sequence[int]) -> Float[Tensor, "part d_mlp"]:
        """Average the keys of a piece, going on from the layer before if its states are carried."""
        if piece not in self._passes:
            self._passes[piece] = _contexts(self.rows.select(piece))
        stepwise = self._passes[piece]
        carried = sum(other.size for other in self._passes.values() if other.resting or other is stepwise)
        return _averaged(self.rows, stepwise.keys(layer, carry=layer != self.last and carried <= self._room))

    def _drop(self, _failed: int, _next: int) -> None:
        """Let all states go where memory does not suffice."""
        self._passes.clear()
        self._room = 0


def averaged_keys(rows: FactRows, layer: int, executor: Executor = SERIAL) -> Float[Tensor, "fact d_mlp"]:
    """Keys of one layer, averaged inside each template group, then over the groups (methods.md §3).

    Args:
        rows: The facts.
        layer: The layer.
        executor: Who takes them.

    Returns:
        One key a fact, in float64.
    """
    return KeyWalk(rows, (layer,), executor).keys(layer)


def _keys(rows: FactRows, layer: int, piece: Sequence[int]) -> Float[Tensor, "part d_mlp"]:
    return _averaged(rows, _contexts(rows.select(piece)).keys(layer, carry=False))


def _contexts(rows: FactRows) -> StepwisePass:
    return StepwisePass(rows.model, [row for contexts in rows.contexts for row in contexts])


def _averaged(rows: FactRows, keys: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "part d_mlp"]:
    keys = keys.double().view(-1, len(rows.weights), keys.shape[-1])
    return torch.einsum("ftk,t->fk", keys, keys.new_tensor(rows.weights)).cpu()


def eases(keys: Float[Tensor, "fact d_mlp"], factor: Float[Tensor, "d_mlp d_mlp"]) -> Float[Tensor, " fact"]:
    """kᵀC⁻¹k: the larger, the less a shift disturbs; the least ΔW with ΔW k = δ, weighed by C, costs ‖δ‖² over it.

    Args:
        keys: k of each fact, in float64.
        factor: L with C = L Lᵀ.

    Returns:
        A number for each fact, in tokens of the corpus per token.
    """
    return (torch.linalg.solve_triangular(factor.to(keys.device), keys.T, upper=False) ** 2).sum(0)
