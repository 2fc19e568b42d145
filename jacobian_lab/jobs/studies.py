"""What can be asked of a layer's edit beside the tables: theorem 1 along its shift, and other step sizes."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.measures import LayerEdit, norms
from jacobian_lab.maps.conditions import definiteness, eigenspaces, eigenvector_angle, plane_angle, rayleigh_quotient
from jacobian_lab.maps.jacobians import dense_jacobians, to_numpy
from jacobian_lab.maps.replay import replay
from jacobian_lab.progress import bar

STEPS = tuple(round(0.1 * number, 1) for number in range(31))
"""Steps of the curve, over |t*|."""

REFINEMENTS = 6
"""Each one looks twice as closely at the best step."""

BISECTIONS = 20

TRUST = 0.1
"""J is trusted as far as its error is at most this share of the shift that it predicts."""

UNTRUSTED = (torch.bfloat16, torch.float16)
"""Dtypes whose rounding of a replayed state is more than `TRUST` of the shortest steps: no radius can be told."""

FARTHEST = 64.0
"""The trust radius is sought up to this many times the norm of the hidden state."""


def theorem_1(edit: LayerEdit, progress: bool = False) -> dict[str, Float[Tensor, " fact"]]:
    """How near the layer's shift is to what theorem 1 asks for, and where it falls in the numerical range.

    J is taken at the state just before the edit, one fact at a time.

    Args:
        edit: The layer's edit.
        progress: Whether to show a progress bar.

    Returns:
        Angles in radians to J's nearest real eigenvector and invariant plane, and the place of the
        Rayleigh quotient between λ_min and λ_max of S.
    """
    found = {name: torch.full_like(edit.shift[:, 0], torch.nan) for name in _THEOREM_1}
    shifts = to_numpy(edit.shift)
    with bar(len(shifts), f"theorem 1 at layer {edit.layer}", "fact", show=progress) as shown:
        for fact, row in edit.frozen.one_by_one():
            J, delta = to_numpy(dense_jacobians(row, [edit.layer], edit.last)[0, 0]), shifts[fact]
            if np.isfinite(delta).all() and delta.any():
                spaces, (verdict, _) = eigenspaces(J), definiteness(J)
                found["eigenvector_angle"][fact] = float(eigenvector_angle(spaces, delta))
                found["plane_angle"][fact] = float(plane_angle(spaces, delta))
                found["range_position"][fact] = verdict.position(float(rayleigh_quotient(delta, J @ delta)))
            shown.update()
    return found


_THEOREM_1 = ("eigenvector_angle", "plane_angle", "range_position")


def step_size(edit: LayerEdit, progress: bool = False) -> dict[str, Float[Tensor, "fact ..."]]:
    """The residual that other steps t·δ along the layer's shift would leave (paper, Figure 3).

    J predicts ‖R − t·Jδ‖, least at t* = ⟨R, Jδ⟩/‖Jδ‖² and above ‖R‖ beyond 2cosθ‖R‖/‖Jδ‖ = 2t*;
    replay says ‖R − (F(h + tδ) − F(h))‖. All steps are forward along δ, up to 3·|t*|; where t* is
    negative, J says that every small one does harm.

    Args:
        edit: The layer's edit.
        progress: Not needed: replay is quick.

    Returns:
        The curves ``[fact, step]`` over `STEPS`, and one number a fact for the rest; no trust radius (NaN) for
        `UNTRUSTED` dtypes.
    """
    del progress
    before = edit.frozen.states(edit.layer)
    start = _through(edit, before)
    size = norms(edit.residual)

    def shifted(steps: Float[Tensor, " fact"]) -> Float[Tensor, "fact d_model"]:
        return _through(edit, before.double() + steps[:, None] * edit.shift) - start

    def left(steps: Float[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        return norms(edit.residual - shifted(steps)) / size

    def error(steps: Float[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        linear = steps[:, None] * edit.linear
        return norms(shifted(steps) - linear) / norms(linear)

    best = (edit.residual * edit.linear).sum(-1) / (edit.linear**2).sum(-1)
    curve = torch.stack([left(step * best.abs()) for step in STEPS], dim=1)
    grid = torch.tensor(STEPS, dtype=best.dtype, device=best.device)
    predicted = norms(edit.residual[:, None] - (grid * best.abs()[:, None])[..., None] * edit.linear[:, None])
    least = _refined_minimum(left, curve, best.abs())
    reach = FARTHEST * norms(before.double()) / norms(edit.shift)
    radius = _last_below(error, TRUST, reach) * norms(edit.shift)
    if before.dtype in UNTRUSTED:
        radius = torch.full_like(radius, torch.nan)
    return {
        "step_predicted": predicted / size[:, None],
        "step_replayed": curve,
        "best_step": best,
        "best_step_replayed": least,
        "best_residual": left(best.clamp(min=0)),
        "best_residual_replayed": left(least),
        "harm_bound": 2 * best.clamp(min=0),
        "harm_bound_replayed": _first_crossing(left, curve, best.abs()),
        "trust_radius": radius,
        "trust_share": radius / norms(before.double()),
    }


Study = Callable[[LayerEdit, bool], dict[str, Tensor]]
STUDIES: dict[str, Study] = {"theorem1": theorem_1, "step_size": step_size}
"""Each looks on while a layer is edited, and gives variables of the run's store, fact by fact."""


def _through(edit: LayerEdit, states: Float[Tensor, "fact d_model"]) -> Float[Tensor, "fact d_model"]:
    """F_{l→L} at other states, just before the edit."""
    return edit.frozen.ask(lambda rows, values: replay(rows, edit.layer, values, [edit.last])[0], states).double()


def _refined_minimum(
    function: Callable[[Tensor], Tensor], curve: Float[Tensor, "fact step"], unit: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """Where a function of the step is least: the best of the curve, looked at ever closer."""
    width = STEPS[1]
    place = curve.nan_to_num(torch.inf).argmin(dim=1) * width
    for _ in range(REFINEMENTS):
        near = (place[:, None] + width * torch.linspace(-1, 1, 5, dtype=unit.dtype, device=unit.device)).clamp(min=0)
        values = torch.stack([function(column * unit) for column in near.T], dim=1)
        place = near.gather(1, values.nan_to_num(torch.inf).argmin(dim=1, keepdim=True))[:, 0]
        width /= 2
    return place * unit


def _first_crossing(
    function: Callable[[Tensor], Tensor], curve: Float[Tensor, "fact step"], unit: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """The step from which on a function that begins at 1 is above 1; 0 if at once, NaN if not within the curve."""
    above = curve[:, 1:] > 1
    first = above.int().argmax(dim=1)
    low, high = first * STEPS[1], (first + 1) * STEPS[1]
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        over = function(middle * unit) > 1
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    found = torch.where((first == 0) & above[:, 0] & (low <= STEPS[1] / 2**8), torch.zeros_like(unit), high * unit)
    return torch.where(above.any(dim=1), found, torch.nan)


def _last_below(
    function: Callable[[Tensor], Tensor], limit: float, reach: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """The step at which a function that begins at zero first passes a limit; `reach` if it does not before."""
    steps = [reach / 2**halvings for halvings in range(16, -1, -1)]
    values = torch.stack([function(step) for step in steps], dim=1)
    passed = values > limit
    first = torch.where(passed.any(dim=1), passed.int().argmax(dim=1), len(steps))
    low, high = reach / 2 ** (17 - first), reach / 2 ** (16 - first).clamp(min=0)
    low = torch.where(first == 0, torch.zeros_like(low), low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        over = function(middle) > limit
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return low
