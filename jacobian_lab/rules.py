"""Update rules: what is made of keys and residuals, each a pure function (methods.md §5)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from scipy.linalg.lapack import dpocon
from torch import Tensor

from jacobian_lab.errors import InputError

Matrix = Float[Tensor, "n n"]
Eigh = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Eigenvalues, ascending, and eigenvectors of a symmetric matrix, as `torch.linalg.eigh` returns them."""

PRUNE_KINDS = ("log", "log_a", "linear")
PRUNE_SCOPES = ("layer", "total")
RECT_KEPT = {"magnitude": 0.6, "relative": 0.2}
"""How RECT ranks, and the share that it keeps: the paper's code, and RECT's authors."""


@dataclass(frozen=True, eq=False)
class Update:
    """A change of one weight.

    Attributes:
        delta: ΔW, in float64.
        condition: Condition number of the matrix that was solved with, in the 1-norm, as LAPACK
            estimates it from the Cholesky factor.
        notes: What else a rule has to say, by the names under which runs store it.
    """

    delta: Float[Tensor, "d_model d_mlp"]
    condition: float
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Problem:
    """What a rule is given at one layer; not every rule looks at all of it.

    Attributes:
        keys: K, one column a fact, in float64.
        residuals: R, one column a fact, in float64.
        second_moment: C.
        weight: W.
        ridge: λ.
        earlier: S, Σ K Kᵀ of the batches before this one.
    """

    keys: Float[Tensor, "d_mlp fact"]
    residuals: Float[Tensor, "d_model fact"]
    second_moment: Float[Tensor, "d_mlp d_mlp"]
    weight: Float[Tensor, "d_model d_mlp"]
    ridge: float
    earlier: Float[Tensor, "d_mlp d_mlp"] | None = None

    def kept(self) -> Matrix:
        """λC + S: what an edit is to leave as it is."""
        kept = self.ridge * self.second_moment.to(self.keys.device)
        return kept if self.earlier is None else kept + self.earlier


Rule = Callable[[Problem], Update]
"""An update rule: a pure function."""


def memit(problem: Problem) -> Update:
    """MEMIT's rule: ``ΔW = R Kᵀ (λC + S + K Kᵀ)⁻¹``, in float64 by Cholesky (methods.md §3, §5).

    Args:
        problem: K, R, C, W, λ and S.

    Returns:
        The change.

    Raises:
        InputError: If the matrix to be solved with is singular.
    """
    K, R = problem.keys, problem.residuals
    return solve_spd(problem.kept() + K @ K.T, K @ R.T)


def prune(problem: Problem, *, kind: str = "log", base: float = 1.2) -> Update:
    """PRUNE: `memit`, then the change's singular values above the weight's largest are shrunk (methods.md §5).

    Args:
        problem: K, R, C, W, λ and S.
        kind: See `shrink`.
        base: See `shrink`.

    Returns:
        The change, with the number of shrunk singular values as ``shrunk_values``.
    """
    update = memit(problem)
    delta, count = shrink(update.delta, problem.weight, kind, base)
    return replace(update, delta=delta, notes={"shrunk_values": float(count)})


def shrink(
    delta: Float[Tensor, "d_model d_mlp"], weight: Float[Tensor, "d_model d_mlp"], kind: str = "log", base: float = 1.2
) -> tuple[Float[Tensor, "d_model d_mlp"], int]:
    """PRUNE's restraint: σ_i ≥ σ_max becomes ln σ_i − ln σ_max + σ_max, with σ_max the largest of the weight.

    Args:
        delta: The change of one layer, or the total one after all edits.
        weight: The weight before it.
        kind: ``"log"``; ``"log_a"``, with logarithms to `base`; ``"linear"``, ½σ_i + ½σ_max.
        base: 1.2, 1.5 or 2 in the literature.

    Returns:
        The restrained change, and how many singular values were too large.
    """
    limit = torch.linalg.matrix_norm(weight.double(), 2)
    U, sigma, V = torch.linalg.svd(delta.double(), full_matrices=False)
    over = sigma >= limit
    if not over.any():
        return delta, 0
    logarithm = torch.log(sigma / limit) / (math.log(base) if kind == "log_a" else 1.0)
    shrunk = (sigma + limit) / 2 if kind == "linear" else logarithm + limit
    return U @ torch.diag(torch.where(over, shrunk, sigma)) @ V, int(over.sum())


