"""Every published layout, by invented records with the published names and nesting."""

import json

import pytest
from helpers.published import (
    COUNTERFACT,
    KNOWEDIT,
    MQUAKE,
    PUBLISHED,
    QAEDIT,
    RIPPLE,
    WILD,
    ZSRE,
)

from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.questions import neighborhood
from jacobian_lab.facts.fact import Probe
from jacobian_lab.facts.layouts import layout_of, meant
from jacobian_lab.facts.reading import read_facts


def facts_of(tmp_path, *records, **how):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(records), "utf-8")
    return read_facts(path, **how).facts


def reason_of(tmp_path, record):
    good = {"subject": "Ada", "prompt": "{} lives in", "target_new": "Rome"}
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record, good]), "utf-8")
    (refused,) = read_facts(path, on_bad_record="skip").refused
    return refused.reason


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_field_of_a_published_layout_is_unknown(name):
    layout = layout_of(PUBLISHED[name])
    assert layout.unknown(PUBLISHED[name]) == []
    assert layout.unknown(PUBLISHED[name] | {"paraphrases": []}) == ["paraphrases"]


def test_a_layout_is_told_by_its_record():
    flat = {"KnowEdit", "QAEdit", "WILD"}
    for name, record in PUBLISHED.items():
        assert layout_of(record).name == ("flat" if name in flat else name)


def test_a_misspelt_field_is_told_what_it_may_be_meant_for():
    assert meant("paraphrases") == "paraphrase_prompts"
    assert meant("neighbourhood_prompts") == "neighborhood_prompts"
    assert meant("zzz") is None


def test_counterfact_as_published(tmp_path):
    (fact,) = facts_of(tmp_path, COUNTERFACT)
    assert (fact.id, fact.subject, fact.prompt) == (3, "Ada", "{} lives in")
    assert (fact.target_new, fact.target_true) == ("Rome", "Bath")
    assert fact.paraphrase_prompts == ("Ada's home is",)
    assert fact.neighborhood_prompts == ("Bea lives in", "Cleo lives in")
    assert fact.probes == ()


def test_zsre_as_published_ends_the_neighbourhood_prompt_as_the_flat_file_does(tmp_path):
    (fact,) = facts_of(tmp_path, ZSRE)
    assert (fact.prompt, fact.target_new, fact.target_true) == ("Where does {} live?", "Rome", "")
    assert fact.paraphrase_prompts == ("Ada Vale lives where?",)
    assert fact.neighborhood_prompts == ("nq question: who played the king in the old film?",)
    assert fact.neighborhood_answers == ("Dan",)
    (ended,) = facts_of(tmp_path, ZSRE | {"loc": ZSRE["loc"] + "? "})
    assert ended.neighborhood_prompts == fact.neighborhood_prompts


def test_zsre_in_the_published_layout_gives_the_facts_of_the_shared_flat_file(tmp_path, shared):
    flat = json.loads((shared / "data" / "zsre_2000.json").read_text("utf-8"))
    published = [
        {
            "subject": record["subject"],
            "src": record["prompt"].replace("{}", record["subject"]),
            "answers": [record["target_new"]],
            "rephrase": record["paraphrase_prompts"][0],
            "loc": record["neighborhood_prompts"][0].removesuffix("?"),
            "loc_ans": record["neighborhood_prompts_answers"][0],
            "id": record["id"],
        }
        for record in flat
    ]
    assert facts_of(tmp_path, *published) == read_facts(shared / "data" / "zsre_2000.json").facts


def test_knowedit_keeps_portability_as_probes_and_locality_as_neighbourhood(tmp_path):
    (fact,) = facts_of(tmp_path, KNOWEDIT)
    assert (fact.prompt, fact.target_new, fact.target_true) == ("{} was born in", "Rome", "Oslo")
    assert fact.paraphrase_prompts == ("The birthplace of Mira Vale is",)
    assert fact.probes == (
        Probe("portability: Reasoning", "Mira Vale's country of birth is", ("Italy", "Italian Republic")),
        Probe("portability: Subject_Aliasing", "M. Vale was born in", ("Rome",)),
    )
    assert fact.neighborhood_prompts == ("The father of Mira Vale is", "Ana was born in", "Bob was born in")
    assert fact.neighborhood_answers == ("Tom Vale", "Bern", "Nice")


def test_knowedit_with_nothing_beside_the_edit(tmp_path):
    (fact,) = facts_of(tmp_path, KNOWEDIT | {"portability": {}, "locality": {}, "rephrase_prompt": ""})
    assert fact.probes == fact.neighborhood_prompts == fact.neighborhood_answers == ()


def test_knowedit_wikibio_has_other_names(tmp_path):
    record = {"text": "This is about mira vale.", "labels": "She is old.", "concept": "mira vale", "locality": {}}
    (fact,) = facts_of(tmp_path, record)
    assert (fact.subject, fact.prompt, fact.target_new) == ("mira vale", "This is about {}.", "She is old.")


