"""A run as a page: what stands in it, and what cannot get out of it."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
import xarray as xr
from helpers.pages import HOSTILE, SUBJECTS, run_with_facts, written_facts
from helpers.runs import COORDINATES, FACTS, METHODS, ROLES_OF_TOKENS, SCHEMES

from jacobian_lab.errors import InputError
from jacobian_lab.report.page import writing
from jacobian_lab.report.page.building import differences, joined, page_of
from jacobian_lab.report.page.circumstances import question
from jacobian_lab.report.page.drawings import inlined
from jacobian_lab.report.page.measures import LEVELS, measurements, residual_lines, traces, verdicts_by_layer
from jacobian_lab.report.page.texts import fact_rows, fact_texts
from jacobian_lab.report.page.verdicts import verdicts
from jacobian_lab.report.page.writing import LIMIT, as_json, fitted, render, write_report
from jacobian_lab.report.registry import FIGURES, TABLES
from jacobian_lab.report.results import Results
from jacobian_lab.report.tables.methods import records
from jacobian_lab.store.schema import KINDS

VOID = {"meta", "br", "img", "input", "link", "hr"}
PARTS = {"values": {"efficacy": [[1, 0]]}, "edits": ["memit"], "lines": None, "verdicts": None, "traces": None}


class Page(HTMLParser):
    """Elements of a page, which must be nested as they are opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.data: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        self.data[inside] = self.data.get(inside, "") + data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    values = {
        "edit_table": {"neighbor_edited": np.zeros((6, 3)), "probe_accuracy": np.full((6, len(METHODS), 1), np.nan)},
        "frontier": {"probe_accuracy": np.full((6, 4, 2, 1), np.nan)},
    }
    more = {"tables": {"decisive": ["Ada", " x", "ë", "?", "'Neil", " Zola"]}}
    return {
        kind: run_with_facts(root / kind, kind, kind, more.get(kind), **values.get(kind, {})) for kind in COORDINATES
    }


@pytest.fixture
def small():
    """A page without tables and figures."""
    facts = [{"id": "1", "prompt": HOSTILE, "subject": [0, 3], "new": HOSTILE, "true": "", "at": [0]}]
    run = {"side": "", "name": HOSTILE, "kind": "methods", "subject": HOSTILE, "finished": "", "verdicts": [HOSTILE]}
    rows = [{"name": HOSTILE, "cells": [HOSTILE], "differs": False}]
    return {
        "version": "1",
        "title": HOSTILE,
        "runs": [run | {"warnings": [HOSTILE]}],
        "question": [{"name": "Run", "rows": rows}],
        "differences": None,
        "tables": [],
        "figures": [],
        "notes": [HOSTILE],
        "data": {"runs": [PARTS | {"side": ""}], "measures": [], "facts": facts, "styles": {}},
    }


@pytest.mark.parametrize("kind", COORDINATES)
def test_a_page_has_all_that_its_run_can_give(kind, folders, tmp_path):
    run = Results(folders[kind])
    path, notes = write_report(folders[kind], out=tmp_path / "page.html")
    text = path.read_text("utf-8")
    page = Page(text)
    assert (notes, page.open) == ([], [])
    assert len(text.encode()) < LIMIT
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {f"table-{name}" for name in run.tables if TABLES[name].caption} == {
        i for i in ids if i.startswith("table-")
    }
    assert len(page.of("svg")) == len(run.figures)
    assert all(FIGURES[name].caption in page.data["figcaption"] for name in run.figures)
    assert all(attributes["scope"] in {"col", "row"} for attributes in page.of("th"))
    assert verdicts(run)
    assert all(line in page.data["li"] for line in verdicts(run))
    assert {"0123abcd", "2.13.0", str(folders[kind])} <= set(re.findall(r"<td>(.*?)</td>", text))
    links = [attributes[name] for _, attributes in page.elements for name in ("href", "src") if name in attributes]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    data = json.loads(page.data["script"][: page.data["script"].rindex('"use strict"')].strip())
    assert [fact["id"] for fact in data["facts"]] == FACTS
    assert data["facts"][1]["prompt"] == f"The home of {HOSTILE} is"


