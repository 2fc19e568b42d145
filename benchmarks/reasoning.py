"""Second hops of the questions in `builtin-reasoning`, asked of an unedited model about each new answer itself.

A question is worth asking after an edit if the model can answer its second hop: the file
`jacobian_lab/facts/data/reasoning.json` lists the answers of which the embedded model can, as ``answered``.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import jacobian_lab as jl
from jacobian_lab.evaluation.metrics import accuracy
from jacobian_lab.facts.builtin import reasoning_questions
from jacobian_lab.model.sources import DEFAULT_MODEL


class Hop(NamedTuple):
    """A second hop about one answer.

    Attributes:
        relation: The relation of the edited facts.
        question: The question with ``{}``.
        new_answer: The answer that the hop is about.
        answers: Acceptable continuations.
        listed: The file lists it as answered.
    """

    relation: str
    question: str
    new_answer: str
    answers: tuple[str, ...]
    listed: bool


def main() -> None:
    """Ask every second hop, and print those that the model does not answer; status 1 if a listed one is among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = jl.load_model(options.model, device=options.device)
    every = list(hops())
    rows = [
        model.text_prompt(hop.question.replace("{}", hop.new_answer), text) for hop in every for text in hop.answers
    ]
    verdicts = accuracy(model, rows).split([len(hop.answers) for hop in every])
    right = {hop: bool(own.any()) for hop, own in zip(every, verdicts, strict=True)}
    for hop in every:
        if right[hop] != hop.listed:
            print(
                f"{hop.relation}: {hop.question} [{hop.new_answer}] is {'' if hop.listed else 'not '}listed:", end=" "
            )
            print("answered" if right[hop] else f"expected one of {', '.join(hop.answers)}")
    failed = [hop for hop in every if not right[hop]]
    print(f"{len(every) - len(failed)} of {len(every)} second hops answered by {model.name}; not answered:")
    for hop in failed:
        print(f"  {hop.relation}: {hop.question.replace('{}', hop.new_answer)} {' / '.join(hop.answers)}")
    if any(hop.listed for hop in failed):
        raise SystemExit(1)


def hops() -> Iterator[Hop]:
    """List the second hops of the file.

    Yields:
        A hop for each question and each answer of its relation.
    """
    for relation, questions in reasoning_questions().items():
        for question in questions:
            for new_answer, answers in question["answers"].items():
                listed = new_answer in question["answered"]
                yield Hop(relation, question["second_hop"], new_answer, tuple(answers), listed)


if __name__ == "__main__":
    main()