def test_portability_with_new_question_and_new_answer(tmp_path):
    portability = {"Recalled Relation": "(a, b, c)", "New Question": "Which land has it?", "New Answer": "Italy"}
    (fact,) = facts_of(tmp_path, ZSRE | {"portability": portability})
    assert fact.probes == (Probe("portability", "Which land has it?", ("Italy",)),)


def test_zsre_with_portability_is_edited_to_what_its_questions_follow_from(tmp_path):
    record = ZSRE | {"portability": {"New Question": "Which land has it?", "New Answer": "England"}}
    (fact,) = facts_of(tmp_path, record)
    assert (fact.target_new, fact.target_true) == ("Bath", "Rome")
    (same,) = facts_of(tmp_path, record | {"answers": ["Bath", "Rome"]})
    assert (same.target_new, same.target_true) == ("Bath", "Rome")
    for nothing in ({}, None):
        (plain,) = facts_of(tmp_path, record | {"portability": nothing})
        assert (plain.target_new, plain.target_true) == ("Rome", "")
    del record["alt"]
    assert "expected alt, which the portability questions follow from" in reason_of(tmp_path, record)


@pytest.mark.parametrize("prompt", ["loc", "neighborhood_prompts"])
def test_answers_of_neighbourhood_prompts_are_stripped(tmp_path, prompt):
    answer = {"loc": "loc_ans", "neighborhood_prompts": "neighborhood_prompts_answers"}[prompt]
    for value in (" Oslo", "Oslo ", "\tOslo\n"):
        records = {"loc": ZSRE | {answer: value}, "neighborhood_prompts": WILD | {prompt: ["B is in"], answer: [value]}}
        (fact,) = facts_of(tmp_path, records[prompt])
        assert fact.neighborhood_answers[0] == "Oslo"


def test_neighbourhood_prompts_need_no_answer(tmp_path):
    questions = {
        "Forgetfulness": [{"prompt": "B is in", "ground_truth": []}, {"prompt": "C is in", "ground_truth": ["Oslo"]}]
    }
    lists = {"Forgetfulness": {"prompt": ["B is in", "C is in"], "ground_truth": [None, "Oslo"]}}
    for locality in (questions, lists):
        (fact,) = facts_of(tmp_path, KNOWEDIT | {"locality": locality})
        assert fact.neighborhood_prompts == ("B is in", "C is in")
        assert fact.neighborhood_answers == ("", "Oslo")
        assert neighborhood(fact) == [("B is in", ""), ("C is in", "Oslo")]
    (silent,) = facts_of(tmp_path, ZSRE | {"loc_ans": None})
    assert silent.neighborhood_answers == ("",)


def test_further_questions_without_an_answer_are_counted_with_their_place(tmp_path):
    path = tmp_path / "f.json"
    hop = {"question": "who?", "answer": None, "answer_alias": []}
    records = [KNOWEDIT, ZSRE, MQUAKE | {"new_single_hops": [hop, hop]}]
    path.write_text(json.dumps(records), "utf-8")
    file = read_facts(path)
    assert file.unanswered == {"record 0": 1, "record 2": 2}
    assert file.left_out() == {"unanswered": ["record 0: 1", "record 2: 2"]}
    assert file.notes() == ["further questions without an answer, not asked: 3 (record 0: 1; record 2: 2)"]
    assert read_facts(path, "1:3").unanswered == {"record 2": 2}


@pytest.mark.parametrize(
    ("record", "unknown", "other"),
    [
        (COUNTERFACT, "requested_rewrite.rephrase", None),
        (MQUAKE, "requested_rewrite.target_nwe", "target_new"),
        (KNOWEDIT, "portability.ground_thruth", "ground_truth"),
        (KNOWEDIT, "locality.answers", "answer"),
        (WILD | {"probes": [{"group": "why", "prompt": "what?", "answers": ["x"]}]}, "probes.anwsers", "answers"),
    ],
)
def test_misspelt_fields_inside_a_field_are_named(record, unknown, other):
    field, _, name = unknown.partition(".")
    holder = json.loads(json.dumps(record))
    inner = holder[field]
    while isinstance(inner, list) or "prompt" not in inner:
        inner = inner[0] if isinstance(inner, list) else next(iter(inner.values()))
    inner[name] = ["x"]
    assert layout_of(holder).unknown(holder) == [unknown]
    assert meant(unknown) == other


def test_what_is_null_is_as_if_it_were_absent(tmp_path):
    for record in (*PUBLISHED.values(), WILD | {"probes": [{"group": "why", "prompt": "what?", "answers": ["x"]}]}):
        without = [name for name in record if name not in {"id", "case_id"}]
        expected = {name: _read_or_reason(tmp_path, _less(record, name)) for name in without}
        assert {name: _read_or_reason(tmp_path, record | {name: None}) for name in without} == expected
    full = WILD | {"target_true": "Oslo", "join": "", "id": 0, "ground_truth": None}
    nulls = dict.fromkeys(("target_true", "join", "id", "case_id", "probes", "neighborhood_prompts"))
    assert facts_of(tmp_path, full | nulls) == facts_of(tmp_path, _less(full, *nulls))
    rewrite = COUNTERFACT["requested_rewrite"] | {"target_true": None, "join": None}
    (fact,) = facts_of(tmp_path, COUNTERFACT | {"requested_rewrite": rewrite})
    assert (fact.target_true, fact.join) == ("", None)
    (fact,) = facts_of(tmp_path, QAEDIT | {"target_new": None, "target_true": {"str": None}})
    assert (fact.target_new, fact.target_true) == ("Mira Vale", "")


