"""The paper's numbers: read from the files that come with the package, and put beside ours in the right rows."""

import numpy as np
import pandas as pd
import pytest
from helpers.runs import make_run

from jacobian_lab.errors import InputError
from jacobian_lab.report.paper import METRICS, paper_methods, paper_residuals, read_paper, rows_beside
from jacobian_lab.report.results import Results, write_comparison

LLAMA = "paper (llama-3-8b-instruct)"


def test_all_rows_of_the_papers_tables_are_there():
    numbers = paper_methods()
    assert len(numbers) == 62
    assert numbers.groupby(["table", "dataset"]).size().to_dict() == {
        ("table3", "counterfact"): 9,
        ("table3", "zsre"): 9,
        ("table4", "counterfact"): 6,
        ("table4", "zsre"): 6,
        ("table6", "counterfact"): 8,
        ("table6", "zsre"): 8,
        ("table7", "counterfact"): 8,
        ("table7", "zsre"): 8,
    }
    assert numbers[list(METRICS)].notna().all().all()


@pytest.mark.parametrize(
    ("dataset", "model", "table", "method", "metric", "value"),
    [  # looked up in the paper by hand
        ("counterfact", "llama-3-8b-instruct", "table3", "memit+fe", "efficacy_success", 99.9),
        ("zsre", "llama-3-8b-instruct", "table3", "blue", "efficacy_success", 94.6),
        ("counterfact", "llama-3-8b-instruct", "table4", "alphaedit+fe", "efficacy_success", 99.8),
        ("counterfact", "gpt2-xl", "table6", "wise", "efficacy_success", 24.6),
        ("zsre", "gpt-j-6b", "table7", "alphaedit", "efficacy_success", 88.2),
        ("counterfact", "llama-3-8b-instruct", "table3", "onelayer", "kl", 0.28),
        ("counterfact", "llama-3-8b-instruct", "table3", "memit", "top10", 74.4),
    ],
)
def test_rows_are_found_by_table_model_and_data_set(dataset, model, table, method, metric, value):
    assert rows_beside(paper_methods(), dataset, model, table).loc[method, metric] == value


def test_residuals_stand_layer_for_layer():
    assert paper_residuals("table2", "backward-full", 5).tolist() == [1.19, 0.90, 0.74, 0.56, 0.23]
    assert paper_residuals("table5", "forward-replay", 5).tolist() == [0.37, 0.15, 0.08, 0.05, 0.03]
    np.testing.assert_array_equal(paper_residuals("table2", "one-layer", 5), [np.nan] * 4 + [0.55])
    assert np.isnan(paper_residuals("table2", "backward-full", 3)).all()
    assert np.isnan(paper_residuals("table1", "independent", 5)).all()


def test_the_papers_rows_stand_below_ours_in_its_order_and_ours_beyond_it_last(results):
    table = results["edit_table"].table("table3")
    assert list(table.index) == [
        "unedited",
        f"onelayer, {LLAMA}",
        "memit",
        f"memit, {LLAMA}",
        "blue",
        f"blue, {LLAMA}",
        "wise",
        f"wise, {LLAMA}",
        "rledit",
        f"rledit, {LLAMA}",
        "prune",
        f"prune, {LLAMA}",
        f"rect, {LLAMA}",
        f"alphaedit, {LLAMA}",
        "memit+fe",
        f"memit+fe, {LLAMA}",
        "memit+cr",
    ]
    assert table.loc[f"wise, {LLAMA}"].tolist() == ["18.0", "2.3", "11.8", "0.8", "0.090", "97.7", "97.5", "97.4"]
    assert "The paper's rows: llama-3-8b-instruct, CounterFact, 2,000 facts." in results["edit_table"].caption("table3")
    beyond = list(results["edit_table"].table("table4").index)
    assert beyond[1:3] == ["prune", f"prune, {LLAMA}"]
    assert beyond[-3:] == ["memit", "memit+fe", "memit+cr"]  # which Table 4 has not
    assert list(dict.fromkeys(results["edit_table"].numbers("table4")["method"])) == [
        "unedited",
        "prune",
        "memit",
        "memit+fe",
        "memit+cr",
    ]
    others = results["edit_table"].table("table6")
    assert others.loc["memit, paper (gpt2-xl)", "efficacy success ↑"] == "94.0"