def test_two_runs_stand_side_by_side(folders, tmp_path):
    path, _ = write_report(folders["edit_table"], folders["tables"], tmp_path / "two.html")
    text = path.read_text("utf-8")
    assert Page(text).open == []
    assert text.count("This run has no such table.") > 0
    assert '<span class="tag">differs</span>' in text
    assert text.index('scope="row">unedited<') > text.index("6 facts that both runs have")
    assert not (folders["edit_table"] / "report.html").exists()


def test_no_text_of_a_fact_or_a_run_can_become_markup(small):
    text = render(small)
    page = Page(text)
    assert page.open == []
    assert (len(page.of("script")), page.of("img")) == (2, [])
    assert HOSTILE not in text
    assert page.data["title"].startswith(HOSTILE)
    assert page.data["td"] == page.data["li"][: len(HOSTILE)] == HOSTILE
    held = json.loads(page.data["script"][: page.data["script"].index('"use strict"')])
    assert held["facts"][0]["prompt"] == HOSTILE


def test_a_page_may_ask_for_nothing(small):
    (policy,) = [item["content"] for item in Page(render(small)).of("meta") if "http-equiv" in item]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert "*" not in policy
    for name in ("css", "js"):
        source = (files(writing.__package__) / f"page.{name}").read_text("utf-8")
        assert not re.search(
            r"url\(|@import|fetch|XMLHttp|innerHTML|outerHTML|insertAdjacent|eval|document\.write", source
        )
        assert "http" not in source.replace("http://www.w3.org/2000/svg", "")


def test_json_stands_in_an_element_and_is_the_same():
    data = {HOSTILE: [HOSTILE, 1.5, None]}
    assert not set(as_json(data)) & set("<>&\u2028\u2029")
    assert json.loads(as_json(data)) == data


def test_a_page_that_would_be_too_large_spares_what_it_can_in_order(small):
    small["data"]["facts"] = [
        fact | {"neighborhood": ["x" * 9000], "paraphrases": ["y"]} for fact in small["data"]["facts"]
    ]
    size = len(render(small).encode())
    text = fitted(small, size - 1000)
    assert len(text.encode()) < size - 1000
    assert small["notes"][1:] == [
        f"Left out, so that the page stays below {(size - 1000) / 1e6:g} MB: the facts’ neighbourhood prompts."
    ]
    assert "paraphrases" in small["data"]["facts"][0]
    assert small["notes"][1] in text.replace("&#39;", "'")


def test_two_thousand_facts_under_seventeen_methods_stay_small():
    rng = np.random.default_rng(0)
    sizes = {"fact": 2000, "edit": 17, "paraphrase": 2, "neighbor": 10}
    dataset = xr.Dataset(
        {
            name: (KINDS["edit_table"][name].dims, rng.random([sizes[d] for d in KINDS["edit_table"][name].dims]))
            for name in (
                "efficacy_success",
                "generalization_accuracy",
                "kl",
                "neighborhood_success",
                "nll_new",
                "nll_true",
            )
        },
        {"fact": range(2000), "edit": [f"method {n}" for n in range(17)]},
    )
    prompt = "The mother tongue of Danielle Darrieux is"
    texts = {"prompt": prompt, "subject": [21, 38], "new": "English", "true": "French"}
    facts = [{"id": str(n), **texts, "paraphrases": [prompt] * 2, "neighborhood": [prompt] * 10} for n in range(2000)]
    assert len(as_json([measurements(dataset), facts]).encode()) < 3_500_000


def test_measures_are_those_of_the_tables(folders):
    run = Results(folders["edit_table"])
    held, rows = measurements(run.dataset), records(run.dataset).set_index(["method", "fact"])
    assert held["edits"] == METHODS
    for key, name in (
        ("efficacy", "efficacy_accuracy"),
        ("generalization", "generalization_accuracy"),
        ("kl", "kl"),
        ("nll_new", "nll_new"),
    ):
        for edit, values in zip(METHODS, held["values"][key], strict=True):
            np.testing.assert_allclose(values, rows.loc[edit, name], rtol=5e-3)


