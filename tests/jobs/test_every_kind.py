"""One small run of each kind from its configuration to its tables, and nothing computed twice."""

import numpy as np
import pytest
from helpers.work import HOMES, forbid

from jacobian_lab.jobs.config import (
    DampingConfig,
    EditConfig,
    EditTableConfig,
    FrontierConfig,
    JacobianConfig,
    LayerCountConfig,
    SchemesConfig,
)
from jacobian_lab.jobs.kinds import JOBS, run_job
from jacobian_lab.jobs.locating import LocateConfig
from jacobian_lab.jobs.sequence_config import SequenceConfig
from jacobian_lab.jobs.transferring import TransferConfig
from jacobian_lab.jobs.tune_config import TuneConfig
from jacobian_lab.report.results import Results
from jacobian_lab.store.run import open_run

pytestmark = pytest.mark.smoke

METHODS = {"held_out_tokens": 64, "corpus_length": 64, "greedy": False}
KINDS = {
    "schemes": (SchemesConfig, {"schemes": ("backward-dividing", "forward-replay")}, "residual_ratio", "table2"),
    "jacobian": (JacobianConfig, {}, "singular_value", "jacobian"),
    "layer-count": (LayerCountConfig, {"schemes": ("one-layer",), "max_layers": 2}, "final_ratio", "layer_count"),
    "damping": (DampingConfig, {"dampings": (0.1,)}, "residual_ratio", "damping"),
    "edit-table": (EditTableConfig, {**METHODS, "methods": ("memit+fe",)}, "kl", "metrics"),
    "edit": (EditConfig, {**METHODS, "method": "memit"}, "kl", "metrics"),
    "locate": (LocateConfig, {"samples": 2}, "effect", "locate"),
    "tune": (
        TuneConfig,
        {**METHODS, "layers": None, "methods": ("memit",), "windows": ("1,3", "2-3"), "ridges": (3.0,), "passes": (4,)},
        "kl",
        "tune",
    ),
    "transfer": (TransferConfig, {"schemes": ("forward-replay",), "shares": (1.0, 0.5)}, "transferred", "transfer"),
    "sequence": (
        SequenceConfig,
        {**METHODS, "methods": ("memit+fe",), "edits_per_batch": 1},
        "kl",
        "sequence",
    ),
    "frontier": (FrontierConfig, {**METHODS, "schemes": ("one-layer",), "ridges": (3.0, 30.0)}, "kl", "frontier"),
}


def test_every_kind_is_here():
    assert {config for config, *_ in KINDS.values()} == set(JOBS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_to_its_tables_and_once(kind, arguments, tmp_path, monkeypatch):
    config, more, variable, table = KINDS[kind]
    options = {name: value for name, value in arguments.items() if name in config.__dataclass_fields__}
    config = config(**{**options, "slice": "0:2", "layers": "1,3", **more}, out=tmp_path / "run")
    folder = run_job(config, progress=False)
    assert np.isfinite(open_run(folder)[variable]).any()
    assert len(Results(folder).table(table))
    before = {path: path.stat().st_mtime_ns for path in (folder / "data.zarr").rglob("*")}
    forbid(monkeypatch, *HOMES)
    run_job(config, progress=False)
    assert {path: path.stat().st_mtime_ns for path in (folder / "data.zarr").rglob("*")} == before
