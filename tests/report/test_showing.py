"""Tables and figures of a run as the command line shows them."""

import subprocess
import sys

import pytest

from jacobian_lab.errors import InputError
from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.results import Results
from jacobian_lab.report.showing import COLUMNS, draw, show


def test_a_run_is_listed_with_all_that_it_can_show(run_folders):
    folder = run_folders["tables"]
    subject, finished, *lines = show(folder).splitlines()
    assert subject.startswith(f"{folder}: schemes, my_model, 6 facts of builtin [0:6], layers 4, 5, 6, 7, 8")
    assert "forward-replay" in finished
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    run = Results(folder)
    assert names == [*run.tables, *run.figures]
    assert all(len(line) <= COLUMNS for line in lines)


@pytest.mark.parametrize("name", ["table2", "step-size", "measurements"])
def test_a_table_is_printed_below_its_caption(name, run_folders):
    text, run = show(run_folders["tables"], [name]), Results(run_folders["tables"])
    key = name.replace("-", "_")
    assert text == run.text(key)
    caption = run.caption(key)
    assert text.startswith(f"{caption}\n\n| " if caption else "| ")
    assert len(text.splitlines()) == len(run.table(key)) + (4 if caption else 2)


def test_tables_and_figures_are_shown_in_the_order_asked_for(run_folders, tmp_path):
    folder = run_folders["edit_table"]
    text = show(folder, ["weights", "fe-gain", "gains"])
    figure = folder / "figures" / "fe_gain"
    caption = Results(folder).figure_caption("fe_gain")
    weights, *rest = text.split(f"\n\n{caption}\n{figure}.pdf\n{figure}.png\n\n")
    assert weights == Results(folder).text("weights")
    assert rest == [Results(folder).text("gains")]
    assert (folder / "figures" / "fe_gain.png").is_file()


@pytest.mark.slow
def test_a_figure_goes_to_a_file_a_folder_or_the_run(run_folders, tmp_path):
    folder = run_folders["jacobian"]
    assert draw(folder, "jacobian") == folder / "figures" / "jacobian.pdf"
    assert draw(folder, "jacobian", tmp_path / "new") == tmp_path / "new" / "jacobian.pdf"
    assert (tmp_path / "new" / "jacobian.png").read_bytes().startswith(b"\x89PNG")
    assert draw(folder, "jacobian", tmp_path / "spectra.svg") == tmp_path / "spectra.svg"
    assert "<svg" in (tmp_path / "spectra.svg").read_text()


def test_what_is_not_there_is_said_in_one_line(run_folders, tmp_path):
    folder = run_folders["jacobian"]
    for call, words in (
        (lambda: show(folder, ["table9"]), "expected tables or figures among conditions, jacobian, got 'table9'"),
        (lambda: show(folder, ["table2"]), "which is of schemes"),
        (lambda: show(tmp_path), "expected the folder of a run"),
        (lambda: draw(folder, "table2"), "expected a figure among jacobian, got 'table2'"),
        (lambda: draw(folder, "routing"), "which is of methods"),
        (lambda: draw(folder, "jacobian", tmp_path / "x.docx"), "expected a file that ends in .pdf, .png or .svg"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder for figures that can be written"):
        draw(folder, "jacobian", tmp_path / "file" / "below")


def test_nothing_that_draws_is_imported_before_a_figure_is_drawn(run_folders):
    call = f"from jacobian_lab.report.showing import show; show({str(run_folders['tables'])!r})"
    code = f"import sys; {call}; print({{'matplotlib', 'seaborn', 'scipy', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_name_is_a_table_or_a_figure_of_some_kind_of_run():
    assert not any("-" in name for name in (*TABLES, *FIGURES))
