"""Figures of methods that train."""

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.report.tables.training import routed, with_router

LOOKS = {
    "prompts": {"color": "#c1272d", "linestyle": "-"},
    "paraphrases": {"color": "0.35", "linestyle": "--"},
    "neighbourhood": {"color": "0.65", "linestyle": ":"},
}
BINS = 30


def routing(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Distance of a memory from the model's own matrix on each kind of prompt, and the threshold."""
    methods = with_router(dataset)
    for ax, name in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        kinds = routed(dataset, name)
        every = np.concatenate([prompts.distances[np.isfinite(prompts.distances)] for prompts in kinds.values()])
        bins = np.linspace(0, max(every.max(initial=0), 1) * 1.02, BINS + 1)
        for kind, prompts in kinds.items():
            weights = np.full(prompts.distances.size, 100 / max(1, prompts.distances.size))
            label = f"{kind}: {100 * prompts.served:.0f} % served"
            ax.hist(prompts.distances, bins, weights=weights, histtype="step", label=label, linewidth=1, **LOOKS[kind])
        ax.axvline(1, color="0.1", linewidth=0.7)
        ax.set(xlabel="distance from the model's own matrix, over the threshold", ylabel="prompts, %", title=name)
        ax.legend(fontsize="x-small")
