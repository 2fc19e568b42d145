"""At which μ does jacobian-pullback help? The same anchors and keys, one edit for each μ."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from jacobian_lab.edits import apply_edit, measure, restored
from jacobian_lab.errors import InputError
from jacobian_lab.experiment import Experiment, ExperimentConfig, prepare
from jacobian_lab.metrics import efficacy
from jacobian_lab.progress import bar
from jacobian_lab.reporting import summarise
from jacobian_lab.tables import read_anchors, run_experiment, usable_moments, where_finite
from jacobian_lab.targets import Scheme, make_targets

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


def run_damping(config: DampingConfig, *, progress: bool = True) -> Path:
    """Write ``damping.csv`` beside a run: a row for each scheme, or μ, and layer.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    if not config.dampings or not all(math.isfinite(value) and value > 0 for value in config.dampings):
        raise InputError(f"expected values of μ above zero, got --dampings {config.dampings}: give others")
    experiment = prepare(config)
    folder = run_experiment(experiment, progress=progress)
    pullback = experiment.scheme("jacobian-pullback")
    schemes = {name: experiment.scheme(name) for name in YARDSTICKS}
    schemes |= {f"jacobian-pullback, μ = {value:g}": replace(pullback, damping=value) for value in config.dampings}
    rows = pd.DataFrame(_rows(experiment, folder, schemes, progress))
    rows.to_csv(folder / "damping.csv", index=False)
    return folder


def _rows(
    experiment: Experiment, folder: Path, schemes: dict[str, Scheme], progress: bool
) -> Iterator[dict[str, float | str]]:
    """Edit under each scheme and sum up, layer by layer."""
    model, facts, layers = experiment.model, experiment.facts, experiment.layers
    moments = usable_moments(experiment, layers, progress).matrices
    targets = make_targets(model, facts, layers, read_anchors(folder, model))
    with bar(len(schemes), "μ", "edit", show=progress) as shown:
        for label, scheme in schemes.items():
            with restored(model, layers):
                record = apply_edit(model, facts, scheme, targets, experiment.templates, moments, experiment.ridge)
                answered = where_finite(efficacy(model, facts), targets)
            measured = measure(record, targets, scheme)
            for place, layer in enumerate(record.layers):
                yield {
                    "row": label,
                    "layer": layer,
                    **summarise(measured["residual_ratio"][:, place].cpu().numpy(), experiment.config.seed),
                    "efficacy": summarise(answered, experiment.config.seed)["mean"],
                    "update_norm": float(record.update_norm[place]),
                    "linear_residual_cosine": summarise(measured["linear_residual_cosine"][:, place].cpu().numpy())[
                        "mean"
                    ],
                    "realised": summarise(measured["realised"][:, place].cpu().numpy())["mean"],
                }
            shown.update()
