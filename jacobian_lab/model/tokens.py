"""Token ids of facts and templates, the decisive position and the answer's span.

Prompt and answer are tokenised together, as running text has them, and never again; the decisive token is
found by the fast tokenizer's character offsets; nothing here depends on the tokenizer's padding side or on
padding and truncation that its file may have switched on, or changes them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.chat import Chat, opens_turns
from jacobian_lab.model.joint import joint

BARE = "{}"
"""The template that adds nothing."""

KL_PROMPT = "{} is a"
"""The prompt that the KL term of the anchor's loss is taken on."""


@dataclass(frozen=True)
class Prompt:
    """A row of token ids with the places that matter in it.

    Attributes:
        ids: The prompt's ids followed by all but the last id of the answer.
        decisive: Position of the decisive token, the last one of the subject; in prompts without a subject the
            last one before the answer.
        answer: Ids of the answer; empty if the row has none. Position ``len(ids) - len(answer) + j``
            of the model's output predicts ``answer[j]``.
    """

    ids: tuple[int, ...]
    decisive: int
    answer: tuple[int, ...] = ()

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt, without the answer's."""
        return len(self.ids) - max(len(self.answer) - 1, 0)

    @property
    def tail(self) -> int:
        """Tokens from the decisive one to the end of the row, both counted."""
        return len(self.ids) - self.decisive

    def cut(self) -> "Prompt":
        """The row up to its decisive token: by causality all that this token's state depends on."""
        return Prompt(self.ids[: self.decisive + 1], self.decisive)


@dataclass(eq=False)
class Passing:
    """The rows that are being run, for hooks that judge a row by its prompt.

    Attributes:
        prompts: Tokens of each row that are its prompt.
        routes: Decisions of a router, for the passes that go on from this one token by token.
    """

    prompts: Sequence[int]
    routes: dict[Any, Any] = field(default_factory=dict)


PASSING: ContextVar[Passing | None] = ContextVar("passing", default=None)
"""What is being run, if that is known."""


@contextmanager
def passing(prompts: Sequence[int]) -> Iterator[None]:
    """Say what is being run within."""
    token = PASSING.set(Passing(prompts))
    try:
        yield
    finally:
        PASSING.reset(token)


@dataclass(frozen=True)
class _Encoded:
    """Ids of a text with their places in it, less an EOS, which would stand between prompt and answer."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def covering(self, place: int) -> int | None:
        """The last token that covers a character."""
        covering = [i for i, (start, end) in enumerate(self.offsets) if start <= place < end]
        return covering[-1] if covering else None


def fact_prompt(
    tokenizer: Any, fact: Fact, template: str = BARE, *, answer: bool = False, chat: Chat | None = None
) -> Prompt:
    """Tokenise ``template(prompt(subject))``, with the answer to be learnt after it if asked for."""
    return _locate(tokenizer, *_parts(fact, template), (answer,), chat)[0]


def fact_prompts(
    tokenizer: Any, fact: Fact, template: str = BARE, *, chat: Chat | None = None
) -> tuple[Prompt, Prompt]:
    """Tokenise ``template(prompt(subject))`` once, for the row without and the row with the answer to be learnt."""
    prompt, answered = _locate(tokenizer, *_parts(fact, template), (False, True), chat)
    return prompt, answered


def kl_prompt(tokenizer: Any, fact: Fact, chat: Chat | None = None) -> Prompt:
    """Tokenise ``"{subject} is a"``."""
    before, _, after = KL_PROMPT.partition("{}")
    return _locate(tokenizer, before, fact, after, (False,), chat)[0]


def subject_start(tokenizer: Any, fact: Fact, chat: Chat | None = None) -> int:
    """Place of the subject's first token in the bare prompt."""
    before, _, after = _parts(fact, BARE)
    prompt = _prompt(tokenizer, before + fact.subject + after, chat)
    first = len(before) if chat is None else chat.place(tokenizer, prompt.text, before, fact.subject, after)
    return next(place for place, (_, end) in enumerate(prompt.offsets) if end > first)


def text_prompt(
    tokenizer: Any, text: str, answer: str = "", join: str | None = None, *, chat: Chat | None = None
) -> Prompt:
    """Tokenise a prompt as it stands, with an answer after it if one is given."""
    prompt, following = _prompt(tokenizer, text, chat), tuple[int, ...]()
    if answer:
        prompt, following = _answered(tokenizer, text, prompt, answer, join, chat)
    if not prompt.ids:
        raise InputError(f"expected a prompt with at least one token, got {text!r}: give another")
    return Prompt(prompt.ids + following[:-1], len(prompt.ids) - 1, following)


def pad(rows: Sequence[Prompt]) -> Int[Tensor, "row token"]:
    """Ids of rows side by side, filled up on the right.

    Rows keep their positions, and by causality what fills them up changes nothing before it, so no
    attention mask is needed.
    """
    width = max(len(row.ids) for row in rows)
    return torch.tensor([row.ids + (0,) * (width - len(row.ids)) for row in rows])


def check_bos(tokenizer: Any, ids: Sequence[int], text: str) -> None:
    """Refuse a doubled BOS."""
    bos = tokenizer.bos_token_id
    count = list(ids).count(bos) if bos is not None else 0
    if count > 1 and (ids[1] == bos or not opens_turns(tokenizer)):
        raise InputError(f"expected one BOS at most, got {count} in {text!r}: remove it from the text")


