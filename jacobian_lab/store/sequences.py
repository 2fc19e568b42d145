"""Arrays of edits one after another: an edit table's at every look, and descents on models that are edited already."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jacobian_lab.store.variables import Variable

Arrays = Mapping[str, Variable]

CURRENT = "current_"
"""Prefix of descents on the model as earlier batches left it."""
COURSE = ("edit", "targets", "look")
"""Dimensions of a look: a method, the model that its targets are made on, and the facts edited so far."""
MEASURED, PERPLEXITY, NORM, FAILED = 1, 2, 3, 4
"""Marks of looks: one that was made, and those that were not, since the edits ended before."""

ENDS = {
    PERPLEXITY: "the perplexity of the held-out text",
    NORM: "the norm of a layer's change",
    FAILED: "a batch that cannot be edited",
}
"""Reasons for which edits end early, in words."""

LOOKED = {
    "state_norm": Variable(
        (*COURSE, "block"), "mean norm of the held-out text's states behind the block", "activation"
    ),
    "measured": Variable(
        COURSE,
        "whether the look was made: 1 yes; not, since edits ended by 2 perplexity, 3 the change, 4 a batch that failed",
        "1",
        "i4",
    ),
}
"""Arrays of a look beside those of an edit table."""


OBSERVED = (
    *("residual_ratio", "realised", "shift_norm", "passive_shift_norm", "linear_norm", "curvature_norm"),
    *("leakage_norm", "linear_residual_cosine", "linear_cosine", "eigen_residual"),
)
"""What is kept of a batch's edit that is observed, fact by fact and layer by layer."""
EXAMINED = ("lambda_min", "lambda_max", "sigma_max", "sigma_min", "positive_share", "rotation")
"""What is kept of a fact's Jacobians just before its batch is edited."""


def sequence_arrays(
    part: Callable[[str, Arrays], Arrays],
    descents: Sequence[Arrays],
    refit: Arrays,
    edit_table: Arrays,
    observed: Arrays,
) -> dict[str, Variable]:
    """Arrays of edits one after another.

    Args:
        part: Makes a part of the arrays that a mark says are there.
        descents: Arrays of each descent on the unedited model, the first called as the descent.
        refit: Those of anchors that a method refits.
        edit_table: Those of an edited model.
        observed: Those of edits that are observed, and of Jacobians.
    """
    own = {f"{next(iter(arrays))}_passes": first_losses(arrays) for arrays in descents}
    current = {f"{CURRENT}{mark}": _along(arrays, ("edit",), CURRENT) for mark, arrays in own.items()}
    refitted = {"refit_anchor_passes": _along(first_losses(refit), ("edit", "targets"))}
    looked = {name: replace(variable, dims=_at_looks(variable.dims)) for name, variable in edit_table.items()}
    batches = {n: replace(observed[n], dims=("fact", "edit", "targets", "layer")) for n in (*OBSERVED, *EXAMINED)}
    marked = {"observed": Variable(("fact", "edit", "targets"), "whether its batch's edit was observed", "1", "i4")}
    parts = own | current | refitted | {"observed": batches | marked, "measured": looked | LOOKED}
    return {name: variable for mark, arrays in parts.items() for name, variable in part(mark, arrays).items()}


def first_losses(descent: Arrays) -> dict[str, Variable]:
    """Add the loss of the first pass to the arrays of a descent."""
    losses = {name.removesuffix("_loss"): variable for name, variable in descent.items() if name.endswith("_loss")}
    firsts = {f"{n}_first_loss": replace(v, long_name="its loss at the first pass") for n, v in losses.items()}
    return dict(descent) | firsts


def _along(descent: Arrays, dims: tuple[str, ...], prefix: str = "") -> dict[str, Variable]:
    """Arrays of a descent that is made for each of some dimensions."""
    return {f"{prefix}{name}": replace(v, dims=(*v.dims[:1], *dims, *v.dims[1:])) for name, v in descent.items()}


def _at_looks(dims: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(inner for dim in dims for inner in (COURSE if dim == "edit" else (dim,)))
