"""The page of a run in a browser: searched, sorted, opened and turned by mouse and keyboard, with nothing asked for.

CONTRIBUTING.md says how to get the browser; without one these tests are left out.
"""

import itertools
import os
import shutil

import pytest
from helpers.pages import HOSTILE, run_with_facts
from helpers.runs import FACTS

from jacobian_lab.report.page import building
from jacobian_lab.report.page.building import page_of
from jacobian_lab.report.page.writing import render
from jacobian_lab.report.results import Results

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
CHROMIUM = os.environ.get("JACOBIAN_LAB_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Pages without figures, which take a while to draw and which no test here looks at."""
    root = tmp_path_factory.mktemp("browser")
    runs = {kind: Results(run_with_facts(root / kind, kind, kind)) for kind in ("tables", "locate", "frontier")}
    again = Results(run_with_facts(root / "again", "again", "tables"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "drawings", lambda run, side="": {})
        texts = {kind: render(page_of([run])) for kind, run in runs.items()}
        texts["two"] = render(page_of([runs["tables"], again]))
        patch.setattr(building, "fact_texts", lambda run, source=None: ([], "gone"))
        texts["blind"] = render(page_of([runs["tables"]]))
    for name, text in texts.items():
        (root / f"{name}.html").write_text(text, "utf-8")
    return root


@pytest.fixture
def opened(browser, paths):
    """Open a page; afterwards nothing may have been asked for or complained of."""
    pages, requests, complaints = [], [], []

    def open_page(name, size=DESK):
        page = browser.new_page(viewport=size)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto((paths / f"{name}.html").as_uri())
        pages.append(page)
        return page

    yield open_page
    assert complaints == []
    assert requests == [(page.url.partition("#")[0]) for page in pages]
    for page in pages:
        page.close()


def shown(page):
    """Ids of the facts on the page, in their order."""
    return [text.strip() for text in page.locator(".facts tbody .prompt .id").all_inner_texts()]


def column(page, name):
    return page.locator(f'.facts td[data-name="{name}"]').all_inner_texts()


@pytest.mark.parametrize("name", ["tables", "locate", "frontier", "two", "blind"])
def test_a_page_of_every_form_opens_a_fact(name, opened):
    page = opened(name)
    assert page.locator(".open").count() == 6
    page.locator(".open").nth(1).click()
    assert page.locator(".detail").count() == 1
    assert page.locator(".detail table").count() > 0
    assert HOSTILE.split("\u2028")[0] in page.locator("#facts").inner_text() or name == "blind"
    assert page.title() != "broken"
    assert page.evaluate("document.images.length + document.scripts.length") == 2


def test_facts_are_searched_by_all_words(opened):
    page = opened("tables")
    page.get_by_label("Search").fill("HOME zola")
    assert shown(page) == [FACTS[5]]
    assert page.get_by_role("status").inner_text() == "1 of 6 facts"
    page.get_by_label("Search").fill("no such fact")
    assert page.get_by_role("status").inner_text() == "0 of 6 facts"
    page.get_by_label("Search").fill("")
    assert len(shown(page)) == 6


def test_facts_are_sorted_by_a_column_up_and_down(opened):
    page = opened("tables")
    head, name = page.get_by_role("columnheader", name="Residual left"), "Residual left"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(text) for text in column(page, name)]
    assert values == sorted(values)
    page.keyboard.press("Enter")  # the heading has kept the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, name)] == values[::-1]
    page.get_by_label("Sort by", exact=True).select_option("order")
    page.get_by_label("Change the direction of sorting").click()
    assert shown(page) == FACTS


def test_facts_are_filtered_and_shown_under_another_scheme(opened):
    page = opened("tables")
    before = column(page, "Residual left")
    page.get_by_label("Method or scheme").select_option(label="one-layer")
    assert column(page, "Residual left") != before
    page.get_by_label("Show", exact=True).select_option(label="efficacy: yes")
    assert shown(page) == []  # random numbers are never 1


def test_a_fact_is_opened_and_closed_by_keyboard(opened):
    page = opened("tables")
    page.locator(".open").first.focus()
    page.keyboard.press("Enter")
    opener = page.locator(".open").first
    assert opener.get_attribute("aria-expanded") == "true"
    assert page.locator(f"#{opener.get_attribute('aria-controls')} h3").inner_text() == f"Fact {FACTS[0]}"
    assert page.evaluate("document.activeElement.className") == "open"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator(".detail").count() == 0


def test_a_detail_has_schemes_residuals_and_verdicts(opened):
    page = opened("tables")
    page.locator(".open").first.click()
    detail = page.locator(".detail")
    captions = detail.locator("caption").all_inner_texts()
    assert captions[0] == "Before and after, by method"
    assert {"Residual left, by layer", "J by layer: S = (J + Jᵀ)/2"} <= set(captions)
    assert detail.locator("svg polyline").count() == 5
    assert detail.locator("svg.range title").count() == 4


def test_two_runs_have_their_differences(opened):
    page = opened("two")
    first, second, less = column(page, "Residual left")[0].replace("| ", "").split()
    assert (first, less) == (second, "0.00")
    page.get_by_label("Method of B").select_option(label="one-layer")
    first, second, less = column(page, "Residual left")[0].replace("| ", "").split()
    assert abs(float(second) - float(first) - float(less.replace("−", "-"))) < 0.011
    assert page.get_by_role("heading", name="B less A").count() == 1


def test_a_phone_needs_no_sideways_scrolling(opened):
    page = opened("tables", PHONE)
    page.locator(".open").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_everything_has_a_name_and_a_place(opened):
    page = opened("tables")
    page.locator(".open").first.click()
    nameless = """[...document.querySelectorAll("input, select, button, svg[role=img], [role=region]")].filter(
        (e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label")))"""
    assert page.evaluate(f"{nameless}.length") == 0
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.locator("header, main, footer, nav[aria-label]").count() == 4
    assert page.evaluate("[...document.querySelectorAll('th')].every((e) => e.scope)")


def test_many_facts_are_paged(opened, browser, paths):
    page = opened("tables")
    page.evaluate("""() => {
        const data = JSON.parse(document.getElementById("facts-data").textContent);
        const many = (values) => Array.from({length: 2000}, (_, n) => values[n % 6]);
        const run = data.runs[0];
        for (const key in run.values) run.values[key] = run.values[key].map(many);
        for (const name of ["lines", "verdicts"]) run[name] = null;
        data.facts = many(data.facts).map((fact, n) => ({...fact, id: String(n), at: [n]}));
        const script = document.scripts[1].textContent;
        document.getElementById("facts-data").textContent = JSON.stringify(data);
        document.getElementById("facts-app").replaceChildren();
        const again = document.createElement("script");
        again.textContent = script;
        document.body.append(again);
    }""")
    assert page.get_by_role("status").inner_text() == "2000 of 2000 facts, page 1 of 80"
    assert len(shown(page)) == 25
    page.get_by_role("button", name="Next →").click()
    assert shown(page)[0] == "25"
    took = page.evaluate("""() => {
        const start = performance.now();
        document.querySelector('[data-sort="residual"]').click();
        return performance.now() - start;
    }""")
    assert took < 5000, "a sort of 2,000 facts is a matter of milliseconds, on a machine that has time"
