"""A run as a notebook opens it, and the registry of all that it shows."""

import re
import runpy
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers.commands import ROOT
from helpers.runs import COORDINATES, METHODS, SCHEMES, TRAINED, make_run
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from jacobian_lab.catalogue import CONTROLS, LATER_RULES, TABLE_SCHEMES
from jacobian_lab.errors import InputError
from jacobian_lab.report import results as module
from jacobian_lab.report.figures.axes import arms
from jacobian_lab.report.figures.style import RULE_COLORS, RULE_MARKERS, STYLES
from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.results import SCHEMES as SCHEMES_TABLES
from jacobian_lab.report.results import Results, write_schemes
from jacobian_lab.report.tables.training import AIMS, routed, with_router
from jacobian_lab.store.run import config_of, open_run
from jacobian_lab.store.schema import DECISIONS, KINDS

ENTRIES = [*TABLES.items(), *FIGURES.items()]


def test_every_figure_has_a_script_and_every_script_a_figure():
    assert {path.stem for path in (ROOT / "figures").glob("*.py")} == set(FIGURES)
    for name in FIGURES:
        assert f'figure_script("{name}")' in (ROOT / "figures" / f"{name}.py").read_text()


def test_every_script_of_an_analysis_makes_a_table():
    for path in (ROOT / "analyses").glob("*.py"):
        assert path.stem in TABLES
        assert f'script("{path.stem}")' in path.read_text()


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_every_row_names_kinds_and_variables_that_there_are(name, entry):
    assert re.fullmatch(r"[a-z0-9_]+", name)
    for kind in entry.kinds:
        assert set(entry.needs) <= set(KINDS[kind])
    assert entry.command.split()[0] in {*TABLES, "tables"}


@pytest.mark.parametrize("kind", COORDINATES)
def test_a_whole_run_gives_all_of_its_kind(kind, results):
    run = results[kind]
    assert set(run.tables) == {name for name, entry in TABLES.items() if kind in entry.kinds}
    assert set(run.figures) == {name for name, entry in FIGURES.items() if kind in entry.kinds}
    for name in run.tables:
        assert isinstance(run.table(name), pd.DataFrame)
        assert len(run.table(name)), name
        assert len(run.numbers(name)), name


def test_a_table_is_a_copy(results):
    run = results["tables"]
    table = run.table("table2")
    table.iloc[:] = ""
    assert (run.table("table2") != "").any().any()