def test_schemes_have_the_unedited_model_before_them(folders):
    run = Results(folders["tables"])
    held = measurements(run.dataset)
    assert held["edits"] == ["unedited", *SCHEMES]
    np.testing.assert_allclose(held["values"]["efficacy"][0], run.dataset["efficacy_unedited"], rtol=5e-3)
    assert held["values"]["residual"][0] == [None] * 6
    last = run.dataset["residual_ratio"].sel(scheme=SCHEMES[1], layer=8)
    np.testing.assert_allclose(held["values"]["residual"][2], last, rtol=5e-3)
    lines, checks = residual_lines(run.dataset), verdicts_by_layer(run.dataset)
    np.testing.assert_allclose(
        lines["values"], run.dataset["residual_ratio"].transpose("fact", "scheme", "layer"), rtol=5e-3
    )
    assert (lines["rows"], lines["xs"]) == (SCHEMES, [4, 5, 6, 7, 8])
    assert checks["layers"] == [4, 5, 6, 7]
    np.testing.assert_allclose(checks["min"], run.dataset["lambda_min"].isel(layer=slice(4)), rtol=5e-3)


def test_rows_of_several_dimensions_are_named_by_all(folders):
    frontier, counts = (measurements(Results(folders[kind]).dataset) for kind in ("frontier", "layer_count"))
    assert frontier["edits"][:3] == ["memit, λ = 10", "memit, λ = 100", "memit+fe, λ = 10"]
    assert counts["edits"][:2] == ["backward-dividing, 1 layer", "backward-dividing, 2 layers"]
    data = Results(folders["frontier"]).dataset
    expected = data["nll_new"].sel(edit="memit+fe", ridge=10)
    np.testing.assert_allclose(frontier["values"]["nll_new"][2], expected, rtol=5e-3)


def test_heat_maps_are_signs_of_the_share_of_their_peak(folders):
    run = Results(folders["locate"])
    held = traces(run.dataset, run.config["provenance"]["tokens"])
    effect = run.dataset["effect"].transpose("fact", "site", "token", "layer").values
    signs = np.array([[[LEVELS.index(sign) for sign in cells] for cells in sites] for sites in held["cells"]])
    shares = effect.reshape(6, 3, -1) / effect.max((2, 3)).reshape(6, 3, 1)
    np.testing.assert_allclose(signs / 63, shares, atol=0.5 / 63 + 1e-12)
    assert held["role"] == [ROLES_OF_TOKENS] * 6


def test_texts_are_read_again_and_marked(folders):
    run = Results(folders["tables"])
    facts, reason = fact_texts(run)
    assert (len(facts), reason) == (6, "")
    rows = list(fact_rows(run, facts))
    spans = [row["prompt"][slice(*row["subject"])] for row in rows]
    assert spans == SUBJECTS
    cut = [row["prompt"][slice(*row["decisive"])] if "decisive" in row else None for row in rows]
    assert cut == ["Ada", None, "ë", None, "'Neil", "Zola"]


def test_traced_facts_are_marked_where_their_role_says(folders):
    run = Results(folders["locate"])
    (fact,) = (fact for fact in fact_texts(run)[0] if fact.subject == "Ada")
    run.config["provenance"]["tokens"] = [["A", "d", "da", " is"]] * 6
    rows = list(fact_rows(run, [fact] * 6))
    assert rows[0]["prompt"][slice(*rows[0]["decisive"])] == "da"


def test_texts_that_are_not_those_of_the_run_are_left_out(folders, tmp_path):
    run = Results(folders["tables"])
    own = run.config["provenance"]["facts"]
    own["source"] = str(tmp_path / "gone.json")
    facts, reason = fact_texts(run)
    assert facts == []
    assert "could not be read" in reason
    changed = tmp_path / "changed.json"
    written_facts(changed, ["Eve", *SUBJECTS[1:]])
    assert "have changed" in fact_texts(run, str(changed))[1]
    assert "are others" in fact_texts(run, "builtin")[1]
    written_facts(tmp_path / "moved.json")
    assert len(fact_texts(run, str(tmp_path / "moved.json"))[0]) == 6
    assert list(fact_rows(run, [])) == [{"id": label} for label in FACTS]


