"""Update rules that the paper's tables do not have, each a pure function, with its source (methods.md §5)."""

from dataclasses import replace

import torch

from jacobian_lab.editing.paper_rules import alphaedit, projected, space_of
from jacobian_lab.editing.problems import CarriedState, Problem, Update
from jacobian_lab.editing.solving import (
    Eigh,
    advice,
    damped_inverse,
    factored,
    leading_directions,
    null_space,
)


def rome(problem: Problem) -> Update:
    """ROME: ``ΔW = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹``; of one fact ``r (C⁻¹k)ᵀ / kᵀC⁻¹k`` (arXiv 2202.05262, Eq. 2).

    The change of least ``tr(ΔW C ΔWᵀ)`` with ``ΔW K = R``: EMMET's with ε = 0. Earlier edits are not protected.

    Args:
        problem: K, R and C.

    Returns:
        The change.
    """
    if problem.factored_moment is None:
        matrix = factored(problem.second_moment, f"C at layer {problem.layer}", advice(problem.second_moment, 1.0))
    else:
        matrix = problem.factored_moment()
    name, hint = f"Kᵀ C⁻¹ K at layer {problem.layer}", "edit facts with equal keys one by one: ⟨edits_per_batch⟩ 1"
    inverse, condition = damped_inverse(matrix.factor.to(problem.keys), problem.keys, 0.0, name, hint)
    return Update(problem.residuals @ inverse, max(matrix.condition, condition))


def nse(problem: Problem, *, share: float = 0.8) -> Update:
    """NSE: `memit` on the neurons that are the most active in the facts' keys (arXiv 2410.04045).

    The neurons are ranked by the sum of |k| over the facts; those that hold the first `share` of the total are edited:
    their columns of ΔW solve ``ΔW (λC + S + K Kᵀ) = R Kᵀ`` with their rows and columns alone.

    Args:
        problem: K, R, C, λ and earlier keys.
        share: Share of the total.

    Returns:
        The change.
    """
    activity, order = problem.keys.abs().sum(1).sort(descending=True)
    sums = activity.cumsum(0)
    neurons = order[: max(1, int((sums <= share * sums[-1]).sum()))].sort().values
    keys, moment = problem.keys_so_far(), problem.second_moment.to(problem.keys.device)
    inner, every = problem.keys[neurons], keys[neurons]
    name = f"λC + S + K Kᵀ of {len(neurons)} neurons at layer {problem.layer}"
    whole = problem.ridge * moment[neurons][:, neurons] + every @ every.T
    matrix = factored(whole, name, advice(problem.second_moment, problem.ridge))
    delta = problem.residuals.new_zeros(len(problem.residuals), len(problem.keys))
    delta[:, neurons] = matrix.solve(inner @ problem.residuals.T).T
    return Update(delta, matrix.condition, carried=CarriedState(keys=keys) if problem.has_next else None)


def sphere(
    problem: Problem,
    *,
    share: float = 0.5,
    strength: float = 0.5,
    threshold: float = 0.02,
    relative: bool = False,
    l2: float = 10.0,
    eigh: Eigh = torch.linalg.eigh,
) -> Update:
    """SPHERE: `alphaedit`, then ``ΔW (I − αUUᵀ)`` with U the leading directions of W's rows (arXiv 2510.01172).

    Args:
        problem: K, R, C, W and S.
        share: See `leading_directions`.
        strength: α.
        threshold: See `null_space`.
        relative: See `null_space`.
        l2: L2.
        eigh: See `null_space`.

    Returns:
        The change, with notes as `alphaedit` has them.
    """
    update = alphaedit(problem, threshold=threshold, relative=relative, l2=l2, eigh=eigh)
    directions = leading_directions(problem.weight, share)
    return replace(update, delta=update.delta - strength * (update.delta @ directions) @ directions.T)


def betaedit(
    problem: Problem,
    *,
    renewal: int = 1000,
    threshold: float = 0.02,
    relative: bool = False,
    l2: float = 10.0,
    eigh: Eigh = torch.linalg.eigh,
) -> Update:
    """BetaEdit: ``[P (K Kᵀ + S + λC) + L2·I] ΔWᵀ = P K Rᵀ``, P renewed as edits are made (arXiv 2605.09285).

    P projects on the null space of C; once `renewal` edits have been made since it was taken, on that of
    ``(S/n + λC) / (1 + λ)``, with n the edits so far.

    Args:
        problem: K, R, C, λ and earlier keys.
        renewal: τ.
        threshold: See `null_space`.
        relative: See `null_space`.
        l2: L2.
        eigh: See `null_space`; of C alone.

    Returns:
        The change, with ``null_space_rank`` and ``trace_left_out``.
    """
    before, space = problem.before, space_of(problem, threshold, relative=relative, eigh=eigh)
    old = problem.keys[:, :0] if before.keys is None else before.keys
    edits, renewed, beside = old.shape[1], before.renewed, None
    is_renewed = edits - renewed >= renewal
    if is_renewed or before.matrix is None:
        moment, outer = problem.ridge * problem.second_moment.to(old.device), old @ old.T
        beside = moment + outer
        if is_renewed:
            mixed = (outer / edits + moment) / (1 + problem.ridge)
            space = null_space(mixed, threshold, relative=relative, name=f"C and old keys at layer {problem.layer}")
            problem, renewed = replace(problem, carried=None), edits
    update = projected(problem, space, l2, beside)
    if update.carried is None:
        return update
    handed_on = replace(update.carried, keys=torch.cat([old, problem.keys], dim=1), renewed=renewed)
    return replace(update, carried=handed_on)


def lyaplock(problem: Problem, *, tolerance: float = 60.0) -> Update:
    """LyapLock: old keys keep what they were written, and a queue raises λ where C is disturbed (arXiv 2505.15702).

    ``ΔW`` minimises ``‖ΔW K − R‖² + ‖(W + ΔW) K₀ − V₀‖² + qλ tr((W + ΔW − W₀) C (W + ΔW − W₀)ᵀ)``, with V₀ what the
    weights made of the old keys K₀ when these had been edited. With p the disturbance ``tr((W − W₀) C (W − W₀)ᵀ)``
    after a batch, and D the first batch's times `tolerance`, q ← max(q + p/D − 1, 1). W − W₀ is the sum of the changes,
    without the rounding of the weights.

    Args:
        problem: K, R, C, W, λ, and what the batch before has handed on.
        tolerance: D over the first batch's disturbance, its authors' α.

    Returns:
        The change; of the first batch `memit`'s.
    """
    before, keys, change = problem.before, problem.keys_so_far(), problem.before.change
    moment, residuals = problem.second_moment.to(keys.device), problem.residuals
    if change is not None and before.keys is not None and before.written is not None:
        residuals = torch.cat([before.written - change @ before.keys, residuals], dim=1)
    matrix, pull = problem.with_keys(keys, before.queue), residuals @ keys.T
    if change is not None:
        pull -= before.queue * problem.ridge * change @ moment
    delta = matrix.solve(pull.T).T
    if not problem.has_next:
        return Update(delta, matrix.condition)
    change = delta if change is None else change + delta
    disturbance = float((change @ moment * change).sum())
    bound = before.bound or tolerance * disturbance
    queue = max(before.queue + disturbance / bound - 1, 1.0) if bound else before.queue
    added = change @ problem.keys
    written = added if before.written is None else torch.cat([before.written, added], dim=1)
    handed_on = CarriedState(keys=keys, change=change, written=written, queue=queue, bound=bound)
    return Update(delta, matrix.condition, carried=handed_on)
