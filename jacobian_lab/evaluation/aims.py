"""How far an edit carries the decisive token, at the model's last block, on the way that its anchor would go."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import freeze_groups, replay
from jacobian_lab.model.rows import FactRows


@dataclass(frozen=True, eq=False)
class Aim:
    """Where anchors lead, for any method to be held against, wherever it edits.

    Attributes:
        rows: The facts.
        before: Hidden states of the decisive tokens at the last block of the unedited model.
        residual: From there to what the anchor at the last decisive layer makes of them.
    """

    rows: FactRows
    before: Float[Tensor, "fact d_model"]
    residual: Float[Tensor, "fact d_model"]

    @classmethod
    def of(cls, rows: FactRows, layer: int, anchors: Float[Tensor, "fact d_model"]) -> "Aim":
        """Replay anchors to the last block.

        Args:
            rows: The facts, of the unedited model.
            layer: The layer that the anchors were optimised at.
            anchors: The anchors.

        Returns:
            The aim.
        """
        last = rows.model.n_layers - 1
        frozen, before = freeze_groups(rows.model, rows.bare, [layer], last), _states(rows)
        with torch.no_grad():
            led = frozen.ask(lambda some, states: replay(some, layer, states, (last,)), anchors)[:, 0]
        return cls(rows, before, led.double() - before)

    def reached(self) -> dict[str, list[float]]:
        """What the model as it is now has made of the decisive tokens.

        Returns:
            Of each fact ``aim_cosine``, of the shift at the last block with the residual, NaN where nothing was
            shifted, and ``aim_share``, how much of the residual the shift realises along it.
        """
        shift = _states(self.rows) - self.before
        along, length = (shift * self.residual).sum(1), torch.linalg.vector_norm(self.residual, dim=1)
        cosine = along / (length * torch.linalg.vector_norm(shift, dim=1))
        return {"aim_cosine": cosine.tolist(), "aim_share": (along / length**2).tolist()}


def _states(rows: FactRows) -> Float[Tensor, "fact d_model"]:
    """As the whole prompt is run, which a router judges."""
    return decisive_states(rows.model, rows.answered, [rows.model.n_layers - 1], cut=False)[:, 0].double()
