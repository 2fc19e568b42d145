"""Built-in facts, whose digest stands in every run that was made with them, and questions that follow from them."""

from collections import defaultdict
from dataclasses import replace

from jacobian_lab.caching import content_key
from jacobian_lab.facts.builtin import FOLLOWING, reasoning_questions
from jacobian_lab.facts.fact import describe
from jacobian_lab.facts.reading import load_facts


def test_the_digest_is_that_of_earlier_runs():
    assert content_key(describe(load_facts())) == "170d36be48577b5835c2c45d"


def test_reasoning_asks_further_questions_of_the_same_facts():
    facts, reasoning = load_facts(), load_facts("builtin-reasoning")
    assert len(reasoning) == 184
    plain = [replace(fact, probes=()) for fact in reasoning]
    assert plain == [fact for fact in facts if fact in plain]
    assert all(1 <= len(fact.probes) <= FOLLOWING for fact in reasoning)
    assert all(fact.subject in probe.prompt for fact in reasoning for probe in fact.probes)


def test_every_question_has_answers_for_every_new_answer():
    targets = defaultdict(set)
    for fact in load_facts():
        targets[str(fact.id).partition("/")[0]].add(fact.target_true)
    for relation, questions in reasoning_questions().items():
        for question in questions:
            assert set(question["answers"]) == targets[relation]
            assert set(question["answered"]) <= targets[relation]
            assert all(question[name].count("{}") == 1 for name in ("prompt", "second_hop"))


def test_no_answer_holds_for_the_true_fact():
    (eiffel,) = [fact for fact in load_facts("builtin-reasoning") if fact.id == "landmark_city/the Eiffel Tower"]
    assert [probe.answers for probe in eiffel.probes] == [
        ("England", "the United Kingdom", "Great Britain"),
        ("English",),
    ]
    assert {probe.group for probe in eiffel.probes} == {"reasoning"}
    author = [fact for fact in load_facts("builtin-reasoning") if str(fact.id).startswith("author/")]
    assert {fact.target_true for fact in author} == {"Mark Twain", "Stephen King"}
