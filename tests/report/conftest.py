"""Stored runs of every kind."""

import numpy as np
import pytest
from helpers.runs import COORDINATES, METHODS, make_run

from jacobian_lab.report.results import Results


@pytest.fixture(scope="session")
def run_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("stored")
    values = {
        "edit_table": {"neighbor_edited": np.zeros((6, 3)), "probe_accuracy": np.full((6, len(METHODS), 1), np.nan)}
    }
    values["frontier"] = {"probe_accuracy": np.full((6, 4, 2, 1), np.nan)}
    return {kind: make_run(root / kind, kind, **values.get(kind, {})) for kind in COORDINATES}


@pytest.fixture
def results(run_folders):
    return {kind: Results(folder) for kind, folder in run_folders.items()}