def check_ids(tokenizer: Any, ids: Sequence[int], rows: int) -> None:
    """Refuse tokens that a model has no embedding of, as added ones may be."""
    beyond = next((token for token in ids if token >= rows), None)
    if beyond is not None:
        raise InputError(
            f"expected tokens that the embedding has one of its {rows} rows for, got "
            f"{tokenizer.convert_ids_to_tokens(beyond)!r} with the id {beyond}, of a tokenizer with {len(tokenizer)}: "
            "give the tokenizer that the model was trained with, or a text without this token"
        )


def going_on(ids: Sequence[int], added: Sequence[int]) -> list[int]:
    """Ids of a text that goes on, without what a tokenizer adds behind it, such as an EOS."""
    length = max((place + 1 for place, mark in enumerate(added) if not mark), default=0)
    return list(ids[:length])


def ends_texts(tokenizer: Any) -> bool:
    """Tell a tokenizer that adds something behind a text, such as an EOS."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    return going_on(encoded["input_ids"], encoded["special_tokens_mask"]) != encoded["input_ids"]


def _parts(fact: Fact, template: str) -> tuple[str, Fact, str]:
    """The text before the subject, the fact, and the text after the subject."""
    before, _, after = template.partition("{}")
    start, _, end = fact.prompt.partition("{}")
    return before + start, fact, end + after


def _locate(
    tokenizer: Any, before: str, fact: Fact, after: str, answers: Sequence[bool], chat: Chat | None
) -> list[Prompt]:
    """Tokenise the three parts as one text, for rows with and without the answer.

    The decisive token covers the subject's last character.
    """
    text, rows = before + fact.subject + after, []
    alone = _prompt(tokenizer, text, chat)
    first = len(before) if chat is None else chat.place(tokenizer, alone.text, before, fact.subject, after)
    last = first + len(fact.subject) - 1
    for answer in answers:
        prompt, following = alone, tuple[int, ...]()
        if answer:
            prompt, following = _answered(tokenizer, text, alone, fact.target_new, fact.join, chat)
        decisive = prompt.covering(last)
        if decisive is None:
            raise InputError(
                f"expected the subject to appear among the tokens of its prompt, got none for {fact.subject!r} in "
                f"{prompt.text!r}: the tokenizer drops it, or joins it with the answer; give another subject"
            )
        _check_plain(tokenizer, prompt, first, last, fact.subject)
        rows.append(Prompt(prompt.ids + following[:-1], decisive, following))
    return rows


def _prompt(tokenizer: Any, text: str, chat: Chat | None) -> _Encoded:
    """A prompt by itself; a chat template writes the special tokens."""
    return _encode(tokenizer, text if chat is None else chat.prompt(tokenizer, text), chat is None)


def _answered(
    tokenizer: Any, text: str, prompt: _Encoded, answer: str, join: str | None, chat: Chat | None
) -> tuple[_Encoded, tuple[int, ...]]:
    """A prompt with an answer after it, and the ids of the answer."""
    whole = text + joint(text, join) + answer if chat is None else chat.answered(tokenizer, prompt.text, text, answer)
    return _continue(tokenizer, prompt, _encode(tokenizer, whole, chat is None), answer)


def _continue(tokenizer: Any, prompt: _Encoded, both: _Encoded, answer: str) -> tuple[_Encoded, tuple[int, ...]]:
    """Prompt and answer tokenised together: the prompt as it begins then, and the ids of the answer."""
    split = len(prompt.ids)
    if both.ids[:split] != prompt.ids:  # as when a space at the prompt's end becomes part of the answer's first word
        reaching = (i for i, (start, end) in enumerate(both.offsets) if end > len(prompt.text))
        split = next((i for i in reaching if both.text[slice(*both.offsets[i])].strip()), len(both.ids))
        prompt = _Encoded(prompt.text, both.ids[:split], both.offsets[:split])
    if split >= len(both.ids):
        raise InputError(
            f"expected a target with at least one token of its own, got {answer!r}: the tokenizer makes nothing of it "
            "or one piece with the prompt; give another"
        )
    if tokenizer.unk_token_id in both.ids[split:]:
        raise InputError(
            f"expected a target that the tokenizer can write, got unknown pieces in {answer!r}: give another"
        )
    _check_plain(tokenizer, both, len(both.text) - len(answer), len(both.text) - 1, answer)
    return prompt, both.ids[split:]


def _encode(tokenizer: Any, text: str, special: bool) -> _Encoded:
    """Ids of a text with their places in it, with the tokenizer's own BOS or not; one at most."""
    encoding = tokenizer(
        text,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        padding=False,
        truncation=False,
        add_special_tokens=special,
    )
    ids = going_on(encoding["input_ids"], encoding["special_tokens_mask"])
    check_bos(tokenizer, ids, text)
    return _Encoded(text, tuple(ids), tuple(map(tuple, encoding["offset_mapping"][: len(ids)])))


def _check_plain(tokenizer: Any, encoded: _Encoded, first: int, last: int, part: str) -> None:
    """Refuse a part of a text that the tokenizer takes for one of its special tokens."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        if token in special and encoded.text[max(start, first) : min(end, last + 1)].strip():
            raise InputError(
                f"expected plain text as subject and answer, got the special token "
                f"{encoded.text[start:end]!r} in {part!r}: give another"
            )
