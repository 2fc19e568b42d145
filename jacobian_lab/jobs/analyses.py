"""What computes each analysis, by its name in `jacobian_lab.report`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jacobian_lab.jobs.config import DampingConfig, JacobianConfig, LayerCountConfig, SchemesConfig, SubjectConfig
from jacobian_lab.jobs.damping import run_damping
from jacobian_lab.jobs.jacobians import run_jacobian
from jacobian_lab.jobs.layer_count import run_layer_count
from jacobian_lab.jobs.schemes import run_schemes


@dataclass(frozen=True)
class Computation:
    """How a run comes to hold what an analysis shows.

    Attributes:
        config: What can be set.
        run: Computes what the run lacks, and returns its folder.
    """

    config: type[SubjectConfig]
    run: Callable[[Any], Path]


COMPUTATIONS: Mapping[str, Computation] = {
    "theorem1": Computation(SchemesConfig, partial(run_schemes, studies=("theorem1",))),
    "theorem2": Computation(SchemesConfig, partial(run_schemes, studies=("theorem1",))),
    "decomposition": Computation(SchemesConfig, partial(run_schemes, verdicts=False)),
    "step_size": Computation(SchemesConfig, partial(run_schemes, studies=("step_size",), verdicts=False)),
    "layer_count": Computation(LayerCountConfig, run_layer_count),
    "damping": Computation(DampingConfig, run_damping),
    "jacobian": Computation(JacobianConfig, run_jacobian),
}
