"""What is trained on: nothing that is edited or asked, the same by seed, refused where there is nothing."""

import pytest

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.training.examples import disjoint_facts, training_examples, unrelated_rows

EDITED = (Fact("a", "Rome", "{} lies in", "Spain", "Italy", ("Where is Rome? In",), ("Milan lies in",)),)
OTHERS = (
    Fact(1, "ROME", "{} is the capital of", "Spain", "Italy", ("Rome, capital of",), ("Paris is the capital of",)),
    Fact(2, "Oslo", "{} lies in", "Chad", "Norway", ("Where is Oslo? In", "Oslo is in"), ("Bergen lies in",)),
    Fact(3, "Milan", "{} lies in", "Chad", "Italy", ("Where is Milan? In",), ("Turin lies in",)),
    Fact(
        4, "Lima", "{} lies in", "Chad", "Peru", ("Where is Lima? In", "Lima is in"), ("Ica lies in", "Tacna lies in")
    ),
    Fact(5, "Cairo", "{} lies in", "Chad", "Egypt"),
)


def test_nothing_that_is_edited_or_asked_is_trained_on():
    """A subject in capitals, and a prompt that is an edited fact's neighbour, are known again."""
    assert [fact.id for fact in disjoint_facts(EDITED, OTHERS)] == [2, 4, 5]


def test_lessons_are_the_seeds(family_model):
    some = disjoint_facts(EDITED, OTHERS)
    found = training_examples(family_model, some, 0, 9)
    assert len(found) == 2  # Cairo has neither another wording nor a neighbour
    assert training_examples(family_model, some, 0, 9) == found
    assert training_examples(family_model, some[1:], 0, 9) == found[1:]  # whoever else is there
    assert any(training_examples(family_model, some, seed, 9) != found for seed in range(1, 9))
    for fact, lesson in zip(some, found, strict=False):
        assert lesson.edit == family_model.text_prompt(fact.text, "Chad")
        assert lesson.other in [family_model.text_prompt(text, "Chad") for text in fact.paraphrase_prompts]
        own = [family_model.text_prompt(text, fact.target_true) for text in fact.neighborhood_prompts]
        assert lesson.unrelated in own


def test_every_edit_has_an_unrelated_row(tiny):
    some = disjoint_facts(EDITED, OTHERS)
    rows = unrelated_rows(tiny, 4, some)
    expected = [tiny.text_prompt(f"{name} lies in", own) for name, own in (("Cairo", "Egypt"), ("Lima", "Peru"))]
    assert rows[:2] == expected
    assert rows[3] == rows[0]


def test_nothing_to_train_on_is_refused(tiny):
    with pytest.raises(InputError, match="expected facts beside those that are edited, got none"):
        unrelated_rows(tiny, 1, [])
    with pytest.raises(InputError, match=r"expected facts to train on .* got none among 1"):
        training_examples(tiny, OTHERS[-1:], 0, 9)
