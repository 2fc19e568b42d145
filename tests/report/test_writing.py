"""LaTeX that pdfLaTeX reads: balanced, escaped, as many cells in each row as columns."""

import re

import pandas as pd
import pytest
from helpers.runs import COORDINATES

from jacobian_lab.report.writing import latex, number, write_csv, write_table


def check_latex(text):
    """Check all that a LaTeX run would stumble over, but for pdfLaTeX itself."""
    assert text.isascii()
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}", "", text)
    bare = re.sub(r"\\[%&#$_{}|\\]", lambda match: "\n" if match[0] == r"\\" else "", bare)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[%#~]", bare)
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[_^]", re.sub(r"\$[^$]*\$", "", bare))
    opened, closed = (re.findall(rf"\\{word}\{{(\w+)\}}", bare) for word in ("begin", "end"))
    assert opened == closed[::-1] == ["table", "tabular"]
    columns = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", bare)[1]
    body = bare[bare.index(r"\toprule") : bare.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if "&" in line]
    assert {row.count("&") for row in rows} == {len(columns) - 1}


def test_special_characters_are_escaped_and_bold_is_a_macro():
    odd = r"a_b & 5 % of {x} #1 $2 ~ ^ \n"
    frame = pd.DataFrame({"λ_min of S ≻ 0": [odd, "0.5 [0.1, 0.9]"]}, index=["‖δ_L‖ · J", "Δ↑"]).rename_axis("row")
    bold = pd.DataFrame([[False], [True]], index=frame.index, columns=frame.columns)
    text = latex(frame, f"μ − {odd}", bold)
    check_latex(text)
    assert r"\textbf{0.5 [0.1, 0.9]}" in text
    assert text.count(r"\textbf") == 1
    assert r"a\_b \& 5 \% of \{x\} \#1 \$2" in text
    assert text.count(r"a\_b \& 5") == 2  # the cell and the caption
    assert r"$\|$$\delta$\_L$\|$ $\cdot$ J" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", COORDINATES)
def test_every_table_of_every_run_is_well_formed(kind, results, tmp_path):
    run = results[kind]
    run.write(*run.tables)
    written = [path for path in run.folder.glob("*.tex") if path.stem in run.tables]
    assert written
    for path in written:
        check_latex(path.read_text("utf-8"))


def test_numbers_keep_two_digits_of_what_is_small():
    assert [number(value) for value in (0.5, 0.0012, 0.0, -0.004, float("nan"))] == [
        "0.50",
        "1.2e-03",
        "0.00",
        "-4.0e-03",
        "",
    ]
    assert number(1.25, 1, "+") == "+1.2"


ODD = ["a\nb", "a\tb\r\n\n c", r"& % _ # $ { } \ ~ ^", "a | b", "< >", "", '"', "'", "ü"]


def test_any_text_leaves_markdown_and_latex_tables_and_csv_files_whole(tmp_path):
    frame = pd.DataFrame(dict.fromkeys(["|t*|", *ODD[:4]], ODD), index=ODD).rename_axis("a | b\n")
    text = write_table(tmp_path / "odd", frame, "of |t*|\n\nand more", frame == ODD[0])
    caption, blank, *rows = text.splitlines()
    assert (caption, blank) == ("of |t*| and more", "")
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {frame.shape[1] + 2}
    assert len(rows) == len(ODD) + 2
    tex = (tmp_path / "odd.tex").read_text("utf-8")
    check_latex(tex.replace("ü", "u"))
    assert "$|$t*$|$" in tex
    assert not re.search(r"(?<!\$)[|<>]", tex)
    write_csv(tmp_path / "odd.csv", frame.reset_index(drop=True))
    assert pd.read_csv(tmp_path / "odd.csv", keep_default_na=False).to_numpy().tolist() == frame.to_numpy().tolist()


def test_a_text_of_a_csv_file_is_no_formula(tmp_path):
    texts = [
        '=HYPERLINK("http://x","y")',
        "+1+cmd",
        "-a",
        "@SUM(A1)",
        "\t=1",
        "'=1",
        "a=1",
        "'a",
        "-3.5",
        "+2",
        "1e-3",
        "",
    ]
    write_csv(tmp_path / "f.csv", pd.DataFrame({"=id": texts, "value": -1.5}))
    frame = pd.read_csv(tmp_path / "f.csv", dtype=str, keep_default_na=False)
    assert set(frame["value"]) == {"-1.5"}
    assert frame.columns[0] == "'=id"
    guarded = [text.removeprefix("'") for text in frame["'=id"][:6]]
    assert guarded == texts[:6]
    assert all(text.startswith("'") for text in frame["'=id"][:6])
    assert frame["'=id"][6:].tolist() == texts[6:]