def test_facts_of_two_runs_are_joined_by_id_and_text():
    first = [{"id": "1", "prompt": "a", "new": "x"}, {"id": "2", "prompt": "b", "new": "y"}]
    second = [{"id": "2", "prompt": "b", "new": "y"}, {"id": "1", "prompt": "other", "new": "x"}]
    rows = joined([(first, ""), (second, "")])["rows"]
    assert [(row["id"], row["prompt"], row["at"]) for row in rows] == [
        ("1", "a", [0, None]),
        ("2", "b", [1, 0]),
        ("1", "other", [None, 1]),
    ]
    blind = joined([(first, ""), ([{"id": "2"}], "gone")])
    assert [row["at"] for row in blind["rows"]] == [[0, None], [1, 0]]
    assert blind["notes"] == ["gone"]


def test_differences_are_means_over_the_shared_facts():
    one = {"edits": ["memit", "blue"], "values": {"kl": [[0.1, 0.2, 0.3], [1, 1, 1]]}}
    other = {"edits": ["memit"], "values": {"kl": [[0.5, None, 0.25]]}}
    facts = [{"at": [0, 2]}, {"at": [1, 1]}, {"at": [2, 0]}, {"at": [None, 0]}]
    table = differences({"runs": [one, other], "facts": facts})
    assert [row["label"] for row in table["rows"]] == ["memit"]
    mean = np.mean([0.25 - 0.1, 0.5 - 0.3])
    assert table["rows"][0]["cells"][0]["text"].startswith(f"+{mean:.2f} [")
    assert "3 facts" in table["caption"]
    assert differences({"runs": [one, other], "facts": facts[3:]}) is None


def test_drawings_have_names_of_their_own_and_a_title():
    svg = (
        '<?xml version="1.0"?>\n<svg width="9pt" viewBox="0 0 9 9">\n<metadata>m</metadata><defs><style>*{}</style>'
        '<path id="p1"/></defs><!-- a & b -->\n<use xlink:href="#p1" clip-path="url(#c1)"/></svg>'
    )
    text = inlined(svg, "A-theorem", "<Caption>")
    assert text.startswith("<svg ")
    assert 'aria-labelledby="A-theorem-title"><title id="A-theorem-title">&lt;Caption&gt;</title>' in text
    assert all(part in text for part in ('id="A-theorem-p1"', 'href="#A-theorem-p1"', "url(#A-theorem-c1)"))
    assert not re.search("<style|<!--|metadata|9pt", text)


def test_the_question_is_what_the_run_was_made_with(folders):
    groups = question(Results(folders["tables"]))
    assert groups["Run"]["model’s fingerprint"] == "0123abcd"
    assert groups["Run"]["layers"] == "4-8"
    assert groups["Settings"]["anchor.lr"] == "0.5"
    assert groups["Versions and machine"]["torch"] == "2.13.0"


def test_bad_input_is_said_in_one_line(folders, tmp_path):
    for call, words in (
        (lambda: write_report(tmp_path), "expected the folder of a run"),
        (lambda: write_report(folders["tables"], tmp_path), "expected the folder of a run"),
        (lambda: write_report(folders["tables"], out=tmp_path / "page.pdf"), "expected a file that ends in .html"),
        (lambda: write_report(folders["tables"], out=tmp_path), "expected a file that ends in .html"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def _luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("mode", [0, 1])
def test_words_stand_out_from_their_ground_in_both_modes(mode):
    source = (files(writing.__package__) / "page.css").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    ]
    colors = schemes[0] | schemes[mode]
    grounds = ("ground", "surface", "accent-ground", "warn")
    pairs = [(word, ground) for word in ("text", "muted", "accent") for ground in grounds]
    pairs += [(word, ground) for word in ("good", "bad") for ground in ("ground", "surface")]
    pairs += [("mark-text", "mark"), ("ink", "paper")]
    for word, ground in pairs:
        light, dark = sorted((_luminance(colors[word]), _luminance(colors[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (word, ground)


def test_a_page_of_several_kinds_of_run_needs_no_shared_measure(folders):
    page = page_of([Results(folders["jacobian"]), Results(folders["locate"])])
    assert page["differences"] is None
    assert len(page["data"]["facts"]) == 6