def _less(record, *names):
    return {name: value for name, value in record.items() if name not in names}


def _read_or_reason(tmp_path, record):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record]), "utf-8")
    file = read_facts(path, on_bad_record="skip", on_repeat="keep")
    return file.facts, file.refused, file.unanswered


def test_mquake_gives_one_fact_a_rewrite_and_the_questions_to_the_first(tmp_path):
    first, second = facts_of(tmp_path, MQUAKE)
    assert (first.id, first.text, first.target_new) == ("7/0", "the blue game was created in the country of", "India")
    assert (second.id, second.prompt, second.target_true) == ("7/1", "The head of {} is", "Bob")
    assert first.probes == (
        Probe("multi-hop", "Who heads the country of the blue game?", ("Ana", "Ana A.")),
        Probe("multi-hop", "The blue game's country is headed by whom?", ("Ana", "Ana A.")),
        Probe("single-hop", "Where was the blue game created?", ("India", "Bharat")),
    )
    assert second.probes == ()


def test_mquake_with_one_rewrite_keeps_its_own_id(tmp_path):
    (fact,) = facts_of(tmp_path, MQUAKE | {"requested_rewrite": MQUAKE["requested_rewrite"][:1]})
    assert fact.id == 7


def test_mquake_cases_that_share_a_rewrite_are_edited_once_and_keep_all_questions(tmp_path):
    other = MQUAKE | {"case_id": 8, "questions": ["Who heads the land of the blue game?"], "new_single_hops": []}
    facts = facts_of(tmp_path, MQUAKE, other, on_repeat="first")
    assert [fact.id for fact in facts] == ["7/0", "7/1"]
    assert [probe.prompt for probe in facts[0].probes][-1] == "Who heads the land of the blue game?"
    assert len(facts[0].probes) == 4


def test_qaedit_as_published(tmp_path):
    (fact,) = facts_of(tmp_path, QAEDIT)
    assert (fact.id, fact.prompt, fact.target_new) == (20, "who wrote the {}?", "Mira Vale")
    assert fact.paraphrase_prompts == ("Which author has the song of the red river?",)
    assert fact.neighborhood_prompts == ("who is the mayor of the town", "when was it")
    assert fact.neighborhood_answers == ("Tom", "1994")


def test_wild_as_easyedit_has_it(tmp_path):
    (fact,) = facts_of(tmp_path, WILD)
    assert (fact.prompt, fact.target_new, fact.target_true) == ("Where does {} end?", "Rome", "Oslo")
    assert fact.paraphrase_prompts == ("The end of the red river is where?",)
    assert (fact.neighborhood_prompts, fact.neighborhood_answers) == (("who sang the tune",), ("Ana",))


@pytest.mark.parametrize("on_bad_record", ["refuse", "skip"])
def test_rippleedits_own_records_are_refused_in_one_line(tmp_path, on_bad_record):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([RIPPLE] * 30), "utf-8")
    with pytest.raises(InputError, match=r"got records of RippleEdits, .*: take the same facts from KnowEdit"):
        read_facts(path, on_bad_record=on_bad_record)
    (fact,) = facts_of(tmp_path, RIPPLE | {"subject": "Mira", "prompt": "{} lives in", "target_new": "Rome"})
    assert fact.subject == "Mira"


def test_one_s_own_probes(tmp_path):
    probe = {"group": "why", "prompt": "Mira Vale's land is ", "answers": ["Italy", " Italia"]}
    (fact,) = facts_of(tmp_path, WILD | {"probes": [probe]})
    assert fact.probes == (Probe("why", "Mira Vale's land is", ("Italy", "Italia")),)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (MQUAKE | {"requested_rewrite": []}, "at least one rewrite"),
        (MQUAKE | {"requested_rewrite": ["text"]}, "an object as requested_rewrite"),
        (MQUAKE | {"new_single_hops": "text"}, "list of objects as new_single_hops"),
        (KNOWEDIT | {"portability": "text"}, "questions with their answers"),
        (KNOWEDIT | {"locality": {"a": {"prompt": ["x", "y"], "ground_truth": ["z"]}}}, "got 1 for 2"),
        (KNOWEDIT | {"ground_truth": [True]}, "answers as texts"),
        (WILD | {"probes": [{"group": "why", "prompt": "what?", "answers": []}]}, "answers for a probe"),
        (WILD | {"probes": ["text"]}, "probes with group, prompt and answers"),
        (WILD | {"probes": "text"}, "list of objects in the field 'probes'"),
        (WILD | {"neighborhood_prompts": ["a", "b"], "neighborhood_prompts_answers": ["c"]}, "an answer for each"),
    ],
)
def test_records_that_do_not_hold_to_their_layout(tmp_path, record, words):
    assert words in reason_of(tmp_path, record)
