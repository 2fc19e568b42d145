"""At which μ does jacobian-pullback help? The same anchors and keys, one edit for each μ."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jacobian_lab.editing.schemes import SCHEMES
from jacobian_lab.jobs.bench import Bench, measured_edit
from jacobian_lab.jobs.config import DampingConfig
from jacobian_lab.jobs.job import Job, Labels, Part, cell_by_cell
from jacobian_lab.jobs.setup import prepare
from jacobian_lab.store.run import Run

YARDSTICKS = ("backward-dividing", "backward-full")
PULLBACK = "jacobian-pullback, μ = {:g}"


def run_damping(config: DampingConfig, *, progress: bool = True) -> Path:
    """Edit with each μ, beside backward spreading.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    experiment = prepare(config)
    bench = Bench(experiment, progress)
    edits = {name: (SCHEMES[name], config.pullback_damping) for name in YARDSTICKS}
    edits |= {PULLBACK.format(value): (SCHEMES["jacobian-pullback"], value) for value in config.dampings}

    def damped(run: Run) -> None:
        targets = bench.targets(run)

        def left(row: str) -> Iterator[tuple[str, Any, Labels]]:
            scheme, damping = edits[row]
            layers, values = measured_edit(replace(bench.setting, damping=damping), scheme, targets)
            for name in ("residual_ratio", "linear_residual_cosine", "realised", "update_norm"):
                yield name, values[name], {"layer": list(layers)}
            yield "efficacy", values["efficacy"], {}

        cell_by_cell(run, "measured", [{"row": row} for row in edits], left, "μ", "edit", progress)

    return Job(
        "damping",
        config.out,
        experiment.settings() | {"dampings": list(config.dampings)},
        experiment.provenance(),
        {
            "fact": experiment.labels(),
            "row": list(edits),
            "layer": list(experiment.layers),
            "anchor_layer": list(experiment.anchor_layers),
            "d_model": range(experiment.model.d_model),
        },
        [Part([("anchor_passes", {}), ("measured", {})], damped)],
        before=lambda: bench.moments,
    ).carry_out()