def rect(problem: Problem, *, by: str = "magnitude", kept: float | None = None) -> Update:
    """RECT: `memit`, then the smallest entries of the change are set to zero (methods.md §5).

    Args:
        problem: K, R, C, W, λ and S.
        by: ``"magnitude"`` ranks by |ΔW_ij|, as the paper's code does; ``"relative"`` by |ΔW_ij / W_ij|, as
            RECT's authors do.
        kept: Share of the entries that stay; that of `RECT_KEPT` by default.

    Returns:
        The change, with the share of its squared norm that stayed as ``kept_energy``.
    """
    update = memit(problem)
    size = update.delta.abs()
    if by == "relative":
        size = torch.nan_to_num(size / problem.weight.double().abs(), nan=0.0)
    dropped = round((1 - (RECT_KEPT[by] if kept is None else kept)) * size.numel())
    if not dropped:
        return replace(update, notes={"kept_energy": 1.0})
    delta = torch.where(size > size.flatten().kthvalue(dropped).values, update.delta, 0.0)
    return replace(update, delta=delta, notes={"kept_energy": float((delta**2).sum() / (update.delta**2).sum())})


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions in which the keys of a corpus hardly lie.

    Attributes:
        basis: Û, eigenvectors of C with small eigenvalues, one a column.
        trace_left_out: Share of C's trace that lies outside.
    """

    basis: Float[Tensor, "d_mlp rank"]
    trace_left_out: float


def null_space(
    second_moment: Float[Tensor, "d_mlp d_mlp"],
    threshold: float = 0.02,
    *,
    relative: bool = False,
    eigh: Eigh = torch.linalg.eigh,
) -> NullSpace:
    """AlphaEdit's null space of C (methods.md §5).

    Args:
        second_moment: C.
        threshold: Eigenvalues below it belong to the null space.
        relative: Whether the threshold is in units of the mean eigenvalue, so that the scale of the
            keys does not matter.
        eigh: Eigendecomposition; may remember what it has done.

    Returns:
        Its basis, and what it leaves out.

    Raises:
        InputError: If it is empty.
    """
    values, vectors = eigh(second_moment)
    values, vectors = values.double(), vectors.double()
    limit = threshold * float(values.mean()) if relative else threshold
    inside = values < limit
    if not inside.any():
        raise InputError(
            f"expected eigenvalues of C below {limit:g} for AlphaEdit's null space, got none: the smallest is "
            f"{float(values[0]):.2g}: raise --alphaedit-threshold, or give --alphaedit-relative"
        )
    return NullSpace(vectors[:, inside], float(values[~inside].sum() / values.sum()))


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
    space = null_space(problem.second_moment, threshold, relative=relative, eigh=eigh)
    K, R = problem.keys, problem.residuals
    basis = space.basis.to(K.device)
    inner = basis.T @ K
    matrix = inner @ inner.T + l2 * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    if problem.earlier is not None:
        matrix += basis.T @ problem.earlier @ basis
    update = solve_spd(matrix, inner @ R.T, "P K Kᵀ + L2·I", "raise --alphaedit-l2")
    notes = {"null_space_rank": float(basis.shape[1]), "trace_left_out": space.trace_left_out}
    return replace(update, delta=update.delta @ basis.T, notes=notes)


def emmet(problem: Problem, *, epsilon: float = 0.1) -> Update:
    """EMMET: ``ΔW = R (Kᵀ A⁻¹ K + εI)⁻¹ Kᵀ A⁻¹`` with A = λC + S; with ε → 0, ΔW K = R (methods.md §5).

    Args:
        problem: K, R, C, W, λ and S.
        epsilon: ε.

    Returns:
        The change; the condition number is the larger one of the two solves.
    """
    K, R = problem.keys, problem.residuals
    whitened = solve_spd(problem.kept(), K, "λC")  # (A⁻¹ K)ᵀ
    inner = whitened.delta @ K
    inner = (inner + inner.T) / 2 + epsilon * torch.eye(len(inner), dtype=K.dtype, device=K.device)
    multipliers = solve_spd(inner, R.T, "Kᵀ A⁻¹ K + εI", "raise --emmet-epsilon")  # R (Kᵀ A⁻¹ K + εI)⁻¹
    return Update(multipliers.delta @ whitened.delta, max(whitened.condition, multipliers.condition))


def solve_spd(
    matrix: Matrix,
    right: Float[Tensor, "n m"],
    what: str = "λC + K Kᵀ",
    hint: str = "raise --ridge, or give a longer corpus",
) -> Update:
    """Solve ``matrix · ΔWᵀ = right`` with a symmetric positive definite matrix.

    Args:
        matrix: The matrix, in float64.
        right: The right-hand side.
        what: What the matrix is, for the message.
        hint: What to do if it is singular.

    Returns:
        ΔW, and the condition number of the matrix.

    Raises:
        InputError: If the matrix is not positive definite to working precision.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    reciprocal = 0.0
    if not int(info):
        reciprocal = float(dpocon(factor.cpu().numpy(), float(torch.linalg.matrix_norm(matrix, 1)), uplo="L")[0])
    if not reciprocal > torch.finfo(matrix.dtype).eps:
        raise InputError(
            f"expected a positive definite {what} to solve with, got one that is singular to working precision: {hint}"
        )
    return Update(torch.cholesky_solve(right, factor).T, 1 / reciprocal)


