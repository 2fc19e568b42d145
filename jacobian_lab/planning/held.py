"""Bytes that methods which train leave beside the model, and that asking a model takes."""

import torch

from jacobian_lab.evaluation.metrics import ROWS_IN_DOUBLE, ROWS_OF_LOGITS
from jacobian_lab.planning.sketch import Sizes
from jacobian_lab.training.settings import RLEditSettings, WiseSettings

DOUBLE = 8
SINGLE = 4

COMPARED = 6
"""Numbers in float64 that are held of a logit while the model before is held against the model after."""


def asking(rows: int, sizes: Sizes, dtype: torch.dtype) -> int:
    """Bytes of logits while a model is asked, of the model before and after."""
    single = 2 * max(SINGLE, dtype.itemsize) * min(rows, ROWS_OF_LOGITS)
    return sizes.words * (single + COMPARED * DOUBLE * min(rows, ROWS_IN_DOUBLE))


def served(settings: WiseSettings | RLEditSettings, sizes: Sizes, dtype: torch.dtype) -> int:
    """Bytes that a method that trains holds from the training until the model that it edited has been asked."""
    matrix, itemsize = sizes.width * sizes.d_mlp, dtype.itemsize
    if isinstance(settings, WiseSettings):  # its own matrix, the side's and its gradient, the mask; every shard
        return (settings.shards + 4) * matrix * itemsize
    matrices = len(settings.blocks) * (1 if settings.projections else sizes.inner)
    single = max(SINGLE, itemsize)
    changed = matrices * matrix * (2 * itemsize + DOUBLE + single)  # before, twice; the sum of changes; one batch's
    writing = 3 * matrix * DOUBLE
    return changed + writing + _network(settings, matrices, sizes.width + sizes.d_mlp) * single


def _network(settings: RLEditSettings, matrices: int, width: int) -> int:
    """Numbers of the hypernetwork, of its gradient and of Adam's two moments."""
    return 4 * settings.depth * width * (2 * settings.rank + 1 + 2 * matrices)
