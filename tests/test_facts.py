"""Facts: the built-in set and every layout of file."""

import json

import pytest

from jacobian_lab.errors import InputError
from jacobian_lab.facts import BUILTIN, load_facts, parse_slice

RECORD = {
    "id": 7,
    "subject": "Ada",
    "prompt": "{} lives in",
    "target_new": " Rome ",
    "target_true": "Bath",
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_builtin_set_is_as_promised():
    facts = load_facts()
    relations = {str(fact.id).partition("/")[0] for fact in facts}
    assert len(facts) >= 160
    assert len(relations) >= 8
    by_relation = {r: {f.target_true for f in facts if str(f.id).startswith(f"{r}/")} for r in relations}
    true_of = {}
    for fact in facts:
        true_of.setdefault(fact.text, fact.target_true)
    for fact in facts:
        relation = str(fact.id).partition("/")[0]
        assert fact.target_new in by_relation[relation] - {fact.target_true}
        assert len(fact.paraphrase_prompts) == 2
        assert len({fact.text, *fact.paraphrase_prompts}) == 3
        assert all(fact.subject in paraphrase for paraphrase in fact.paraphrase_prompts)
        assert len(fact.neighborhood_prompts) >= 5
        assert fact.text not in fact.neighborhood_prompts
        assert all(true_of[prompt] == fact.target_true for prompt in fact.neighborhood_prompts)


def test_a_short_slice_of_the_builtin_set_meets_every_relation():
    assert len({str(fact.id).partition("/")[0] for fact in load_facts(BUILTIN, "0:10")}) == 10


def test_flat_layout_with_defaults(tmp_path):
    (fact,) = load_facts(write(tmp_path / "f.json", [RECORD]))
    assert (fact.id, fact.target_new, fact.text) == (7, "Rome", "Ada lives in")
    assert fact.paraphrase_prompts == fact.neighborhood_prompts == ()


def test_json_lines_and_missing_ids(tmp_path):
    record = {key: value for key, value in RECORD.items() if key != "id"}
    path = write(
        tmp_path / "f.jsonl",
        json.dumps(record) + "\n\n" + json.dumps({**record, "subject": "Bea"}) + "\n",
    )
    assert [(fact.id, fact.subject) for fact in load_facts(path)] == [(0, "Ada"), (1, "Bea")]


def test_counterfact_as_published(tmp_path):
    record = {
        "case_id": 3,
        "requested_rewrite": {
            "prompt": "{} lives in",
            "subject": "Ada",
            "target_new": {"str": "Rome", "id": "Q1"},
            "target_true": {"str": "Bath", "id": "Q2"},
        },
        "paraphrase_prompts": ["Ada's home is"],
        "neighborhood_prompts": ["Bea lives in", "Cleo lives in"],
    }
    (fact,) = load_facts(write(tmp_path / "f.json", [record]))
    assert (fact.id, fact.target_new, fact.target_true) == (3, "Rome", "Bath")
    assert fact.neighborhood_prompts == ("Bea lives in", "Cleo lives in")


def test_zsre_as_published(tmp_path):
    record = {
        "subject": "Ada",
        "src": "Where does Ada live?",
        "answers": ["Rome"],
        "alt": "Bath",
        "rephrase": "Ada lives where?",
        "loc": "nq question: who?",
        "loc_ans": "him",
    }
    (fact,) = load_facts(write(tmp_path / "f.json", [record]))
    assert (fact.prompt, fact.target_new) == ("Where does {} live?", "Rome")
    assert fact.neighborhood_answers == ("him",)


def test_shared_files(shared):
    counterfact = load_facts(shared / "data" / "counterfact_2000.json", "100:104")
    assert [fact.id for fact in counterfact] == [107, 108, 109, 110]
    zsre = load_facts(shared / "data" / "zsre_2000.json")
    assert len(zsre) == 2000
    assert all(len(fact.neighborhood_answers) == len(fact.neighborhood_prompts) == 1 for fact in zsre)


def test_slices():
    assert parse_slice(None, 5) == (0, 5)
    assert parse_slice("1:3", 5) == (1, 3)
    assert parse_slice("3:", 5) == (3, 5)
    assert parse_slice(":2", 5) == (0, 2)


@pytest.mark.parametrize("text", ["3", "a:b", "3:3", "4:2", "0:6", "-1:2", "7:9", ""])
def test_bad_slices(text):
    with pytest.raises(InputError, match="expected a slice"):
        parse_slice(text, 5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "at least one fact"),
        ("", "at least one fact"),
        ("{broken", "neither"),
        ('["text"]', "expected an object"),
        ([{**RECORD, "subject": None}], "field 'subject', got None"),
        (
            [{k: v for k, v in RECORD.items() if k != "target_new"}],
            "field 'target_new', got nothing",
        ),
        ([{k: v for k, v in RECORD.items() if k != "prompt"}], "field 'prompt', got nothing"),
        ([{**RECORD, "prompt": "Ada lives in"}], "got 0 .*'Ada' stands in it"),
        ([{**RECORD, "prompt": "Bea lives in"}], "'Ada' does not appear"),
        ([{**RECORD, "prompt": "{} and {} live in"}], "got 2"),
        ([{**RECORD, "target_new": "  "}], "target_new that is not empty"),
        ([{**RECORD, "subject": ""}], "subject that is not empty"),
        ([{**RECORD, "paraphrase_prompts": "no list"}], "list of texts"),
        ([RECORD, RECORD], "own id, got 7 twice"),
        ([{**RECORD, "id": 1.5}], "whole number or a string as id"),
        (
            [{"subject": "Ada", "src": "Where does Bea live?", "answers": ["Rome"]}],
            "does not appear",
        ),
        ([{"requested_rewrite": "text"}], "expected an object as requested_rewrite"),
        ([{"subject": "Ada", "src": "Where does Ada live?", "answers": "Rome"}], "list of answers, got 'Rome'"),
        ('[{"subject": "\\ud800", "prompt": "{} is", "target_new": "x"}]', "lone surrogate"),
        ([{**RECORD, "id": 2**70}], "whole number or a string as id"),
        ("[" * 100_000, "neither"),
    ],
)
def test_bad_files(tmp_path, content, words):
    with pytest.raises(InputError, match=words) as caught:
        load_facts(write(tmp_path / "f.json", content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b'[{"subject": "M\xe9xico"}]')
    with pytest.raises(InputError, match="UTF-8, got byte 0xe9"):
        load_facts(path)


def test_line_separators_inside_a_record_do_not_end_it(tmp_path):
    record = {**RECORD, "paraphrase_prompts": ["one\u2028two", "three\x85four"]}
    path = write(tmp_path / "f.jsonl", json.dumps(record, ensure_ascii=False))
    assert load_facts(path)[0].paraphrase_prompts == ("one\u2028two", "three\x85four")


def test_absent_files(tmp_path):
    with pytest.raises(InputError, match="not there"):
        load_facts(tmp_path / "none.json")
    with pytest.raises(InputError, match="a folder"):
        load_facts(tmp_path)
