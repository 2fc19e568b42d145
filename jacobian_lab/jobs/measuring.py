"""An edit made, measured and undone."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from jacobian_lab.catalogue import Scheme
from jacobian_lab.editing.layers import Setting, restored
from jacobian_lab.editing.measures import ObservedEdit, measure, observed_edits
from jacobian_lab.editing.schemes import Targets
from jacobian_lab.evaluation.metrics import accuracy
from jacobian_lab.model.language_model import Layers


def measured_edit(
    setting: Setting,
    scheme: Scheme,
    targets: Targets,
    look_on: Callable[[ObservedEdit], Any] = lambda _: None,
    examine: Callable[[], Mapping[str, torch.Tensor]] = dict,
) -> tuple[Layers, dict[str, np.ndarray]]:
    """Edit, measure, and put the weights back."""
    edits = []
    with restored(setting.model, targets.layers):
        for edit in observed_edits(setting, scheme, targets):
            look_on(edit)
            edits.append(edit)
        answers = {"efficacy": accuracy(setting.model, setting.rows.answered), **examine()}
    values = {name: value.cpu().numpy() for name, value in measure(edits, targets, scheme).items()}
    finite = targets.finite(scheme.kind)
    return scheme.edited(targets.layers), values | {n: where_finite(answer, finite) for n, answer in answers.items()}


def where_finite(values: torch.Tensor, finite: torch.Tensor) -> np.ndarray:
    """Put NaN, ``[fact, ...]``, for facts that took no part in the edit (`Targets.finite`)."""
    mask = finite.to(values.device).view(-1, *[1] * (values.dim() - 1))
    return torch.where(mask, values.double(), math.nan).cpu().numpy()
