"""Edits one after another: as one batch, killed and resumed, ended where they break, their tables."""

import numpy as np
import pytest

from jacobian_lab.editing.rules import RuleSettings
from jacobian_lab.jobs.config import EditTableConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.sequence_config import SequenceConfig
from jacobian_lab.store.run import open_run
from jacobian_lab.store.schema import KINDS

RULES = RuleSettings(alphaedit_threshold=1.0, alphaedit_relative=True)
QUICK = {"rules": RULES, "held_out_tokens": 64, "corpus_length": 64}
METHODS = ("memit", "memit+cr", "alphaedit+fe", "blue-refit", "nas")


@pytest.fixture(scope="module")
def quick(arguments):
    return {**arguments, **QUICK}


@pytest.mark.parametrize("targets", ["current", "unedited"])
def test_one_batch_is_an_edit_table_to_the_last_bit(targets, quick, once, tmp_path):
    def make(folder):
        run_job(EditTableConfig(**quick, methods=METHODS, greedy=False, out=folder), progress=False)

    table = open_run(once("edits-of-one-batch", make))
    config = SequenceConfig(**quick, methods=METHODS, edits_per_batch=None, targets=targets, out=tmp_path / "run")
    sequence = open_run(run_job(config, progress=False))
    at = sequence.sel(targets=targets, look=6).sel(edit=list(METHODS))
    unedited = sequence.sel(targets="unedited", look=0, edit="unedited")
    for name, variable in KINDS["edit_table"].items():
        if "edit" in variable.dims and name in sequence and name != "measured":
            np.testing.assert_array_equal(at[name], table[name].sel(edit=list(METHODS)), err_msg=name)
            np.testing.assert_array_equal(unedited[name], table[name].sel(edit="unedited"), err_msg=name)
    np.testing.assert_array_equal(sequence["anchor"], table["anchor"])
    assert np.isfinite(at["efficacy_accuracy"]).all()
    assert np.isfinite(at["state_norm"]).all()
