"""Studies of a layer's edit beside the tables: theorem 1 along its shift, and other step sizes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import elementwise
from torch import Tensor

from jacobian_lab.editing.measures import NO_RESIDUAL, ObservedEdit, norms
from jacobian_lab.jobs.counts import Counts
from jacobian_lab.jobs.jacobians import Survey
from jacobian_lab.maps.conditions import eigenspaces, eigenvector_angle, plane_angle, rayleigh_quotient
from jacobian_lab.maps.definiteness import Verdict, definiteness_matrix_free, symmetric_part, verdict_of
from jacobian_lab.maps.jacobians import dense_jacobians, linear_operator, to_numpy
from jacobian_lab.maps.replay import replay
from jacobian_lab.model.language_model import Layers
from jacobian_lab.planning.work import Work
from jacobian_lab.progress import bar

STEPS = tuple(round(0.1 * number, 1) for number in range(31))
"""Steps of the curve, over |t*|."""

AT_ONCE = STEPS[1] / 2**8
"""A function that is above its limit at this step already is above it at once."""

HALVINGS = 30
"""How often the farthest step is halved in the search for one that is trusted."""

TRUST = 0.1
"""J is trusted as far as its error is at most this share of the shift that it predicts."""

UNTRUSTED = (torch.bfloat16, torch.float16)
"""Dtypes whose rounding of a replayed state is more than `TRUST` of the shortest steps: no radius can be told, nor
where below the first of `STEPS` harm begins."""

UNKNOWN = np.inf
"""σ_max of J where the extreme eigenvalues of S are wanted, and no decision."""

FARTHEST = 64.0
"""The trust radius is sought up to this many times the norm of the hidden state."""


def theorem_1(edit: ObservedEdit, how: Survey, progress: bool = False) -> dict[str, Float[Tensor, " fact"]]:
    """Angle of a layer's shift to what theorem 1 asks for, and its place in the numerical range.

    J is taken at the state just before the edit, one fact at a time.
    """
    values = {name: torch.full_like(edit.shift[:, 0], torch.nan) for name in _THEOREM_1}
    shifts, quotients = to_numpy(edit.shift), rayleigh_quotient(edit.shift, edit.linear).tolist()
    with bar(len(shifts), f"theorem 1 at layer {edit.layer}", "fact", show=progress) as progress_bar:
        for fact, row in edit.frozen.one_by_one():
            progress_bar.update()
            if not np.isfinite(quotients[fact]):
                continue
            if how.forms(fact):
                J = dense_jacobians(row, [edit.layer], edit.last)[0, 0]
                extremes: Verdict = verdict_of(symmetric_part(J), 0.0, UNKNOWN)
            else:
                products = linear_operator(row, 0, edit.layer, edit.last)
                extremes = definiteness_matrix_free(products, UNKNOWN, seed=how.seed)
            values["range_position"][fact] = extremes.position(quotients[fact])
            if fact in how.sample:
                spaces = eigenspaces(to_numpy(J))
                values["eigenvector_angle"][fact] = float(eigenvector_angle(spaces, shifts[fact]))
                values["plane_angle"][fact] = float(plane_angle(spaces, shifts[fact]))
    return values


_THEOREM_1 = ("eigenvector_angle", "plane_angle", "range_position")


def step_size(edit: ObservedEdit, how: Survey, progress: bool = False) -> dict[str, Float[Tensor, "fact ..."]]:
    """The residual that other steps t·δ along the layer's shift would leave (paper, Figure 3).

    J predicts ‖R − t·Jδ‖, least at t* = ⟨R, Jδ⟩/‖Jδ‖² and above ‖R‖ beyond 2cosθ‖R‖/‖Jδ‖ = 2t*;
    replay says ‖R − (F(h + tδ) − F(h))‖. All steps are forward along δ, up to 3·|t*|; where t* is
    negative, J says that every small one does harm.
    """
    del how, progress
    before = edit.frozen.states(edit.layer)
    start = _through(edit, before)
    size = norms(edit.residual)
    size = torch.where(size > NO_RESIDUAL[edit.frozen.dtype] * norms(edit.last_before), size, torch.nan)

    def shifted(steps: Float[Tensor, " fact"]) -> Float[Tensor, "fact d_model"]:
        return _through(edit, before.double() + steps[:, None] * edit.shift) - start

    def left(steps: Float[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        return norms(edit.residual - shifted(steps)) / size

    def error(steps: Float[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        linear = steps[:, None] * edit.linear
        return norms(shifted(steps) - linear) / norms(linear)

    best = (edit.residual * edit.linear).sum(-1) / (edit.linear**2).sum(-1)
    best = torch.where(size.isnan(), torch.nan, best)
    curve = torch.stack([left(step * best.abs()) for step in STEPS], dim=1)
    grid = torch.tensor(STEPS, dtype=best.dtype, device=best.device)
    predicted = norms(edit.residual[:, None] - (grid * best.abs()[:, None])[..., None] * edit.linear[:, None])
    least = _least(left, curve, best.abs())
    reach = FARTHEST * norms(before.double()) / norms(edit.shift)
    radius = _last_below(error, TRUST, reach) * norms(edit.shift)
    harm = _first_crossing(left, curve, best.abs())
    if before.dtype in UNTRUSTED:
        radius = torch.full_like(radius, torch.nan)
        harm = torch.where(harm < STEPS[1] * best.abs(), torch.nan, harm)
    return {
        "step_predicted": predicted / size[:, None],
        "step_replayed": curve,
        "best_step": best,
        "best_step_replayed": least,
        "best_residual": left(best.clamp(min=0)),
        "best_residual_replayed": left(least),
        "harm_bound": 2 * best.clamp(min=0),
        "harm_bound_replayed": harm,
        "trust_radius": radius,
        "trust_share": radius / norms(before.double()),
    }


Study = Callable[[ObservedEdit, Survey, bool], dict[str, Tensor]]
STUDIES: dict[str, Study] = {"theorem1": theorem_1, "step_size": step_size}
"""Each looks on while a layer is edited, and gives variables of the run's store, fact by fact."""