RULES: dict[str, Callable[..., Update]] = {
    "memit": memit,
    "prune": prune,
    "rect": rect,
    "alphaedit": alphaedit,
    "emmet": emmet,
}
"""Each takes a `Problem`, and its own options by name; any goes with any scheme of `jacobian_lab.targets`."""


@dataclass(frozen=True)
class RuleSettings:
    """What the rules leave open; the defaults are the paper's.

    Attributes:
        prune_kind: How PRUNE shrinks: log, log_a or linear.
        prune_base: Base of log_a: 1.2, 1.5 or 2 in the literature.
        prune_scope: What PRUNE shrinks: every layer's change as it is made, or the total one after all edits.
        rect_by: How RECT ranks: by magnitude, or relative to the weight.
        rect_kept: Share of the entries that RECT keeps; 0.6 by magnitude, 0.2 relative by default.
        alphaedit_threshold: Eigenvalues of C below it span AlphaEdit's null space.
        alphaedit_relative: Whether this threshold is in units of the mean eigenvalue.
        alphaedit_l2: L2 of AlphaEdit's solve.
        emmet_epsilon: ε of EMMET's solve.
    """

    prune_kind: str = "log"
    prune_base: float = 1.2
    prune_scope: str = "layer"
    rect_by: str = "magnitude"
    rect_kept: float | None = None
    alphaedit_threshold: float = 0.02
    alphaedit_relative: bool = False
    alphaedit_l2: float = 10.0
    emmet_epsilon: float = 0.1

    def check(self) -> None:
        """Refuse what no rule can use.

        Raises:
            InputError: Naming the option.
        """
        choices = {"prune_kind": PRUNE_KINDS, "prune_scope": PRUNE_SCOPES, "rect_by": tuple(RECT_KEPT)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                option = "--" + name.replace("_", "-")
                raise InputError(f"expected {option} of {', '.join(known)}, got {getattr(self, name)!r}: choose one")
        if not self.prune_base > 1:
            raise InputError(f"expected a base above 1, got --prune-base {self.prune_base}: give 1.2, 1.5 or 2")
        if not self.alphaedit_l2 > 0:
            raise InputError(f"expected a number above zero, got --alphaedit-l2 {self.alphaedit_l2}: give 10")
        if self.rect_kept is not None and not 0 < self.rect_kept <= 1:
            raise InputError(f"expected a share above 0 and up to 1, got --rect-kept {self.rect_kept}: give 0.6")

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
            "rect": {"by": self.rect_by, "kept": self.rect_kept},
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
        """What a rule does to a layer's total change after all edits: nothing, but for PRUNE on the total.

        Args:
            name: Its name in `RULES`.
            delta: The total change.
            weight: The weight before all edits.

        Returns:
            The change to be made in its place, and notes as an `Update` has them.
        """
        if name != "prune" or self.prune_scope != "total":
            return delta, {}
        shrunk, count = shrink(delta, weight, self.prune_kind, self.prune_base)
        return shrunk, {"shrunk_values": float(count)}
