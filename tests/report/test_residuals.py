"""Tables 1, 2 and 5 of known numbers, and what is told beside them."""

import numpy as np
import pandas as pd
import pytest
from helpers.runs import make_run
from matplotlib.figure import Figure
from scipy import stats

from jacobian_lab.report.captions import facts_in_cells
from jacobian_lab.report.figures import axes, conditions
from jacobian_lab.report.headlines import headlines
from jacobian_lab.report.intervals import summaries_of
from jacobian_lab.report.results import Results, write_reports
from jacobian_lab.report.tables.convergence import answered_facts, failed_facts, unmet_anchors
from jacobian_lab.report.tables.residuals import table
from jacobian_lab.store.run import Run, open_run
from jacobian_lab.store.schema import KINDS

SETTINGS = {
    "model": "m",
    "dtype": "float32",
    "anchor": {"lr": 0.5, "steps": 25, "stop_loss": 0.05},
    "ridge": 2.0,
    "seed": 3,
    "layers": [4, 5, 6, 7, 8],
}
COORDINATES = {
    "fact": ["a", "b", "c", "d"],
    "scheme": ["backward-dividing", "one-layer", "forward-replay"],
    "layer": [4, 5, 6, 7, 8],
    "anchor_layer": [4, 8],
    "study": ["theorem1", "step_size"],
    "step": [0.0, 1.0],
    "d_model": range(3),
}
VARIABLES = KINDS["tables"]


def create(folder, settings=SETTINGS):
    return Run(folder, "tables", settings, {"model": "my_model"}, COORDINATES)


@pytest.fixture
def finished(tmp_path):
    """Known numbers: fact i under every scheme at layer l has the ratio i + l."""
    with create(tmp_path / "run") as run:
        run.write("anchor", np.ones((4, 2, 3)))
        run.commit("anchor_passes", 5)
        run.write("replayed_target", np.ones((4, 5, 3)))
        for scheme in ("backward-dividing", "forward-replay"):
            for name, variable in VARIABLES.items():
                if variable.dims == ("fact", "scheme", "layer"):
                    run.write(name, np.arange(4)[:, None] + np.arange(4, 9), scheme=scheme)
            run.write("update_norm", np.linspace(0.1, 0.5, 5), scheme=scheme)
            run.write("efficacy", [1, 0, 1, 1], scheme=scheme)
            run.commit("measured", scheme=scheme)
        run.write("efficacy_unedited", [0, 0, 0, 1])
        run.commit("replayed")
    return tmp_path / "run"


def test_table_values_are_means_medians_and_the_papers(finished):
    long = table(open_run(finished), "table2")
    assert set(long["scheme"]) == {"backward-dividing"}
    row = long[long["layer"] == 6].iloc[0]
    assert (row["mean"], row["median"], row["count"], row["paper"]) == (7.5, 7.5, 4, 0.83)
    expected = stats.bootstrap(
        (np.array([6.0, 7, 8, 9]),), np.mean, n_resamples=199, batch=1000, method="percentile", rng=3
    ).confidence_interval
    assert (row["low"], row["high"]) == (expected.low, expected.high)


def test_reports_are_written_in_three_formats(finished):
    text = write_reports(finished)
    assert "paper (Llama-3-8B)" in text
    assert "unedited" in text
    for name in ("table1", "table2", "table5", "efficacy"):
        for ending in ("md", "tex", "csv"):
            assert (finished / f"{name}.{ending}").stat().st_size > 50
    lines = (finished / "measurements.csv").read_text().splitlines()
    assert lines[0].startswith("fact,scheme,layer,residual_ratio,cosine,")
    assert len(lines) == 1 + 4 * 2 * 5
    assert lines[1].startswith("a,backward-dividing,4,4.0,4.0")
    tex = (finished / "table2.tex").read_text()
    assert r"95 \%" in tex
    assert tex.isascii()
    assert r"my\_model" in tex


def test_a_failed_fact_is_listed(finished):
    with create(finished) as run:
        run.write("anchor", np.full((1, 3), np.nan), fact=["c"], anchor_layer=8)
        run.commit("anchor_passes", 5, fact="c", anchor_layer=8)
    assert failed_facts(open_run(finished)) == ["c"]
    assert "left out of every mean: c." in write_reports(finished)


def test_the_papers_row_needs_the_papers_number_of_layers(tmp_path):
    coordinates = COORDINATES | {"layer": [2, 3], "anchor_layer": [2, 3]}
    with Run(tmp_path / "run", "tables", SETTINGS, {}, coordinates) as run:
        run.write("residual_ratio", np.ones((4, 2)), scheme="backward-dividing")
        run.write("update_norm", [0.1, 0.1], scheme="backward-dividing")
        run.commit("measured", scheme="backward-dividing")
    assert table(open_run(tmp_path / "run"), "table2")["paper"].isna().all()
    two = Results(make_run(tmp_path / "two", "tables", {"layers": [7, 8]}, coordinates={"layer": [7, 8]}))
    assert two.caption("table2").endswith("The paper's rows have 5 layers, and stand beside as many alone.")


def test_facts_answered_without_an_update_are_listed(finished):
    with create(finished) as run:
        run.commit("anchor_passes", [1], fact=["b"], anchor_layer=8)
    assert answered_facts(open_run(finished)) == ["b"]
    assert "answers already, left out of ratios: b." in write_reports(finished)


