"""Update rules of the paper's tables: what is made of keys and residuals, each a pure function (methods.md §5)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.problems import CarriedState, Problem, Update
from jacobian_lab.editing.solving import (
    Eigh,
    Factored,
    NullSpace,
    damped_inverse,
    factored,
    largest_singular_value,
    null_space,
    shrink,
)

RECT_KEPT = {"magnitude": 0.6, "relative": 0.2}
"""How RECT ranks, and the share that it keeps: the paper's code, and RECT's authors."""


def memit(problem: Problem, *, norm_ridge: float = 0.0) -> Update:
    """MEMIT's rule: ``ΔW = R Kᵀ (λC + λₙI + S + K Kᵀ)⁻¹``, in float64 by Cholesky (methods.md §3, §5).

    Args:
        problem: K, R, C, W, λ and S.
        norm_ridge: λₙ; 0 but for the rules that add it.

    Returns:
        The change.
    """
    matrix = problem.before.matrix
    if matrix is None:
        return regressed(problem, problem.with_keys(problem.keys, norm_ridge=norm_ridge))
    return regressed(problem, matrix.plus(problem.keys))


def regressed(problem: Problem, matrix: Factored, basis: Float[Tensor, "d_mlp n"] | None = None) -> Update:
    """Solve ``ΔW = R Kᵀ M⁻¹``, where M holds K Kᵀ as what came last; in a basis if there is one.

    Args:
        problem: K and R.
        matrix: M.
        basis: Columns in which M is given, and keys are taken.

    Returns:
        The change, with M for the next batch.
    """
    keys = problem.keys if basis is None else basis.T @ problem.keys
    anew = problem.before.matrix is None and not matrix.columns.shape[1]
    solved = matrix.solve(keys @ problem.residuals.T) if anew else matrix.solve_newest(keys)
    solved = (solved if basis is None else basis @ solved).T
    delta = solved if anew else problem.residuals @ solved
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
    limit = problem.before.limit
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
    return projected(problem, space_of(problem, threshold, relative=relative, eigh=eigh), l2)


def space_of(problem: Problem, threshold: float, *, relative: bool, eigh: Eigh) -> NullSpace:
    """Null space of C: that which the batch before has handed on, or else a new one.

    Args:
        problem: C, and what was handed on.
        threshold: See `null_space`.
        relative: See `null_space`.
        eigh: See `null_space`.

    Returns:
        The space, with its basis where the keys are.
    """
    if problem.before.space is not None:
        return problem.before.space
    name = f"C at layer {problem.layer}"
    space = null_space(problem.second_moment, threshold, relative=relative, eigh=eigh, name=name)
    return replace(space, basis=space.basis.to(problem.keys.device))


def projected(
    problem: Problem,
    space: NullSpace,
    l2: float,
    beside: Float[Tensor, "d_mlp d_mlp"] | None = None,
) -> Update:
    """Solve ``[P (K Kᵀ + S + B) + L2·I] ΔWᵀ = P K Rᵀ`` in a basis of what P projects on.

    Args:
        problem: K, R and S, which is in the matrix of the batch before.
        space: What P projects on.
        l2: L2.
        beside: B, where nothing was handed on; none is zero.

    Returns:
        The change, with ``null_space_rank`` and ``trace_left_out``.
    """
    basis, matrix = space.basis, problem.before.matrix
    inner = basis.T @ problem.keys
    if matrix is None:
        start = l2 * torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        start = start if beside is None else start + basis.T @ beside @ basis
        name = f"P {'K Kᵀ' if beside is None else '(K Kᵀ + S + λC)'} + L2·I at layer {problem.layer}"
        matrix = factored(start + inner @ inner.T, name, "raise ⟨alphaedit_l2⟩")
    else:
        matrix = matrix.plus(inner)
    update = regressed(problem, matrix, basis)
    notes = {"null_space_rank": float(basis.shape[1]), "trace_left_out": space.trace_left_out}
    carried = replace(update.carried, space=space) if update.carried else None
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
    matrix = problem.before.matrix or problem.with_keys(K[:, :0])
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