def test_a_run_is_asked_for_tables_as_a_mapping_is(results):
    run = results["tables"]
    pd.testing.assert_frame_equal(run["table2"], run.table("table2"))
    assert list(run) == list(run.tables) == run._ipython_key_completions_()
    assert "table2" in run
    assert "table9" not in run
    with pytest.raises(InputError, match="got 'table9'"):
        run["table9"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", COORDINATES)
def test_a_dataset_goes_through_netcdf(kind, results, tmp_path):
    dataset = results[kind].dataset
    dataset.to_netcdf(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc") as read:
        xr.testing.assert_equal(read, dataset)
        assert config_of(read) == results[kind].config
        assert read["fact"].attrs == dataset["fact"].attrs


def test_a_command_opens_its_run_once_and_writes_each_table_once(run_folders, monkeypatch):
    opened, written = [], []
    monkeypatch.setattr(module, "open_run", lambda *arguments: opened.append(arguments) or open_run(*arguments))
    monkeypatch.setattr(module, "write_csv", lambda path, frame: written.append(path.stem))
    monkeypatch.setattr(module, "write_table", lambda stem, *_: stem.name)
    text, lines = write_schemes(run_folders["tables"])
    assert len(opened) == 1
    assert len(written) == len(set(written))
    tables = [*SCHEMES_TABLES, "efficacy", "theorem2"]
    assert set(written) == {*tables, "measurements", "conditions", "descents", "decomposition", "effort"}
    assert [block for block in text.split("\n\n") if " " not in block] == tables
    assert lines[0].startswith("6 facts of builtin were edited in my_model")


def test_table_2_by_hand(results):
    run = results["tables"]
    table, dataset = run.table("table2"), run.dataset
    values = dataset["residual_ratio"].sel(scheme="one-layer", layer=8).values
    assert table.loc["one-layer", "layer 8"].startswith(f"{values.mean():.2f} [")
    assert table.loc["one-layer", "layer 8"].endswith(f"({np.median(values):.2f})")
    assert table.loc["one-layer, paper (Llama-3-8B)"].tolist() == ["", "", "", "", "0.55"]
    assert table.loc["backward-full, paper (Llama-3-8B)", "layer 4"] == "1.19"
    assert "The paper's rows: llama-3-8b-instruct, CounterFact, 2,000 facts." in run.caption("table2")


def test_what_a_run_is(run_folders, results):
    run = Results(str(run_folders["tables"]), "tables")
    assert run.dataset.identical(results["tables"].dataset)
    assert (run.kind, run.facts, run.config["settings"]["seed"]) == ("tables", 6, 3)
    text, html = repr(run), run._repr_html_()
    assert len(text.splitlines()) <= 2
    for words in ("my_model", "6 facts of builtin", "4, 5, 6, 7, 8", "forward-replay", "step_size", str(run.folder)):
        assert words in text, words
        assert words in html, words
    assert ", ".join(METHODS) in repr(results["edit_table"])
    assert ", ".join(SCHEMES) in repr(results["layer_count"])
    assert "Jacobians of 6 of 6 facts" in repr(results["jacobian"])


def test_names_that_are_not_there_are_told_with_those_that_are(results, tmp_path):
    run = results["jacobian"]
    with pytest.raises(InputError, match=r"expected a table among conditions, jacobian, got 'table9'"):
        run.table("table9")
    with pytest.raises(InputError, match=r"expected a figure among jacobian, got 'step-size'"):
        run.figure("step-size")
    with pytest.raises(
        InputError, match=r"jacobian-lab jacobians \(conditions, jacobian\), got table3, which is of methods"
    ):
        run.table("table3")
    nan = np.full((6, len(SCHEMES), 5), np.nan)
    bare = Results(
        make_run(tmp_path / "run", "tables", range_position=nan, step_replayed=np.full((6, len(SCHEMES), 5, 3), np.nan))
    )
    assert "theorem1" not in {*bare.tables, *bare.figures}
    assert "step_size" not in {*bare.tables, *bare.figures}
    with pytest.raises(
        InputError, match=r"holds range_position, got .* without: make it with jacobian-lab schemes --studies theorem1"
    ):
        bare.table("theorem1")
    with pytest.raises(InputError, match=r"make it with jacobian-lab schemes --studies step_size --no-verdicts, to"):
        bare.figure("step_size")
    with pytest.raises(InputError, match="a run of jacobian-lab methods, got one of schemes"):
        Results(bare.folder, "edit_table")


def lines(ax, label):
    """The curve of an error bar, or the line, that a legend names."""
    handles, labels = ax.get_legend_handles_labels()
    handle = handles[labels.index(label)]
    line = handle.lines[0] if hasattr(handle, "lines") else handle
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def test_curves_show_the_stored_means_and_the_papers(results):
    run = results["tables"]
    axes = run.figure("residual_by_layer").axes
    papers = ([1.19, 0.90, 0.74, 0.56, 0.23], [0.37, 0.15, 0.08, 0.05, 0.03])
    for ax, scheme, paper in zip(axes, ("backward-full", "forward-replay"), papers, strict=True):
        x, y = lines(ax, scheme)
        assert x.tolist() == [4, 5, 6, 7, 8]
        np.testing.assert_allclose(y, run.dataset["residual_ratio"].sel(scheme=scheme).mean("fact"))
        assert paper in [np.asarray(line.get_ydata(), float).tolist() for line in ax.lines]
        assert ax.get_yscale() == "log"
    assert "forward-replay" not in axes[0].get_legend_handles_labels()[1]
    (ax,) = run.figure("cosine_by_layer").axes
    assert [0.34, 0.41, 0.54, 0.72, 1.00] in [np.asarray(line.get_ydata(), float).tolist() for line in ax.lines]


def test_the_spread_has_a_line_for_every_fact_and_their_median(results):
    run = results["tables"]
    figure = run.figure("spread_by_fact")
    assert [ax.get_title() for ax in figure.axes] == SCHEMES
    for ax, scheme in zip(figure.axes, SCHEMES, strict=True):
        values = run.dataset["residual_ratio"].sel(scheme=scheme).values
        drawn = np.array([line.get_ydata() for line in ax.lines[:6]])
        np.testing.assert_array_equal(drawn, values)
        np.testing.assert_array_equal(ax.lines[6].get_ydata(), np.median(values, axis=0))


def test_steps_show_medians_and_quartiles_of_the_two_opposites(results):
    run = results["tables"]
    figure = run.figure("step_size")
    assert [ax.get_title() for ax in figure.axes] == ["layer 4", "layer 5", "layer 6", "layer 7"]
    ax, stored = figure.axes[1], run.dataset["step_replayed"].sel(scheme="forward-replay", layer=5).values
    np.testing.assert_allclose(lines(ax, "forward-replay, replayed")[1], np.median(stored, axis=0))
    assert len(ax.collections) == 2  # the band of each scheme
    band = ax.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(band[:, 1].max(), np.quantile(stored, 0.75, axis=0).max())


def test_theorem_2_shows_both_ends_of_every_spectrum(results):
    run = results["tables"]
    left, linear, realised = run.figure("theorem2").axes
    below = run.dataset.sel(layer=[4, 5, 6, 7])
    (drawn,) = (line.get_ydata() for line in left.lines if line.get_marker() == "v")
    np.testing.assert_array_equal(drawn, below["lambda_min"].values.T.ravel())
    surveyed = (below["surveyed"] == 1).broadcast_like(below["decision"])
    definite = ((below["decision"] == DECISIONS["definite"]) & surveyed).sum()
    assert left.get_title() == rf"$S \succ 0$: {int(definite):,} of {int(surveyed.sum()):,}"
    for ax, variable in ((linear, "linear_cosine"), (realised, "cosine")):
        mean = below[variable].sel(scheme="one-layer").mean("fact")
        np.testing.assert_allclose(lines(ax, "one-layer")[1], mean)


def test_each_rule_has_its_schemes_in_a_row_at_their_means(results):
    run = results["edit_table"]
    axes, means = run.figure("efficacy_specificity").axes, run.table("metrics")
    rows = list(dict.fromkeys(name.removesuffix("+fe").removesuffix("+cr") for name in METHODS if name != "unedited"))
    assert [text.get_text() for text in axes[0].get_yticklabels()] == rows
    points = [
        (container.lines[0].get_xdata().item(), round(container.lines[0].get_ydata().item()))
        for container in axes[-1].containers
    ]
    edited = [name for name in METHODS if name != "unedited"]
    expected = {(means.loc[name, "kl"], rows.index(name.removesuffix("+fe").removesuffix("+cr"))) for name in edited}
    assert set(points) == expected


def test_gains_are_the_differences_of_the_means(results):
    run = results["edit_table"]
    left, right = run.figure("fe_gain").axes
    means = run.table("metrics")
    expected = means.loc["memit+fe", "efficacy_success"] - means.loc["memit", "efficacy_success"]
    assert lines(left, "memit")[1][0] == pytest.approx(expected)
    assert lines(right, "memit")[1].item() == pytest.approx(means.loc["memit+fe", "kl"] - means.loc["memit", "kl"])


def test_where_all_values_are_one_the_interval_has_no_length(tmp_path):
    """Bootstrap means of 0.7, 0.7, … differ from their mean in the last digit, to either side."""
    level = np.full((6, len(SCHEMES), 5), 0.7)
    run = Results(make_run(tmp_path / "run", "tables", cosine=level, residual_ratio=level))
    assert run.figure("cosine_by_layer").axes[0].lines
    assert arms(np.array([0.7, 0.5]), np.array([0.7 + 1e-16, 0.4]), np.array([0.7, np.nan])).tolist() == [
        [0.0, pytest.approx(0.1)],
        [0.0, 0.0],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_in_the_house_style_and_by_its_script(name, results, tmp_path, monkeypatch, capsys):
    run = results[FIGURES[name].kinds[0]]
    figure = run.figure(name)
    assert isinstance(figure, Figure)
    assert all(ax.lines or ax.collections or ax.images for ax in figure.axes)
    assert {text.get_fontname() for ax in figure.axes for text in ax.get_xticklabels()} == {"STIXGeneral"}
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(run.folder), "--out", str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(ROOT / "figures" / f"{name}.py"), run_name="__main__")
    out, err = capsys.readouterr()
    pdf, png = (tmp_path / f"{name}.{ending}" for ending in ("pdf", "png"))
    assert out.split() == [str(pdf), str(png)]
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "findfont" not in err


def test_a_router_serves_what_is_far_enough(results):
    """Shares by hand; neighbourhood prompts that are edited themselves do not count."""
    dataset = results["edit_table"].dataset
    wise, decisions = dataset.sel(edit="wise"), routed(dataset, "wise")
    assert with_router(dataset) == ["wise"]
    for kind, name in (("prompts", "distance"), ("paraphrases", "distance_paraphrase")):
        assert decisions[kind].served == pytest.approx(float((wise[name] >= 1).mean()))
    edited = dataset.copy(deep=True)
    edited["neighbor_edited"][0, 0] = 1
    assert routed(edited, "wise")["neighbourhood"].distances.size == wise["distance_neighbor"].size - 1
    table = results["edit_table"].table("training")
    assert table.loc["served by the memory, prompts", "wise"] == f"{100 * decisions['prompts'].served:.1f}"
    assert table.loc["served by the memory, prompts", "rledit"] == ""
    assert table.loc["blocks that are changed", "rledit"] == "0 to 3"


def test_aims_are_means_over_facts(results):
    dataset = results["edit_table"].dataset
    table = results["edit_table"].numbers("aims").set_index(["method", "metric"])
    for name in ("memit", "wise"):
        for metric in ("aim_cosine", "aim_share"):
            assert table.loc[(name, metric), "mean"] == pytest.approx(float(dataset[metric].sel(edit=name).mean()))


def test_a_run_from_before_there_were_aims_lacks_them_alone(tmp_path, monkeypatch):
    """And nothing else of it."""
    newer = [*AIMS, *TRAINED]
    older = {name: variable for name, variable in KINDS["edit_table"].items() if name not in newer}
    with monkeypatch.context() as before:
        before.setitem(KINDS, "edit_table", older)
        make_run(tmp_path / "run", "edit_table", neighbor_edited=np.zeros((6, 3)))
    run = Results(tmp_path / "run")
    assert {"table3", "damage", "gains", "records"} <= set(run.tables)
    assert not {"training", "aims"} & set(run.tables)
    assert "routing" not in run.figures
    assert run.write("table3", "damage", "training", "aims", "records")


def lightness(color):
    """CIELAB's L*: what is left of a colour in grey."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_schemes_and_rules_are_told_apart_in_grey():
    rules = {name: {"color": color, "marker": RULE_MARKERS[name]} for name, color in RULE_COLORS.items()}
    later = ("rome", *LATER_RULES)
    assert len({(to_rgb(look["color"]), look["marker"]) for look in rules.values()}) == len(rules)
    for looks, least in (
        ({name: STYLES[name] for name in TABLE_SCHEMES}, 8),
        ({name: STYLES[name] for name in (*CONTROLS, "forward-replay", "coordinated-replay", "backward-dividing")}, 6),
        ({name: look for name, look in rules.items() if name not in later}, 3),
        ({name: rules[name] for name in later}, 3),
    ):
        steps = np.diff(sorted(lightness(look["color"]) for look in looks.values()))
        assert steps.min() > least
        assert len({look["marker"] for look in looks.values()}) == len(looks)
    main = [lightness(STYLES[name]["color"]) for name in ("forward-replay", "coordinated-replay", "backward-dividing")]
    assert np.diff(main).min() > 12


def test_no_line_leads_through_layers_that_are_not_edited(tmp_path):
    ratio, norm = np.full((6, len(SCHEMES), 5), 0.5), np.full((len(SCHEMES), 5), 0.1)
    ratio[:, 2, 1:4] = norm[2, 1:4] = np.nan
    run = Results(make_run(tmp_path / "run", "tables", residual_ratio=ratio, update_norm=norm))
    for ax in (run.figure("residual_by_layer").axes[0], run.figure("spread_by_fact").axes[2]):
        drawn = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 5]
        assert any(np.isnan(np.asarray(y, float)).tolist() == [False, True, True, True, False] for y in drawn)


def test_a_frontier_has_its_ridges_at_the_points(results):
    run = results["frontier"]
    left, right = run.figure("frontier").axes
    written = sorted((float(text.get_text()), *text.xy) for text in left.texts)
    points = run.numbers("frontier")[["ridge", "kl", "generalization_accuracy"]].to_numpy().tolist()
    np.testing.assert_allclose(written, sorted(points))
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
