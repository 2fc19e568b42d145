"""Figures of methods that train."""

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.report.tables.training import routed, with_router

COLORS = {"prompts": "#c1272d", "paraphrases": "0.35", "neighbourhood": "0.65"}
JITTER = 0.3
"""Height over which the prompts of a kind are spread, so that equal distances stand side by side."""


def routing(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Distance of a memory from the model's own matrix for every prompt, a row a kind of prompt, and the threshold."""
    methods = with_router(dataset)
    for ax, name in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        kinds = {kind: prompts for kind, prompts in routed(dataset, name).items() if prompts.distances.size}
        for row, (kind, prompts) in enumerate(kinds.items()):
            heights = row + np.linspace(-JITTER, JITTER, prompts.distances.size)
            ax.plot(prompts.distances.ravel(), heights, "o", color=COLORS[kind], markersize=2, alpha=0.7)
        ax.axvline(1, color="0.1", linewidth=0.7)
        labels = [f"{kind}\n{100 * prompts.served:.0f} % served" for kind, prompts in kinds.items()]
        ax.set(xlabel="distance from the model's own matrix, over the threshold", title=name)
        ax.set_yticks(range(len(kinds)), labels, fontsize="x-small")
        ax.set(ylim=(len(kinds) - 0.5, -0.5), xlim=(0, None))
        ax.grid(visible=False, axis="y")
