"""The residual that is left against the number of decisive layers, the last one fixed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jacobian_lab.caching import content_key
from jacobian_lab.editing.schemes import SCHEMES, make_targets
from jacobian_lab.editing.second_moments import SecondMoment
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import ExperimentConfig
from jacobian_lab.jobs.setup import Experiment, prepare
from jacobian_lab.jobs.shared import measured_edit, read_anchors, store_anchors, usable_moments
from jacobian_lab.maps.agreement import check_replay
from jacobian_lab.model.language_model import Layers
from jacobian_lab.progress import bar
from jacobian_lab.store.run import Run, check_folder, marked

MOST = 8


@dataclass(frozen=True)
class LayerCountConfig(ExperimentConfig):
    """Measure the residual that is left as decisive layers are added below the last one.

    Only the last of the layers matters: n layers are it and the n - 1 below. Whatever is not given suits
    the model at hand.

    Attributes:
        most: Decisive layers at the most, counted from 1; 8, or as many as there are, by default.
    """

    schemes: tuple[str, ...] = ("backward-dividing", "backward-full", "forward-replay", "jacobian-pullback")
    most: int | None = None


def run_layer_count(config: LayerCountConfig, *, progress: bool = True) -> Path:
    """Edit with 1, 2, … decisive layers; an interrupted run goes on, a finished one computes nothing.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    if config.most is not None and config.most < 1:
        raise InputError(f"expected at least one layer, got --most {config.most}: give another")
    experiment = prepare(config)
    last = experiment.layers[-1]
    most = min(MOST, last + 1) if config.most is None else config.most
    if most > last + 1:
        raise InputError(f"expected at most {last + 1} layers up to layer {last}, got --most {most}: lower it")
    layers = tuple(range(last - most + 1, last + 1))
    check_replay(experiment.model, experiment.facts, layers)
    experiment = replace(experiment, layers=layers)
    settings, schemes = experiment.settings(), list(config.schemes)
    folder = config.out or Path("runs") / content_key(["layer_count", settings])[:12]
    coordinates: dict[str, Sequence[Any]] = {
        "fact": experiment.labels(),
        "scheme": list(SCHEMES),
        "count": range(1, most + 1),
        "anchor_layer": list(layers),
        "d_model": range(experiment.model.d_model),
    }
    check_folder(folder, "layer_count", settings)
    if marked(folder, "anchor_passes") and marked(folder, "counted", scheme=schemes):
        return folder
    moments = usable_moments(experiment, layers, progress)
    with Run(folder, "layer_count", settings, experiment.provenance(), coordinates) as run:
        store_anchors(run, experiment, layers, progress)
        anchors = read_anchors(folder, experiment.model)
        todo = [
            (name, layers[-count:])
            for count in range(1, most + 1)
            for name in schemes
            if not run.done("counted", scheme=name, count=count).all()
        ]
        with bar(len(todo), "edits", "edit", show=progress) as shown:
            for name, chosen in todo:
                at = {"scheme": name, "count": len(chosen)}
                for variable, values in _left(experiment, name, chosen, anchors, moments).items():
                    run.write(variable, values, **at)
                run.seal("counted", **at)
                shown.update()
    return folder


def _left(
    experiment: Experiment, name: str, layers: Layers, anchors: dict[int, torch.Tensor], moments: SecondMoment
) -> dict[str, np.ndarray]:
    """What is left when these layers are edited, one value a fact."""
    ends = {layer: anchors[layer] for layer in {layers[0], layers[-1]}}
    targets = make_targets(experiment.model, experiment.facts, layers, ends)
    _, values = measured_edit(experiment, experiment.scheme(name), targets, moments)
    return {
        "final_ratio": values["residual_ratio"][:, -1],
        "final_norm": values["residual_norm"][:, -1],
        "final_ratio_against_optimised": values["residual_ratio_against_optimised"][:, -1],
        "count_efficacy": values["efficacy"],
    }
