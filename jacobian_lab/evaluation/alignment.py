"""Alignment of an edit's shift at the last block with the shift that the optimized anchor produces there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import freeze_groups, replay
from jacobian_lab.model.rows import FactRows


@dataclass(frozen=True, eq=False)
class TargetAlignment:
    """Shifts that anchors produce at the last block: a reference for any method, wherever it edits.

    Attributes:
        rows: The facts.
        before: Hidden states of the decisive tokens at the last block of the unedited model.
        residual: Shift from there that the anchor at the last decisive layer produces.
    """

    rows: FactRows
    before: Float[Tensor, "fact d_model"]
    residual: Float[Tensor, "fact d_model"]

    @classmethod
    def of(cls, rows: FactRows, layer: int, anchors: Float[Tensor, "fact d_model"]) -> "TargetAlignment":
        """Replay anchors to the last block.

        Args:
            rows: The facts, of the unedited model.
            layer: The layer that the anchors were optimised at.
            anchors: The anchors.

        Returns:
            The reference shifts.
        """
        last = rows.model.n_layers - 1
        frozen, before = freeze_groups(rows.model, rows.bare, [layer], last), _states(rows)
        with torch.no_grad():
            after = frozen.ask(lambda part, states: replay(part, layer, states, (last,)), anchors)[:, 0]
        return cls(rows, before, after.double() - before)

    def reached(self) -> dict[str, list[float]]:
        """Compare the shift of the model as it is now with the reference.

        Returns:
            For each fact, ``aim_cosine`` is the cosine of the two shifts, NaN where nothing moved. ``aim_share`` is the
            fraction of the reference that the shift covers along it.
        """
        shift = _states(self.rows) - self.before
        along, length = (shift * self.residual).sum(1), torch.linalg.vector_norm(self.residual, dim=1)
        cosine = along / (length * torch.linalg.vector_norm(shift, dim=1))
        return {"aim_cosine": cosine.tolist(), "aim_share": (along / length**2).tolist()}


def _states(rows: FactRows) -> Float[Tensor, "fact d_model"]:
    """Last-block states from a full forward pass, because WISE routes on the whole prompt."""
    return decisive_states(rows.model, rows.answered, [rows.model.n_layers - 1], cut=False)[:, 0].double()
