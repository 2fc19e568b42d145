"""Tables of tasks and texts by hand, and the page of texts."""

import math

import pytest

from jacobian_lab.report.answers import (
    generation_table,
    harness_numbers,
    marked,
    task_numbers,
    task_table,
    texts_page,
)

SCORES = {"unedited": {"sums": [1, 1, 1, 0]}, "memit": {"sums": [1, 0, 0, 1]}}


def test_changes_are_paired_by_item():
    numbers = task_numbers(SCORES, {"sums": 0.25}).set_index("edit")
    assert numbers["value"].tolist() == [0.75, 0.5]
    edited = numbers.loc["memit"]
    assert (edited["change"], edited["lost"], edited["gained"]) == (-0.25, 2, 1)
    assert edited["change_low"] < -0.25 < edited["change_high"]
    assert numbers.loc["unedited", ["change", "lost", "gained", "items", "chance"]].tolist() == [0, 0, 0, 4, 0.25]


def test_a_task_without_items_has_no_score():
    numbers = task_numbers({"unedited": {"facts": []}}, {"facts": 0.0})
    assert math.isnan(numbers["value"].item())
    assert task_table(numbers).iloc[0].tolist() == ["", ""]


def test_metrics_of_the_harness_stand_beside():
    score = {"task": "arc", "metric": "acc", "value": 0.5, "stderr": 0.05, "documents": 100}
    numbers = harness_numbers({"unedited": [score], "memit": [score | {"value": 0.4, "stderr": math.nan}]})
    assert numbers["low"][0] == pytest.approx(0.5 - 1.96 * 0.05)
    table = task_table(numbers)
    assert table.loc["unedited"].tolist() == ["50.0 [40.2, 59.8]", ""]
    assert table.loc["memit"].tolist() == ["40.0", "-10.0"]
    assert list(table.columns) == ["arc, acc (n = 100)", "arc, acc, change"]


def test_means_of_texts():
    import pandas as pd

    numbers = pd.DataFrame({
        "edit": ["unedited"] * 2 + ["memit"] * 2,
        "f1": [0.0, 1.0, 1.0, 1.0],
        "repetition": math.nan,
    })
    table = generation_table(numbers, ["f1", "repetition"])
    assert table.loc["memit"].tolist() == ["1.00 [1.00, 1.00]", ""]
    assert table.loc["unedited", "f1"].startswith("0.50 [")


def test_the_page_has_every_text_with_the_answer_marked():
    assert marked("In Rome, rome.", "Rome") == [
        ("In ", False),
        ("Rome", True),
        (", ", False),
        ("rome", True),
        (".", False),
    ]
    facts = [{"prompt": "The <b> is in", "new": "Rome", "true": "Paris"}]
    page = texts_page("runs & texts", facts, {"unedited": [" Paris & <i>."], "memit": [" Rome."]})
    assert '<th scope="col">memit</th>' in page
    assert "<td> Paris &amp; &lt;i&gt;.</td>" in page
    assert "<td> <mark>Rome</mark>.</td>" in page
    assert "The &lt;b&gt; is in<br><small>Paris → Rome</small>" in page
    assert "runs &amp; texts" in page
