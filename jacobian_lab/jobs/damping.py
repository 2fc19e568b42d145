"""At which μ does jacobian-pullback help? The same anchors and keys, one edit for each μ."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import ExperimentConfig
from jacobian_lab.jobs.schemes import run_experiment
from jacobian_lab.jobs.setup import prepare
from jacobian_lab.jobs.shared import measured_edit, read_anchors, usable_moments
from jacobian_lab.progress import bar
from jacobian_lab.report.intervals import summarise

YARDSTICKS = ("backward-dividing", "backward-full")


@dataclass(frozen=True)
class DampingConfig(ExperimentConfig):
    """Edit with jacobian-pullback at several μ, beside backward spreading.

    Takes the anchors of the run that tables makes with the same settings, or makes it. Whatever is
    not given suits the model at hand.

    Attributes:
        dampings: The values of μ.
    """

    schemes: tuple[str, ...] = YARDSTICKS
    dampings: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def run_damping(config: DampingConfig, *, progress: bool = True) -> tuple[Path, pd.DataFrame]:
    """Edit with each μ, with the anchors of a run.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder, and a row for each scheme, or μ, and layer.

    Raises:
        InputError: If anything cannot be used.
    """
    if not config.dampings or not all(math.isfinite(value) and value > 0 for value in config.dampings):
        raise InputError(f"expected values of μ above zero, got --dampings {config.dampings}: give others")
    experiment = prepare(config)
    folder = run_experiment(experiment, config, verdicts=False, progress=progress)
    pullback = experiment.scheme("jacobian-pullback")
    schemes = {name: experiment.scheme(name) for name in YARDSTICKS}
    schemes |= {f"jacobian-pullback, μ = {value:g}": replace(pullback, damping=value) for value in config.dampings}
    model, layers, seed = experiment.model, experiment.layers, config.seed
    moments = usable_moments(experiment, layers, progress)
    targets = make_targets(model, experiment.facts, layers, read_anchors(folder, model))
    rows = []
    with bar(len(schemes), "μ", "edit", show=progress) as shown:
        for label, scheme in schemes.items():
            edited, values = measured_edit(experiment, scheme, targets, moments)
            rows += [
                {
                    "row": label,
                    "layer": layer,
                    **summarise(values["residual_ratio"][:, place], seed),
                    "efficacy": np.nanmean(values["efficacy"]),
                    "update_norm": values["update_norm"][place],
                    "linear_residual_cosine": np.nanmean(values["linear_residual_cosine"][:, place]),
                    "realised": np.nanmean(values["realised"][:, place]),
                }
                for place, layer in enumerate(edited)
            ]
            shown.update()
    return folder, pd.DataFrame(rows)
