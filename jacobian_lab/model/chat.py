"""A model's own chat template, filled in by itself: a program, of which nothing is supposed but what it writes."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from string import ascii_letters
from typing import Any

from jacobian_lab.errors import InputError, first_line

DATE = "2024-07-26"
"""The day that templates which write the date are told: the one that Llama 3's write where they know none."""

_QUESTION, _ANSWER = "QUESTION-2f8c", "ANSWER-9b41"
_CLOCK = "strftime_now"
_THINKING = "<think>", "</think>"
_SWITCHES = ("enable_thinking", "thinking")
"""What the options are called by which templates leave out the thinking."""


@dataclass(frozen=True)
class Chat:
    """Settings of a model's chat template, beside the user's turn and the assistant's.

    Attributes:
        options: Variables of the template's own, by name.
        system: The system's turn; the template's own, if it has one, by default.
        date: Day, or day and time, that the template is told, as ISO 8601 has it.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    date: str = DATE

    def __str__(self) -> str:
        options = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.options.items()]
        system = [] if self.system is None else [f"the system's turn {self.system!r:.60}"]
        return "the chat template with " + ", ".join([f"the date {self.date}", *options, *system])

    def prompt(self, tokenizer: Any, text: str) -> str:
        """The template's rendering of a text as the user's turn, up to where the assistant is to answer."""
        return self._rendered(tokenizer, text)

    def answered(self, tokenizer: Any, prompt: str, text: str, answer: str) -> str:
        """The template's rendering of a text and its answer, as far as the answer goes."""
        whole = self._rendered(tokenizer, text, answer)
        behind = whole.removeprefix(prompt)
        between = behind[: max(behind.find(answer), 0)]
        begun = prompt + between + answer
        if between.strip() or not whole.startswith(begun):
            raise InputError(
                f"expected an answer that the chat template writes as it stands, got {answer!r:.60} written as "
                f"{behind!r:.80}: take off the blanks at its ends, or give another"
            )
        return begun

    def place(self, tokenizer: Any, prompt: str, before: str, part: str, after: str) -> int:
        """Find the place of a part of the user's turn in the prompt."""
        head, _, tail = self.prompt(tokenizer, before + _QUESTION + after).partition(_QUESTION)
        if prompt != head + part + tail:
            raise InputError(
                f"expected a subject that the chat template writes as it stands, got {part!r} in a turn written as "
                f"{prompt[-80:]!r}: give another, without blanks at its ends"
            )
        return len(head)

    def _rendered(self, tokenizer: Any, *turns: str) -> str:
        """A conversation as the template writes it; the assistant is to speak next, or has spoken."""
        contents = [] if self.system is None else [("system", self.system)]
        contents += zip(("user", "assistant"), turns, strict=False)
        try:
            text: str = tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in contents],
                chat_template=_with_clock(tokenizer.get_chat_template(), self.date),
                tokenize=False,
                add_generation_prompt=len(turns) == 1,
                **self.options,
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise InputError(
                f"expected a chat template that can be filled in, got one that says {first_line(error)!r:.120}: give "
                "what it takes, or leave ⟨chat⟩ out"
            ) from error
        return text

    def _lets_answer(self, tokenizer: Any) -> bool:
        """Tell a template whose answers follow the prompt at once, and not within the thinking."""
        opened, closed = _THINKING
        try:
            prompt = self.prompt(tokenizer, _QUESTION)
            self.answered(tokenizer, prompt, _QUESTION, _ANSWER)
        except InputError:
            return False
        ending = prompt.rpartition(_QUESTION)[2]
        return ending.count(opened) <= ending.count(closed)


