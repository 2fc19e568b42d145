"""Numbers that the pages quote are those of the tables that the runs have left."""

import pytest
import quotes as quoting
import update_results
from helpers.runs import make_run
from quotes import UnknownSourceError, cell_value, filled, quotes

from jacobian_lab.report.results import Results

TABLE = """Caption | with a bar.

| row | D_KL ↓ | Top-10 ↑ | ‖t\\|t*‖ |
|:--|:--|:--|:--|
| memit, λ = 7 | **0.188** [0.141, 0.253] | 80.5 [78.3, 82.7] | 2 |
| memit+fe − memit | -0.048 [-0.114, +0.008] | -0.2 | |
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    folder = tmp_path / "docs" / "results" / "runs"
    (folder / "zsre").mkdir(parents=True)
    (folder / "zsre" / "gains.md").write_text(TABLE, "utf-8")
    monkeypatch.setattr(quoting, "RUNS", folder)
    monkeypatch.setattr(quoting, "DOCS", tmp_path / "docs")
    return folder


def test_a_quoted_number_is_its_cell(runs):
    assert cell_value("zsre/gains :: memit, :: D_KL") == 0.188
    assert cell_value("zsre/gains :: memit, λ = 7 :: Top-10 :: high") == 82.7
    assert cell_value("zsre/gains :: memit, λ = 7 :: ‖t|t*") == 2


def test_a_quote_is_filled_with_the_decimals_and_the_sign_of_the_prose(runs):
    page = (
        "D_KL of 0.9<!--= zsre/gains :: memit, :: D_KL --> falls by 0.11<!--= zsre/gains :: memit+fe :: D_KL --> "
        "(+1.000<!--= zsre/gains :: memit+fe :: D_KL -->), 9 %<!--= zsre/gains :: memit, :: Top-10 -->."
    )
    right = filled(page)
    assert [quote.quoted for quote in quotes(right)] == ["0.2", "0.05", "−0.048", "80"]
    assert "80 %<!--" in right
    assert filled(right) == right


@pytest.mark.parametrize(
    "source",
    [
        "zsre/gains :: memit :: D_KL",
        "zsre/gains :: rect :: D_KL",
        "zsre/gains :: memit, :: Top-5",
        "other/gains :: memit, :: D_KL",
        "zsre/gains :: memit,",
        "zsre/gains :: memit+fe :: Top-10 :: low",
        "zsre/gains :: memit+fe :: ‖t|t*",
    ],
    ids=["two rows", "no row", "no such column", "no file", "no column", "no interval", "empty"],
)
def test_a_quote_without_a_source_is_refused(runs, source):
    with pytest.raises(UnknownSourceError):
        cell_value(source)


def test_a_stale_number_fails_the_check(runs, monkeypatch, capsys):
    page = runs.parent.parent / "page.md"
    monkeypatch.setattr(update_results, "PAGES", (page,))
    monkeypatch.setattr(update_results, "ROOT", runs.parents[2])
    page.write_text("first line\nD_KL 0.19<!--= zsre/gains :: memit, :: D_KL -->\n", "utf-8")
    assert update_results.check() == []
    page.write_text("first line\nD_KL 0.20<!--= zsre/gains :: memit, :: D_KL -->\n", "utf-8")
    assert [line[:30] for line in update_results.check()] == ["docs/page.md:2: expected 0.19 "]
    page.write_text("D_KL 0.20<!--= zsre/lost :: memit, :: D_KL -->\n", "utf-8")
    assert "no results/runs/zsre/lost.md" in update_results.check()[0]


def test_all_pages_quote_what_is_there():
    assert update_results.check() == []


def test_commands_are_shown_without_the_folders_of_a_machine():
    command = "jacobian-lab frontier --facts /data/facts.json --anchors-from /home/me/runs/a --out /home/me/runs/b"
    assert update_results.portable(command) == (
        "jacobian-lab frontier --facts facts.json --anchors-from runs/a --out runs/b"
    )


def test_figures_are_copied_with_the_captions_of_their_run(tmp_path):
    run = Results(make_run(tmp_path / "run", "jacobian"))
    run.save_figure("jacobian")
    (run.folder / "figures" / "mine.png").write_bytes(b"")
    update_results.copy(run.folder, tmp_path / "page", ["figures.md"])
    text = (tmp_path / "page" / "figures.md").read_text("utf-8")
    assert text == f"![jacobian](jacobian.png)\n\n*{run.figure_caption('jacobian')}*\n\n![mine](mine.png)\n\n*mine*\n"
    assert (tmp_path / "page" / "jacobian.png").is_file()
