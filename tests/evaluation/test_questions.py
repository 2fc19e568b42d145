"""Portability and multi-hop questions are evaluated as further columns."""

import json

import pandas as pd
import pytest
from helpers.commands import options

from jacobian_lab import cli
from jacobian_lab.store.run import open_run

RECORDS = [
    {
        "subject": "Mira Vale",
        "prompt": "Mira Vale was born in",
        "target_new": "Rome",
        "ground_truth": ["Oslo"],
        "portability": {
            "Reasoning": [{"prompt": "The country that Mira Vale was born in is", "ground_truth": [["Italy"]]}],
            "Subject_Aliasing": [{"prompt": "M. Vale was born in", "ground_truth": [["Rome"], ["Roma"]]}],
        },
        "locality": {"Relation_Specificity": [{"prompt": "Ada Lovelace was born in", "ground_truth": [["London"]]}]},
    },
    {
        "subject": "Ada Lovelace",
        "prompt": "Ada Lovelace lived in",
        "target_new": "Paris",
        "ground_truth": ["London"],
        "portability": {},
        "locality": {},
    },
]


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory):
    root = tmp_path_factory.mktemp("further")
    (root / "facts.json").write_text(json.dumps(RECORDS))
    given = {**arguments, "facts": root / "facts.json", "out": root / "run", "held_out_tokens": 64}
    del given["slice"]
    cli.main(["edit-table", *options(given), "--methods", "memit", "memit+fe"])
    return root / "run"


@pytest.mark.slow
def test_every_group_is_a_column_of_every_table(run):
    metrics = pd.read_csv(run / "metrics.csv", index_col="method")
    groups = ["further: portability: Reasoning", "further: portability: Subject_Aliasing"]
    assert list(metrics.columns[-2:]) == groups
    assert list(metrics.index) == ["unedited", "memit", "memit+fe"]
    assert metrics[groups].notnull().all(axis=None)
    assert ((metrics[groups] >= 0) & (metrics[groups] <= 100)).all(axis=None)
    for name in ("edit_table.md", "table3.md", "gains.md"):
        assert all(group in (run / name).read_text("utf-8") for group in groups)
    records = pd.read_csv(run / "records.csv")
    assert records.groupby("fact")[groups[0]].count().to_dict() == {0: 3, 1: 0}


def test_the_store_says_which_groups_there_are(run):
    dataset = open_run(run, "edit_table")
    assert list(dataset["probe"].values) == ["portability: Reasoning", "portability: Subject_Aliasing"]
    assert dataset["probe_accuracy"].sel(fact=0).notnull().all()
    assert dataset["probe_accuracy"].sel(fact=1).isnull().all()
    assert float(dataset["kl"].sel(edit="unedited", fact=0).max()) == 0
