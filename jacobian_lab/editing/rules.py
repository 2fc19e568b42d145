"""Update rules by name, and what they leave open (methods.md §5)."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.editing.later_rules import betaedit, lyaplock, nse, rome, sphere
from jacobian_lab.editing.paper_rules import RECT_KEPT, alphaedit, emmet, memit, prune, rect
from jacobian_lab.editing.problems import Problem, Rule, Update
from jacobian_lab.editing.settings import LATER, usual
from jacobian_lab.editing.solving import Eigh, largest_singular_value, shrink

__all__ = ["RECT_KEPT", "RULES", "Problem", "RuleSettings", "Update"]

RULES: dict[str, Callable[..., Update]] = {
    "memit": memit,
    "prune": prune,
    "rect": rect,
    "alphaedit": alphaedit,
    "emmet": emmet,
    "rome": rome,
    "nse": nse,
    "encore": memit,
    "sphere": sphere,
    "nas": alphaedit,
    "betaedit": betaedit,
    "lyaplock": lyaplock,
    "rlsedit": memit,
}
"""Each takes a `Problem`, and its own options by name; any goes with any scheme of `jacobian_lab.editing.schemes`. NAS
is AlphaEdit with targets of another length (`jacobian_lab.editing.norm_anchors`). ENCORE (arXiv 2502.01636) bounds
‖ΔW‖ too: ``ΔW = R Kᵀ (λC + λₙI + S + K Kᵀ)⁻¹``, which is MEMIT's with λₙ. So is RLSEdit's recursive least squares
(arXiv 2601.15686), ``(V − W K) Kᵀ`` times the same inverse: after the batches before V − W K is R."""


@dataclass(frozen=True)
class RuleSettings:
    """Options of the rules; the defaults are the paper's, those of later rules their authors'.

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
        nse_share: Share of the activity that NSE's neurons hold.
        encore_norm_ridge: λₙ, weight of ‖ΔW‖² in ENCORE's solve.
        rlsedit_norm_ridge: λₙ of RLSEdit's solve, the square of its authors' λ.
        sphere_share: Share of the trace that SPHERE's directions hold.
        sphere_strength: Share of the change along them that SPHERE takes away.
        betaedit_renewal: Edits after which BetaEdit takes its null space anew.
        lyaplock_tolerance: Disturbance from which LyapLock's queue grows, over that of the first batch.

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
    nse_share: Annotated[float, Gt(0), Le(1)] = field(default=0.8, metadata=LATER)
    encore_norm_ridge: float = field(default=10.0, metadata=LATER)
    rlsedit_norm_ridge: float = field(default=0.0, metadata=LATER)
    sphere_share: Annotated[float, Gt(0), Le(1)] = field(default=0.5, metadata=LATER)
    sphere_strength: Annotated[float, Le(1)] = field(default=0.5, metadata=LATER)
    betaedit_renewal: Annotated[int, Gt(0)] = field(default=1000, metadata=LATER)
    lyaplock_tolerance: Annotated[float, Gt(0)] = field(default=60.0, metadata=LATER)

    def stored(self) -> dict[str, Any]:
        """Give the settings as a run keeps them.

        Returns:
            All of the paper's rules, and of later rules those that are not the defaults: so a run that was made before
            there were these has the same settings.
        """
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in usual(self)}

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
        projection = {
            "threshold": self.alphaedit_threshold,
            "relative": self.alphaedit_relative,
            "l2": self.alphaedit_l2,
            "eigh": eigh,
        }
        options: dict[str, dict[str, Any]] = {
            "prune": {"kind": self.prune_kind, "base": self.prune_base},
            "rect": {"by": self.rect_by, "share": self.rect_kept},
            "alphaedit": projection,
            "emmet": {"epsilon": self.emmet_epsilon},
            "nse": {"share": self.nse_share},
            "encore": {"norm_ridge": self.encore_norm_ridge},
            "sphere": {"share": self.sphere_share, "strength": self.sphere_strength, **projection},
            "nas": projection,
            "betaedit": {"renewal": self.betaedit_renewal, **projection},
            "lyaplock": {"tolerance": self.lyaplock_tolerance},
            "rlsedit": {"norm_ridge": self.rlsedit_norm_ridge},
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
