"""From a fact and a template to token ids, the decisive position and the answer's span.

Ids are concatenated, never tokenised again; the decisive token is found by the fast tokenizer's
character offsets; nothing here depends on the tokenizer's padding side or changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.facts import Fact

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
    def tail(self) -> int:
        """Tokens from the decisive one to the end of the row, both counted."""
        return len(self.ids) - self.decisive

    def cut(self) -> "Prompt":
        """The row up to its decisive token: by causality all that this token's state depends on."""
        return Prompt(self.ids[: self.decisive + 1], self.decisive)


def fact_prompt(tokenizer: Any, fact: Fact, template: str = BARE, *, answer: bool = False) -> Prompt:
    """Tokenise ``template(prompt(subject))``, with the answer to be learnt after it if asked for.

    Args:
        tokenizer: A fast tokenizer.
        fact: The fact.
        template: A context template, with one ``{}``.
        answer: Whether to append ``" " + target_new``.

    Returns:
        The row.

    Raises:
        InputError: If the decisive token cannot be found or there is more than one BOS.
    """
    before, _, after = template.partition("{}")
    start, _, end = fact.prompt.partition("{}")
    prompt = _locate(tokenizer, before + start, fact.subject, end + after)
    if not answer:
        return prompt
    ids = answer_ids(tokenizer, fact.target_new)
    return Prompt(prompt.ids + ids[:-1], prompt.decisive, ids)


def kl_prompt(tokenizer: Any, fact: Fact) -> Prompt:
    """Tokenise ``"{subject} is a"``.

    Args:
        tokenizer: A fast tokenizer.
        fact: The fact.

    Returns:
        The row.
    """
    before, _, after = KL_PROMPT.partition("{}")
    return _locate(tokenizer, before, fact.subject, after)


def text_prompt(tokenizer: Any, text: str, answer: str = "") -> Prompt:
    """Tokenise a prompt as it stands, with an answer after it if one is given.

    Args:
        tokenizer: A fast tokenizer.
        text: The prompt.
        answer: The answer, without the space before it.

    Returns:
        The row.

    Raises:
        InputError: If there is nothing in the prompt, or more than one BOS.
    """
    ids = _encode(tokenizer, text)[0]
    if not ids:
        raise InputError(f"expected a prompt with at least one token, got {text!r}: give another")
    following = answer_ids(tokenizer, answer) if answer else ()
    return Prompt(ids + following[:-1], len(ids) - 1, following)


def answer_ids(tokenizer: Any, target: str) -> tuple[int, ...]:
    """Ids of ``" " + target``, without special tokens.

    Args:
        tokenizer: A tokenizer.
        target: The answer, without a space before it.

    Returns:
        The ids.

    Raises:
        InputError: If the tokenizer makes nothing of it.
    """
    ids = tuple(tokenizer(" " + target, add_special_tokens=False)["input_ids"])
    if not ids:
        raise InputError(f"expected a target with at least one token, got {target!r}: give another")
    return ids


def pad(rows: Sequence[Prompt]) -> Int[Tensor, "row token"]:
    """Ids of rows side by side, filled up on the right.

    Rows keep their positions, and by causality what fills them up changes nothing before it, so no
    attention mask is needed.

    Args:
        rows: The rows.

    Returns:
        Ids; zero where a row has ended.
    """
    width = max(len(row.ids) for row in rows)
    return torch.tensor([row.ids + (0,) * (width - len(row.ids)) for row in rows])


def _locate(tokenizer: Any, before: str, subject: str, after: str) -> Prompt:
    """Tokenise the three parts as one text; the decisive token covers the subject's last character."""
    text = before + subject + after
    ids, offsets = _encode(tokenizer, text)
    last = len(before) + len(subject) - 1
    covering = [i for i in range(len(ids)) if offsets[i][0] <= last < offsets[i][1]]
    if not covering:
        raise InputError(
            f"expected the subject to appear among the tokens of its prompt, got none for {subject!r} in {text!r}: "
            "the tokenizer drops it; give another subject"
        )
    return Prompt(ids, covering[-1])


def _encode(tokenizer: Any, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Ids of a text with their places in it, less an EOS, which would stand between prompt and answer."""
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
    length = len(ids)
    while length and encoding["special_tokens_mask"][length - 1]:
        length -= 1
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:length].count(bos) > 1:
        raise InputError(
            f"expected one BOS at most, got {ids[:length].count(bos)} in {text!r}: remove it from the text"
        )
    return tuple(ids[:length]), list(offsets[:length])
