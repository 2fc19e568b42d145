"""Every kind of job by its configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import (
    DampingConfig,
    EditConfig,
    EditTableConfig,
    FrontierConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
)
from jacobian_lab.jobs.jacobians import jacobian_job
from jacobian_lab.jobs.job import Job
from jacobian_lab.jobs.locating import LocateConfig, locate_job
from jacobian_lab.jobs.methods import edit_job, edit_table_job
from jacobian_lab.jobs.schemes import schemes_job
from jacobian_lab.jobs.sequence_config import SequenceConfig
from jacobian_lab.jobs.sequencing import sequence_job
from jacobian_lab.jobs.sweeps import damping_job, frontier_job, layer_count_job
from jacobian_lab.jobs.transferring import TransferConfig, transfer_job
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.jobs.tuning import tune_job

JobConfig = (
    SchemesConfig
    | EditTableConfig
    | EditConfig
    | JacobianConfig
    | LayerCountConfig
    | DampingConfig
    | FrontierConfig
    | LocateConfig
    | SequenceConfig
    | TransferConfig
    | TuneConfig
)
"""Configuration of a job of any kind."""

JOBS: Mapping[type, Callable[..., Job]] = {
    SchemesConfig: schemes_job,
    EditTableConfig: edit_table_job,
    EditConfig: edit_job,
    JacobianConfig: jacobian_job,
    LayerCountConfig: layer_count_job,
    DampingConfig: damping_job,
    FrontierConfig: frontier_job,
    LocateConfig: locate_job,
    SequenceConfig: sequence_job,
    TransferConfig: transfer_job,
    TuneConfig: tune_job,
}


def run_job(config: Any, *, progress: bool = True) -> Path:
    """Carry out the job of a configuration; an interrupted run goes on, a finished one computes nothing."""
    if type(config) not in JOBS:
        names = ", ".join(config_type.__name__ for config_type in JOBS)
        raise InputError(f"expected a configuration among {names}, got {type(config).__name__}: make one of these")
    return JOBS[type(config)](config, progress=progress).carry_out()