def chat_of(
    tokenizer: Any,
    name: str,
    options: Mapping[str, Any] | None = None,
    system: str | None = None,
    date: str = DATE,
) -> Chat:
    """The chat template of a model, as it is to be filled in."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"expected a model with a chat template for ⟨chat⟩, got {name!r} without one: leave ⟨chat⟩ out"
        )
    _check_date(date)
    _check_options(tokenizer, options or {})
    chat = Chat(dict(options or {}), system, date)
    prompt = chat.prompt(tokenizer, _QUESTION)
    if prompt.count(_QUESTION) != 1:
        raise InputError(
            f"expected a chat template that writes the user's text once, got {prompt.count(_QUESTION)} times from "
            f"{name!r}: leave ⟨chat⟩ out"
        )
    if system is not None and system.strip() not in prompt:
        raise InputError(
            f"expected a chat template that writes the system's turn, got that of {name!r}, which leaves it out: leave "
            "⟨chat_system⟩ out"
        )
    if not chat._lets_answer(tokenizer):
        off = (replace(chat, options={**chat.options, switch: False}) for switch in _SWITCHES)
        switch = next((name for name, other in zip(_SWITCHES, off, strict=True) if other._lets_answer(tokenizer)), None)
        raise InputError(
            f"expected a chat template whose answers follow the prompt at once, got that of {name!r}, which ends a "
            f"prompt in {prompt[-20:]!r}: an answer would stand within its thinking, or where it never writes one; "
            + (f"give ⟨chat_option⟩ {switch}=false" if switch else "leave ⟨chat⟩ out")
        )
    return chat


def chat_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read options of a chat template."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in options:
            raise InputError(
                f"expected ⟨chat_option⟩ as name=value, each name once, such as enable_thinking=false, got {text!r}: "
                "write it so"
            )
        options[name] = _value(value)
    return options


def chat_settings(chat: Chat | None) -> dict[str, Any]:
    """Describe a chat template for a run or a saved edit."""
    return {} if chat is None else {"chat": asdict(chat)}


def stored_chat(settings: Mapping[str, Any], source: Any) -> Chat | None:
    """Read what `chat_settings` wrote."""
    stored = settings.get("chat")
    if stored is None:
        return None
    names = set(asdict(Chat()))
    if set(stored) != names:
        raise InputError(
            f"expected the chat template's {', '.join(sorted(names))} in {source}, got {', '.join(sorted(stored))}, as "
            "an older version kept them: make it again"
        )
    return Chat(**stored)


def opens_turns(tokenizer: Any) -> bool:
    """Tell a chat template that opens every turn with the BOS, so that a prompt may hold more than one."""
    if not getattr(tokenizer, "chat_template", None) or not tokenizer.bos_token:
        return False
    try:
        return Chat()._rendered(tokenizer, _QUESTION, _ANSWER).count(tokenizer.bos_token) > 1
    except InputError:
        return False


def _value(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)  # NaN is no JSON
    except ValueError:
        return text


def _check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages", _CLOCK}
    code = " ".join(re.findall(r"{[{%].*?[%}]}", tokenizer.get_chat_template(), re.DOTALL))
    read = set(re.findall(r"\w+", re.sub(r"'[^']*'|\"[^\"]*\"", "", code)))
    for name in options:
        if name in reserved or name not in read:
            raise InputError(
                f"expected a variable of the chat template's own as ⟨chat_option⟩, got {name!r}, which it does not "
                "read: look into the template"
            )


def _check_date(date: str) -> None:
    try:
        datetime.fromisoformat(date)
    except ValueError as error:
        raise InputError(f"expected ⟨chat_date⟩ as {DATE} or {DATE}T12:00:00, got {date!r}: write it so") from error


@lru_cache(maxsize=8)
def _with_clock(template: str, date: str) -> str:
    """A template that is told this date for now, by a macro in the place of transformers' own function."""
    if _CLOCK not in template:
        return template
    moment = datetime.fromisoformat(date)
    codes = [f"%{flag}{letter}" for letter in ascii_letters for flag in ("", "-")]
    pairs = [("%%", "\0"), *((code, moment.strftime(code)) for code in codes), ("\0", "%")]
    replaced = "".join(f"|replace({json.dumps(code)},{json.dumps(text)})" for code, text in pairs)
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"
