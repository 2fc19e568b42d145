"""The table of causal traces, the layers that they point to, and their figures, from written numbers."""

import numpy as np
import pandas as pd
import pytest
from helpers.runs import COORDINATES, make_run

from jacobian_lab.errors import InputError
from jacobian_lab.report.results import Results, write_locate
from jacobian_lab.report.tables.locating import decisive_window, effects, ranked_layers

LABELS = COORDINATES["locate"]


@pytest.fixture
def effect():
    """Of each fact, token, layer and site; the last fact has no second token of the subject."""
    values = np.zeros([len(LABELS[dim]) for dim in ("fact", "token", "layer", "site")])
    values[:, 2, :, 1] = [0.1, 0.3, 0.4, 0.35]  # the MLP at the last subject token
    values[:, 3, 3, 0] = np.arange(6)
    values[-1, 1] = np.nan
    return values


@pytest.fixture
def run(effect, tmp_path):
    return Results(make_run(tmp_path / "run", "locate", effect=effect))


def test_cells_are_means_over_facts_with_their_intervals(run):
    numbers = run.numbers("locate").set_index(["role", "layer", "site"])
    assert numbers.columns.tolist() == ["effect", "low", "high"]
    assert numbers.loc["last subject", 6, "mlp"].tolist() == pytest.approx([0.4, 0.4, 0.4])
    last = numbers.loc["last", 7, "residual"]
    assert last["effect"] == pytest.approx(2.5)
    assert 0.8 < last["low"] < 2 < 3 < last["high"] < 4.2
    assert set(numbers.index.get_level_values("role")) == {"first subject", "middle subject", "last subject", "last"}
    assert len(numbers) == 4 * 4 * 3


def test_tokens_of_one_role_are_averaged_in_a_fact(effect, tmp_path):
    effect[:, 0, 0, 0], effect[:-1, 1, 0, 0] = 1.0, 0.5
    run = make_run(tmp_path / "run", "locate", effect=effect)
    dataset = Results(run).dataset
    dataset["role"][:] = np.array([2, 2, 3, 6])
    middle = effects(dataset).sel(role="middle subject", layer=4, site="residual").values
    assert middle.tolist() == [0.75] * 5 + [1.0]  # the last fact has one such token


def test_the_table_has_the_peak_of_every_site_and_role(run):
    table = run.table("locate")
    peak = table[(table.index == "mlp") & (table["role"] == "last subject")].iloc[0]
    assert peak["peak layer"] == "6"
    assert peak["effect"].startswith("0.4000 [0.4")
    assert "Noise: 3 × 0.1, 10 draws; windows of 3 layers." in run.caption("locate")


def test_layers_are_ranked_by_the_mlp_at_the_last_subject_token(run, tmp_path):
    assert [layer for layer, _ in ranked_layers(run.dataset)] == [6, 7, 5, 4]
    assert decisive_window(run.dataset, 1) == (6,)
    assert decisive_window(run.dataset, 2) == (6, 7)
    assert decisive_window(run.dataset, 3) == (5, 6, 7)
    for width in (0, 5):
        with pytest.raises(InputError, match="width from 1 to 4"):
            decisive_window(run.dataset, width)
    with pytest.raises(InputError, match="with the site mlp"):
        ranked_layers(run.dataset.sel(site=["residual"]))
    nothing = np.full_like(run.dataset["effect"].values, np.nan)
    with pytest.raises(InputError, match="with a traced fact"):
        ranked_layers(run.dataset.assign(effect=run.dataset["effect"].copy(data=nothing)))


def test_a_summary_says_where_most_comes_back(run):
    text = write_locate(run.folder)
    assert "mlp: most comes back at the last subject token, at layer 6: 0.4000" in text
    assert "residual: most comes back at the last subject token, at layer 4" in text
    assert "; from layer 7 on more at the prompt's last token." in text
    assert "largest at layer 6 (0.4000); of 4 traced layers in a row, 4 to 7 have the most" in text
    assert len(pd.read_csv(run.folder / "locate.csv")) == 48


def test_a_figure_is_drawn_of_all_facts_or_of_one(run, tmp_path):
    figure = run.figure("locate")
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == LABELS["site"]
    assert [label.get_text() for label in panels[0].get_yticklabels()][:2] == ["first subject", "middle subject"]
    assert panels[1].lines[0].get_xydata().tolist() == [[2, 2]]  # the peak, at layer 6
    single = run.figure("locate", fact="fact 2")
    labels = [label.get_text() for label in single.axes[0].get_yticklabels()]
    assert labels == ["the*", "Eiffel*", "Tower*", "in"]
    assert [path.name for path in run.save_figure("locate", fact="fact 2")] == ["locate-2.pdf", "locate-2.png"]
    with pytest.raises(InputError, match=r"expected the id of a fact of .* got 'nobody': give one of fact 0; "):
        run.figure("locate", fact="nobody")


def test_other_figures_are_not_of_single_facts(run_folders):
    with pytest.raises(InputError, match=r"expected a figure of single facts \(locate\), got jacobian"):
        Results(run_folders["jacobian"]).figure("jacobian", fact="fact 2")