def test_numbers_are_of_the_runs_own_data_set(tmp_path):
    run = Results(make_run(tmp_path / "run", "edit_table", {"metrics": "zsre"}))
    assert run.table("table3").loc[f"memit, {LLAMA}", "efficacy success ↑"] == "92.6"
    assert "llama-3-8b-instruct, ZsRE, 2,000 facts" in run.caption("table3")


def test_all_methods_have_the_papers_rows_of_both_tables_and_no_others(results):
    rows = [row.removesuffix(f", {LLAMA}") for row in results["edit_table"].table("edit_table").index]
    both = ["memit", "memit", "blue", "blue", "emmet", "memit+fe", "memit+fe", "memit+cr", "prune", "prune"]
    assert rows == ["unedited", *both, "wise", "wise", "rledit", "rledit"]


def test_all_methods_have_the_rows_of_the_runs_own_model(tmp_path):
    run = Results(make_run(tmp_path / "run", "edit_table", provenance={"protocol": "gpt2-xl"}))
    assert run.table("edit_table").loc["memit, paper (gpt2-xl)", "efficacy success ↑"] == "94.0"
    assert f"memit, {LLAMA}" not in run.table("edit_table").index


def test_the_best_of_ours_alone_is_bold(results, tmp_path, run_folders):
    text = results["edit_table"].write("table3")
    frame, numbers = results["edit_table"].table("table3"), results["edit_table"].numbers("table3")
    edited = numbers.pivot(index="method", columns="metric", values="mean").drop(index="unedited")
    for place, (metric, kind) in enumerate(METRICS.items(), 2):
        winner = edited[metric].idxmax() if kind.best > 0 else edited[metric].idxmin()
        for name in frame.index:
            cell = next(line for line in text.splitlines() if line.startswith(f"| {name} ")).split("|")[place].strip()
            assert cell.startswith("**") == (name == winner), (name, metric)


def test_somebodys_numbers_stand_beside_ours(run_folders, tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text("method,efficacy_success,kl\nprune,12.5,\nrome,1,\n")
    assert read_paper(path).set_index("method").loc["prune", "efficacy_success"] == 12.5
    text = write_comparison(run_folders["edit_table"], ("table4",), path)
    assert paper_rows(text) == {"prune, paper": "12.5"}
    for text, words in (("method,success\n", "got method, success"), ("method,kl\na,b\n", "of numbers"), ("", "check")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_paper(path)
    with pytest.raises(InputError, match="expected a CSV file"):
        read_paper(tmp_path / "nothing.csv")


def test_a_file_may_say_of_which_table_model_and_data_set_its_rows_are(run_folders, tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text(
        "table,model,dataset,method,efficacy_success\n"
        "3,llama-3-8b-instruct,counterfact,memit,11\n"
        "3,llama-3-8b-instruct,zsre,memit,22\n"
        "6,gpt2-xl,counterfact,memit,33\n"
        "table3,,,wise,44\n"
    )
    run = Results(run_folders["edit_table"])
    third, sixth = (run.write(name, paper=read_paper(path)) for name in ("table3", "table6"))
    assert paper_rows(third) == {f"memit, {LLAMA}": "11.0", "wise, paper": "44.0"}
    assert paper_rows(sixth) == {"memit, paper (gpt2-xl)": "33.0"}
    methods = [line.split("|")[1].strip() for line in third.splitlines() if line.startswith("| ")][1:]
    expected = ["unedited", "memit", f"memit, {LLAMA}", "blue", "wise", "wise, paper", "rledit", "prune", "memit+fe"]
    assert methods == [*expected, "memit+cr"]  # in the paper's order, whatever the file has


def paper_rows(markdown):
    """Efficacy success of the rows that are the paper's."""
    cells = [[cell.strip() for cell in line.split("|")] for line in markdown.splitlines() if ", paper" in line]
    return {row[1]: row[2] for row in cells if len(row) > 3}


def test_the_file_in_the_package_can_be_given_as_it_is(run_folders, tmp_path):
    path = tmp_path / "copy.csv"
    paper_methods().to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_paper(path), paper_methods())
