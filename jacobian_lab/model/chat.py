"""A model's own chat template around a text, and how an answer is joined to what stands before it."""

import unicodedata
from dataclasses import dataclass
from typing import Any

from jacobian_lab.errors import InputError

SPACE = " "
_QUESTION, _ANSWER = "QUESTION-2f8c", "ANSWER-9b41"
_OPENING_MARKS = "¿¡"
_STRAIGHT_QUOTES = "\"'`"
_UNSPACED = (
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "FULLWIDTH",
    "BOPOMOFO",
    "YI",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
"""How the names of characters begin whose script writes no spaces between words."""


@dataclass(frozen=True)
class Chat:
    """What a chat template puts around the user's turn when the assistant is to answer.

    Attributes:
        head: All before the text, without a BOS that the tokenizer adds by itself.
        tail: All after it, up to where the answer begins.
        join: What the template itself writes before an answer; `None` if that cannot be told.
    """

    head: str
    tail: str
    join: str | None

    def __call__(self, text: str) -> str:
        """The text as the user's turn.

        Args:
            text: What the user says.

        Returns:
            The whole prompt.
        """
        return self.head + text + self.tail


def chat_of(tokenizer: Any, name: str) -> Chat:
    """The chat template of a model.

    Args:
        tokenizer: Its tokenizer.
        name: What the user calls the model, for the message.

    Returns:
        What stands around a user's turn.

    Raises:
        InputError: If there is none, or it does not give the text back as it is, once.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"expected a model with a chat template for ⟨chat⟩, got {name!r} without one: leave ⟨chat⟩ out"
        )
    asked = _rendered(tokenizer, name, [_QUESTION])
    if asked.count(_QUESTION) != 1:
        raise InputError(
            f"expected a chat template that writes the user's text once, got {asked.count(_QUESTION)} times from "
            f"{name!r}: leave ⟨chat⟩ out"
        )
    head, tail = asked.split(_QUESTION)
    answered = _rendered(tokenizer, name, [_QUESTION, _ANSWER])
    join = answered.removeprefix(asked).partition(_ANSWER)[0] if answered.startswith(asked) else None
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
        head = head.removeprefix(tokenizer.bos_token)
    return Chat(head, tail, join if join in {"", SPACE} else None)


def join_of(chat: Chat | None, own: str | None) -> str | None:
    """How an answer is to be joined: as the template writes it where that can be told, else as its record says.

    Args:
        chat: The chat template, if any.
        own: What the record says; `None` if nothing.

    Returns:
        What is said of it; `None` if nothing.
    """
    return own if chat is None or chat.join is None else chat.join


def opens_turns(tokenizer: Any) -> bool:
    """Whether the chat template opens every turn with the BOS, so that a prompt may hold more than one.

    Args:
        tokenizer: A tokenizer.

    Returns:
        Whether a question and its answer hold two.
    """
    if not getattr(tokenizer, "chat_template", None) or not tokenizer.bos_token:
        return False
    try:
        return _rendered(tokenizer, "", [_QUESTION, _ANSWER]).count(tokenizer.bos_token) > 1
    except InputError:
        return False


def joint(text: str, join: str | None = None) -> str:
    """What stands between a prompt and its answer in running text.

    Args:
        text: The prompt, the subject in its place.
        join: What its record says; `None` if nothing.

    Returns:
        A space, or nothing: where the prompt ends in whitespace already, and, unless the record says
        otherwise, where it ends in an opening quote or bracket, or its last letter is of a script
        that writes no spaces.
    """
    if text[-1:].isspace():
        return ""
    if join is not None:
        return join
    return "" if _opens(text) or _unspaced(text) else SPACE


def _rendered(tokenizer: Any, name: str, turns: list[str]) -> str:
    """A conversation as the template writes it; the assistant is to speak next, or has spoken."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=len(turns) % 2 == 1)
    except Exception as error:  # templates are programs: they raise what they like
        raise InputError(
            f"expected a chat template that can be filled in, got that of {name!r} ({error!s:.120}): leave ⟨chat⟩ out"
        ) from error
    return text


def _opens(text: str) -> bool:
    """Whether a text ends in a quote or bracket that has just been opened."""
    last, before = text[-1:], text[-2:-1]
    if last in _STRAIGHT_QUOTES:
        return not before or before.isspace() or _opens(text[:-1])
    return bool(last) and (last in _OPENING_MARKS or unicodedata.category(last) in {"Ps", "Pi"})


def _unspaced(text: str) -> bool:
    """Whether the last letter is of a script that writes no spaces."""
    for letter in reversed(text):
        name = unicodedata.name(letter, "")
        if name.startswith(_UNSPACED):
            return True
        if letter.isalpha():
            return False
    return False
