"""Signs that a fact's edit may fail, with their thresholds and the runs that support them, and sentences about facts.

A sign says "likely to fail" only where a run has shown that it predicts a failure (`benchmarks/predictors.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jacobian_lab.editing.diagnosis import NEAREST
from jacobian_lab.jobs.diagnosing import Record

UNMEASURED = "not yet measured"


@dataclass(frozen=True)
class Sign:
    """A number of a diagnosis that speaks against a fact's edit beyond a threshold.

    Attributes:
        name: The number, as `jacobian_lab.jobs.diagnosing` has it.
        side: Side of the threshold on which it speaks against the edit.
        threshold: The threshold; none where nothing is said yet.
        text: Sentence with ``{value}``, ``{layer}`` and other numbers of the fact in it.
        source: Run or table that says what the number predicts.
        supported: Whether that source shows that it predicts a failure.
    """

    name: str
    side: Literal["above", "below"] = "above"
    threshold: float | None = None
    text: str = ""
    source: str = UNMEASURED
    supported: bool = False

    def holds(self, value: float) -> bool:
        """Tell if a number lies on that side of the threshold."""
        if self.threshold is None:
            return False
        return value > self.threshold if self.side == "above" else value < self.threshold


SIGNS = (
    Sign("reached", "below", 1, "its descent's loss is still {loss:.2g} after {passes} passes"),
    Sign(
        "key_cosine",
        "above",
        0.9,
        "its key at layer {layer} is nearly that of {others} (cosine {value:.2f} with {ids})",
    ),
    Sign(
        *("key_cosine_whitened", "above", 0.9),
        "its key at layer {layer} has cosine {value:.2f} with another fact's in the metric of C⁻¹",
    ),
    Sign(
        *("alone", "below", 0.5),
        "a solve for it alone realises {value:.2f} of its residual at layer {layer} (kᵀC⁻¹k = {ease:.2g})",
    ),
    Sign("together", "below", 0.5, "the joint solve realises {value:.2f} of its own residual at layer {layer}"),
    Sign("out_of_reach", "above", 0.5, "{value:.2f} of its residual is out of reach at layer {layer}"),
    Sign(
        *("residual_cosine", "below", 0.0),
        "J turns its shift at layer {layer} away from the residual at the last one (cosine {value:.2f})",
    ),
    *map(Sign, ("ease", "realised", "crosstalk", "rayleigh", "lambda_min", "range_position")),
    *map(Sign, ("rank", "probability", "decisive", "prompt_tokens")),
)
"""Signs and their thresholds. Those without a threshold are in no sentence until a run says that they predict."""

LIKELY = "likely to fail: "


def sentences(record: Record, signs: Sequence[Sign] = SIGNS) -> Iterator[str]:
    """Say what speaks against a fact's edit, sign by sign, each at the layer where it is worst."""
    if record["loss"] is None:
        yield "the loss of its descent is not finite: it takes no part in the solve"
    for sign in signs:
        if (worst := _worst(record, sign)) is not None and sign.holds(worst["value"]):
            yield f"{LIKELY if sign.supported else ''}{sign.text.format(**worst)}"


def _worst(record: Record, sign: Sign) -> dict[str, Any] | None:
    """Numbers of the fact where a sign is worst; none where it is not known, or the loss is not finite."""
    places = [record, *({**record, **layer} for layer in record["layers"])]
    held = [{**place, "value": float(place[sign.name])} for place in places if place.get(sign.name) is not None]
    if not held or record["loss"] is None:
        return None
    worst = (max if sign.side == "above" else min)(held, key=lambda place: place["value"])
    near = [other["id"] for other in worst.get("nearest", ()) if sign.holds(other["cosine"])]
    more = " or more" if len(near) == NEAREST else ""
    return worst | {"others": f"{len(near)}{more} other fact{'s' * (len(near) > 1)}", "ids": ", ".join(map(str, near))}