def work_of_study(study: str, counts: Counts, layers: Layers, how: Survey, facts: int) -> Work:
    """Count a study while all facts are edited under one scheme, at these layers."""
    if study == "theorem1":
        return counts.theorem_1(layers, facts, how.formed(facts), len(how.sample))
    return counts.step_size(layers, facts)


def _through(edit: ObservedEdit, states: Float[Tensor, "fact d_model"]) -> Float[Tensor, "fact d_model"]:
    """F_{l→L} at other states, just before the edit."""
    return edit.frozen.ask(lambda rows, values: replay(rows, edit.layer, values, [edit.last])[:, 0], states).double()


def _least(
    function: Callable[[Tensor], Tensor], curve: Float[Tensor, "fact step"], unit: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """Minimise a function of the step, up to the end of the curve, which brackets it."""
    best = curve.nan_to_num(torch.inf).argmin(dim=1)
    low, high = STEPS[1] * (best - 1).clamp(min=0), STEPS[1] * (best + 1).clamp(max=len(STEPS) - 1)
    ends = (best == 0) | (best == len(STEPS) - 1)
    middle = torch.where(ends, (low + high) / 2, STEPS[1] * best).to(unit)
    inside = ~ends | (function(middle * unit) < curve.gather(1, best[:, None])[:, 0])
    facts = torch.nonzero(inside & torch.isfinite(curve).all(1))[:, 0]
    place = (STEPS[1] * best).to(unit)
    if len(facts):
        points: Any = tuple(to_numpy(x[facts].to(unit)) for x in (low, middle, high))
        by_fact: Any = _by_fact(function, unit)
        which: Any = (to_numpy(facts.double()),)
        result = elementwise.find_minimum(by_fact, points, args=which)
        place[facts] = torch.from_numpy(result.x).to(unit)
    return place * unit


def _first_crossing(
    function: Callable[[Tensor], Tensor], curve: Float[Tensor, "fact step"], unit: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """The step from which on a function that begins at 1 is above 1; 0 if at once, NaN if not within the curve."""
    above = curve[:, 1:] > 1
    first = above.int().argmax(dim=1)
    low = torch.where(first == 0, AT_ONCE, STEPS[1] * first).to(unit)
    crossed = above.any(dim=1)
    at_once = crossed & (first == 0) & (function(low * unit) > 1)
    place = _root(lambda steps: function(steps) - 1, low, (STEPS[1] * (first + 1)).to(unit), unit, crossed & ~at_once)
    return torch.where(at_once, 0, place * unit)


def _last_below(
    function: Callable[[Tensor], Tensor], limit: float, reach: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """The step at which a function that begins at zero first passes a limit; `reach` if not before, NaN if at all."""
    shares = [2.0**-halvings for halvings in range(HALVINGS, -1, -1)]
    above = torch.stack([function(share * reach) for share in shares], dim=1) > limit
    trusted = (~above).cummax(dim=1).values  # the shortest steps are lost in rounding, which may be above the limit
    passed = above & trusted
    first = passed.int().argmax(dim=1)
    grid = torch.tensor(shares).to(reach)
    place = _root(
        lambda steps: function(steps) - limit,
        grid[(first - 1).clamp(min=0)],
        grid[first],
        reach,
        passed.any(dim=1),
    )
    return torch.where(trusted[:, -1], torch.where(passed.any(dim=1), place * reach, reach), torch.nan)


def _root(
    function: Callable[[Tensor], Tensor],
    low: Float[Tensor, " fact"],
    high: Float[Tensor, " fact"],
    unit: Float[Tensor, " fact"],
    bracketed: Bool[Tensor, " fact"],
) -> Float[Tensor, " fact"]:
    """Find a zero of a function of the step, in units of `unit`; NaN for facts without a bracket."""
    place, facts = torch.full_like(unit, torch.nan), torch.nonzero(bracketed)[:, 0]
    if len(facts):
        points = (to_numpy(low[facts]), to_numpy(high[facts]))
        by_fact: Any = _by_fact(function, unit)
        result = elementwise.find_root(by_fact, points, args=(to_numpy(facts.double()),))
        place[facts] = torch.from_numpy(result.x).to(unit)
    return place


def _by_fact(
    function: Callable[[Tensor], Tensor], unit: Float[Tensor, " fact"]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function of all facts' steps as SciPy asks for it: at one step for each of some facts, in units of `unit`."""

    def at(steps: np.ndarray, facts: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(facts.astype(int)).to(unit.device)
        every = unit.clone()
        every[index] *= torch.from_numpy(steps).to(unit)
        return to_numpy(function(every)[index].double())

    return at