def test_anchors_that_did_not_take_are_counted_by_layer(finished):
    assert unmet_anchors(open_run(finished)) == ""
    with create(finished) as run:
        run.write("anchor_loss", [[0.01, 0.3], [0.049, 0.05], [np.nan, 0.02], [np.nan, np.nan]])
        run.commit("anchor_passes", [[25, 25], [9, 25], [1, 9], [0, 0]])
    line = "Anchors whose loss did not come below 0.05 nat in 25 passes: 2 of 3 at layer 8."
    assert unmet_anchors(open_run(finished)) == line
    assert line in write_reports(finished)
    descents = pd.read_csv(finished / "descents.csv").set_index("descent")
    first, last = descents.index
    assert descents.loc[last, ["facts", "below 0.05", "passes"]].tolist() == [3, 1, 59]
    assert descents.loc[first, ["median loss", "largest loss"]].tolist() == pytest.approx([0.0295, 0.049])
    assert not any("clamped" in name for name in descents)
    with create(finished) as run:
        run.write("anchor_clamped", [[0.5, 0.0], [0.0, 0.0], [np.nan, 0.1], [np.nan, np.nan]])
        run.commit("anchor_passes", [[25, 25], [9, 25], [1, 9], [0, 0]])
    write_reports(finished)
    descents = pd.read_csv(finished / "descents.csv").set_index("descent")
    assert descents["clamped facts"].tolist() == [1, 1]
    assert descents["clamped share of updates"].tolist() == pytest.approx([0.25, 0.1 / 3])


def test_captions_say_how_many_facts_are_in_the_cells(finished):
    assert " my_model, 4 facts, mean [95 %" in write_reports(finished)
    with create(finished) as run:
        run.write("residual_ratio", [[np.nan]], fact=["c"], scheme="backward-dividing", layer=[5])
        run.commit("measured", scheme="backward-dividing")
    parts = {part.split(".")[0]: part for part in write_reports(finished).split("\n\n") if ". " in part}
    assert "my_model, 3 to 4 of 4 facts in a cell, mean [95 %" in parts["Table 2"]
    assert "my_model, 4 facts, mean" in parts["Table 1"]
    assert "argmax at every token, teacher forced" in (finished / "efficacy.md").read_text()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([32, 32], "32 facts"),
        ([31, 31], "31 of 32 facts in each cell"),
        ([29, 32, 31], "29 to 32 of 32 facts in a cell"),
        ([0, 32], "0 to 32 of 32 facts in a cell"),
    ],
)
def test_facts_in_cells_are_told_in_words(counts, words):
    assert facts_in_cells(32, counts) == words


def test_intervals_of_figures_are_resampled_with_the_runs_seed(finished, monkeypatch):
    seeds = []

    def noted(values, seed):
        seeds.append(seed)
        return summaries_of(values, seed)

    monkeypatch.setattr(axes, "summaries_of", noted)
    conditions.theorem1(Figure(), open_run(finished))
    assert set(seeds) == {SETTINGS["seed"]}


def test_the_papers_numbers_are_of_own_targets_alone(finished):
    long = table(open_run(finished), "table5").groupby("row")["paper"]
    assert long.get_group("forward-replay").tolist() == [0.37, 0.15, 0.08, 0.05, 0.03]
    for row in ("forward-replay, against the optimised target", "forward-replay, norm", "backward-dividing, norm"):
        assert long.get_group(row).isna().all()


def test_theorem_2_counts_directions_and_facts(tmp_path):
    """One direction of 64 at one of six facts is one of 384, which two digits of a share would round away."""
    share = np.ones((6, 5))
    share[2, 1] = 63 / 64
    along = np.ones((6, 5, 5))
    along[0] = -1
    run = Results(make_run(tmp_path / "run", "tables", random_positive=share, linear_cosine=along))
    table = run.table("theorem2")
    row = table.loc["random directions: share with cos(Jv, v) > 0"]
    assert [cell.split("(")[1] for cell in row] == ["384 of 384)", "383 of 384)", "384 of 384)", "384 of 384)"]
    assert table.loc["one-layer: share of facts with cos(Jδ, δ) > 0", "layer 4"].endswith("(5 of 6)")
    assert table.loc["one-layer: cos(Jδ, δ), linear", "layer 4"].endswith("(1.00)")
    numbers = run.numbers("theorem2").set_index(["row", "layer"])
    assert numbers.loc[("random directions: share with cos(Jv, v) > 0", 5), ["hits", "trials"]].tolist() == [383, 384]
    assert "(median; of shares, how many of how many)" in run.caption("theorem2")
    assert "of shares" not in run.caption("decomposition")
    assert any("along 100 of the edits' 120 shifts" in line for line in headlines(run.dataset))


def test_the_effort_table_is_the_stored_shares(tmp_path):
    price = np.tile(np.array([3.0, 1.0, 0.0, 4.0, 2.0])[:, None], (6, 1, 5))  # the same at every layer of a scheme
    price[:, :, 0] *= 6
    run = Results(make_run(tmp_path / "run", "tables", price=price))
    numbers = run.numbers("effort").set_index(["row", "layer"])["mean"]
    (first, *others) = run.dataset["layer"].values.tolist()
    scheme = str(run.dataset["scheme"].values[0])
    assert numbers[f"{scheme}: price", first] == pytest.approx(18)
    shares = [numbers[f"{scheme}: share of the price", layer] for layer in (first, *others)]
    assert shares == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1])
    effort = run.dataset["effort"].sel(scheme=scheme, layer=first).mean("fact")
    assert numbers[f"{scheme}: share of the effort", first] == pytest.approx(float(effort))
