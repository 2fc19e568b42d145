"""Update rules: what is made of keys and residuals, each a pure function (methods.md §5)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.solving import (
    Eigh,
    Factored,
    advice,
    damped_inverse,
    factored,
    largest_singular_value,
    null_space,
    shrink,
)

RECT_KEPT = {"magnitude": 0.6, "relative": 0.2}
"""How RECT ranks, and the share that it keeps: the paper's code, and RECT's authors."""


@dataclass(frozen=True, eq=False)
class CarriedState:
    """State that a rule carries from a layer's batch to the next one.

    Attributes:
        matrix: What it solved with: λC + S, or what the rule has in its place, with S = Σ K Kᵀ of all batches so far.
        limit: PRUNE's: the largest singular value that the weight had before all edits.
        basis: AlphaEdit's: of the null space of C, where the model is.
    """

    matrix: Factored
    limit: Float[Tensor, ""] | None = None
    basis: Float[Tensor, "d_mlp rank"] | None = None


CarriedStates = dict[int, CarriedState]
"""By layer."""


@dataclass(frozen=True, eq=False)
class Update:
    """A change of one weight.

    Attributes:
        delta: ΔW, in float64.
        condition: Condition number of the matrix that was factored, in the 1-norm, as LAPACK estimates it
            from the Cholesky factor.
        notes: What else a rule has to say, by the names under which runs store it.
        carried: For the layer's next batch, where there is to be one.
    """

    delta: Float[Tensor, "d_model d_mlp"]
    condition: float
    notes: Mapping[str, float] = field(default_factory=dict)
    carried: CarriedState | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """Keys, residuals and matrices of one layer; not every rule reads them all.

    Attributes:
        layer: The layer, for messages.
        keys: K, one column a fact, in float64.
        residuals: R, one column a fact, in float64.
        second_moment: C.
        weight: W.
        ridge: λ.
        carried: What the rule handed on after the batch before this one.
        has_next: Whether there are to be further batches.
    """

    layer: int
    keys: Float[Tensor, "d_mlp fact"]
    residuals: Float[Tensor, "d_model fact"]
    second_moment: Float[Tensor, "d_mlp d_mlp"]
    weight: Float[Tensor, "d_model d_mlp"]
    ridge: float
    carried: CarriedState | None = None
    has_next: bool = False

    def spread(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """λC."""
        return self.ridge * self.second_moment.to(self.keys.device)


Rule = Callable[[Problem], Update]
"""An update rule: a pure function."""


def memit(problem: Problem) -> Update:
    """MEMIT's rule: ``ΔW = R Kᵀ (λC + S + K Kᵀ)⁻¹``, in float64 by Cholesky (methods.md §3, §5).

    Args:
        problem: K, R, C, W, λ and S.

    Returns:
        The change.
    """
    return _regressed(problem, problem.spread, "λC + K Kᵀ", advice(problem.second_moment, problem.ridge))


def _regressed(
    problem: Problem,
    start: Callable[[], Float[Tensor, "n n"]],
    name: str,
    hint: str,
    basis: Float[Tensor, "d_mlp n"] | None = None,
) -> Update:
    """``ΔW = R Kᵀ (M + S + K Kᵀ)⁻¹``, with M what `start` returns; in a basis if there is one."""
    keys = problem.keys if basis is None else basis.T @ problem.keys
    if problem.carried is None:  # factored with the first batch's keys in it; later ones come as columns
        matrix = factored(start() + keys @ keys.T, f"{name} at layer {problem.layer}", hint)
        solved = matrix.solve(keys @ problem.residuals.T)
    else:
        matrix = problem.carried.matrix.plus(keys)
        solved = matrix.solve_newest(keys)
    solved = (solved if basis is None else basis @ solved).T
    delta = solved if problem.carried is None else problem.residuals @ solved
    return Update(delta, matrix.condition, carried=CarriedState(matrix) if problem.has_next else None)


def prune(problem: Problem, *, kind: str = "log", base: float = 1.2) -> Update:
    """PRUNE: `memit`, then the change's singular values above the weight's largest are shrunk (methods.md §5).

    Args:
        problem: K, R, C, W, λ and S.
        kind: See `shrink`.
        base: See `shrink`.

    Returns:
        The change, with the number of shrunk singular values as ``shrunk_values``.
    """
    limit = problem.carried.limit if problem.carried else None
    limit = largest_singular_value(problem.weight) if limit is None else limit
    update = memit(problem)
    delta, count = shrink(update.delta, limit, kind, base)
    carried = replace(update.carried, limit=limit) if update.carried else None
    return replace(update, delta=delta, notes={"shrunk_values": float(count)}, carried=carried)


def rect(problem: Problem, *, by: str = "magnitude", share: float | None = None) -> Update:
    """RECT: `memit`, then the smallest entries of the change are set to zero (methods.md §5).

    Args:
        problem: K, R, C, W, λ and S.
        by: ``"magnitude"`` ranks by |ΔW_ij|, as the paper's code does; ``"relative"`` by |ΔW_ij / W_ij|, as
            RECT's authors do.
        share: Share of the entries that stay; that of `RECT_KEPT` by default.

    Returns:
        The change, with the share of its squared norm that stayed as ``kept_energy``.
    """
    update = memit(problem)
    size = update.delta.abs()
    if by == "relative":
        size = torch.nan_to_num(size / problem.weight.double().abs(), nan=0.0)
    dropped = round((1 - (RECT_KEPT[by] if share is None else share)) * size.numel())
    if not dropped:
        return replace(update, notes={"kept_energy": 1.0})
    delta = torch.where(size > size.flatten().kthvalue(dropped).values, update.delta, 0.0)
    return replace(update, delta=delta, notes={"kept_energy": float((delta**2).sum() / (update.delta**2).sum())})


def alphaedit(
    problem: Problem,
    *,
    threshold: float = 0.02,
    relative: bool = False,
    l2: float = 10.0,
    eigh: Eigh = torch.linalg.eigh,
) -> Update:
    """AlphaEdit: ``[P (K Kᵀ + S) + L2·I] ΔWᵀ = P K Rᵀ``, with P the projection on the null space of C (methods.md §5).

    Solved in the null space's own basis, where the matrix is symmetric and positive definite.

    Args:
        problem: K, R, C, W, λ and S.
        threshold: See `null_space`.
        relative: See `null_space`.
        l2: L2.
        eigh: See `null_space`.

    Returns:
        The change, with ``null_space_rank`` and ``trace_left_out``.
    """
    moment = problem.second_moment
    space = null_space(moment, threshold, relative=relative, eigh=eigh, name=f"C at layer {problem.layer}")
    basis = problem.carried.basis if problem.carried else None
    basis = space.basis.to(problem.keys.device) if basis is None else basis

    def start() -> Float[Tensor, "rank rank"]:
        return l2 * torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)

    update = _regressed(problem, start, "P K Kᵀ + L2·I", "raise ⟨alphaedit_l2⟩", basis)
    notes = {"null_space_rank": float(basis.shape[1]), "trace_left_out": space.trace_left_out}
    carried = replace(update.carried, basis=basis) if update.carried else None
    return replace(update, notes=notes, carried=carried)


def emmet(problem: Problem, *, epsilon: float = 0.1) -> Update:
    """EMMET: ``ΔW = R (Kᵀ A⁻¹ K + εI)⁻¹ Kᵀ A⁻¹`` with A = λC + S; with ε → 0, ΔW K = R (methods.md §5).

    By the push-through identity this is ``R Kᵀ (εA + K Kᵀ)⁻¹``: for one batch identically `memit` at λ·ε (of later
    batches the old keys, which are part of A, count ε times as much as in `memit`).

    Args:
        problem: K, R, C, W, λ and S.
        epsilon: ε.

    Returns:
        The change; the condition number is the larger one of A and Kᵀ A⁻¹ K + εI. The first batch is solved by QR,
        without forming the latter; later ones, whose old keys stand beside A's factor, with it.
    """
    K, R, layer = problem.keys, problem.residuals, problem.layer
    matrix = (
        problem.carried.matrix
        if problem.carried
        else factored(problem.spread(), f"λC at layer {layer}", advice(problem.second_moment, problem.ridge))
    )
    name, hint = f"Kᵀ A⁻¹ K + εI at layer {layer}", "raise ⟨emmet_epsilon⟩"
    if matrix.columns.shape[1]:
        solved = matrix.solve(K).T  # Kᵀ A⁻¹
        inner = solved @ K
        inner = (inner + inner.T) / 2 + epsilon * torch.eye(len(inner), dtype=K.dtype, device=K.device)
        multipliers = factored(inner, name, hint)
        delta, condition = multipliers.solve(R.T).T @ solved, multipliers.condition
    else:
        inverse, condition = damped_inverse(matrix.factor, K, epsilon, name, hint)
        delta = R @ inverse
    handed_on = CarriedState(matrix.plus(K)) if problem.has_next else None
    return Update(delta, max(matrix.condition, condition), carried=handed_on)


RULES: dict[str, Callable[..., Update]] = {
    "memit": memit,
    "prune": prune,
    "rect": rect,
    "alphaedit": alphaedit,
    "emmet": emmet,
}
"""Each takes a `Problem`, and its own options by name; any goes with any scheme of `jacobian_lab.editing.schemes`."""


@dataclass(frozen=True)
class RuleSettings:
    """Options of the rules; the defaults are the paper's.

    Attributes:
        prune_kind: How PRUNE shrinks.
        prune_base: Base of log_a: 1.2, 1.5 or 2 in the literature.
        prune_scope: What PRUNE shrinks: every layer's change as it is made, or the total one after all edits.
        rect_by: How RECT ranks: by magnitude, or relative to the weight.
        rect_kept: Share of the entries that RECT keeps; 0.6 by magnitude, 0.2 relative by default.
        alphaedit_threshold: Eigenvalues of C below it span AlphaEdit's null space.
        alphaedit_relative: Whether this threshold is in units of the mean eigenvalue.
        alphaedit_l2: L2 of AlphaEdit's solve.
        emmet_epsilon: ε of EMMET's solve.

    Examples:
        >>> import jacobian_lab as jl
        >>> jl.RuleSettings(rect_kept=0.4).rect_kept
        0.4
    """

    prune_kind: Literal["log", "log_a", "linear"] = "log"
    prune_base: Annotated[float, Gt(1)] = 1.2
    prune_scope: Literal["layer", "total"] = "layer"
    rect_by: Literal["magnitude", "relative"] = "magnitude"
    rect_kept: Annotated[float, Gt(0), Le(1)] | None = None
    alphaedit_threshold: float = 0.02
    alphaedit_relative: bool = False
    alphaedit_l2: Annotated[float, Gt(0)] = 10.0
    emmet_epsilon: float = 0.1

    def rule(self, name: str, eigh: Eigh = torch.linalg.eigh) -> Rule:
        """A rule with these settings.

        Args:
            name: Its name in `RULES`.
            eigh: Eigendecomposition of C; may remember what it has done.

        Returns:
            The rule; PRUNE's on the total is MEMIT's, since it shrinks only in `finish`.
        """
        if name == "prune" and self.prune_scope == "total":
            return memit
        options: dict[str, dict[str, Any]] = {
            "prune": {"kind": self.prune_kind, "base": self.prune_base},
            "rect": {"by": self.rect_by, "share": self.rect_kept},
            "alphaedit": {
                "threshold": self.alphaedit_threshold,
                "relative": self.alphaedit_relative,
                "l2": self.alphaedit_l2,
                "eigh": eigh,
            },
            "emmet": {"epsilon": self.emmet_epsilon},
        }
        return partial(RULES[name], **options.get(name, {}))

    def finish(
        self, name: str, delta: Float[Tensor, "d_model d_mlp"], weight: Float[Tensor, "d_model d_mlp"]
    ) -> tuple[Float[Tensor, "d_model d_mlp"], dict[str, float]]:
        """Last step of a rule on a layer's total change after all edits: nothing, but for PRUNE on the total.

        Args:
            name: Its name in `RULES`.
            delta: The total change.
            weight: The weight before all edits.

        Returns:
            The change to be made in its place, and notes as an `Update` has them.
        """
        if name != "prune" or self.prune_scope != "total":
            return delta, {}
        shrunk, count = shrink(delta, largest_singular_value(weight), self.prune_kind, self.prune_base)
        return shrunk, {"shrunk_values": float(count)}
