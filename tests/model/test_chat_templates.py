"""Chat templates are programs: a row's ids are those of the template's own rendering of the real text."""

from dataclasses import replace
from datetime import datetime

import pytest
from helpers.kinds import KINDS, tokenizer_of
from helpers.small import make_tokenizer
from tokenizers import AddedToken

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.model.chat import DATE, Chat, chat_of, chat_options, chat_settings, opens_turns, stored_chat
from jacobian_lab.model.tokens import fact_prompt, kl_prompt, text_prompt

ASKING = "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
PLAIN = "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}" + ASKING
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LINES = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant:{% endif %}"
)
DATED = "{% set day = strftime_now('%d %b %Y, %-H:%M:%S') %}Today: {{ day }}, 100{{ strftime_now('%%') }}\n" + PLAIN
INDENTED = "\n  {%- if true %}\n" + DATED + "\n  {% endif %}"
SYSTEM = "{% if messages[0].role != 'system' %}<bos>system\nBe helpful.<eos>\n{% endif %}" + PLAIN
QWEN_3 = (
    "{% for m in messages %}<bos>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{{ m.content.lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<eos>\n{% endfor %}{% if add_generation_prompt %}<bos>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R_1 = PLAIN.replace("<bos>assistant\n", "<bos>assistant\n<think>\n")
FORCED = PLAIN.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n{% endif %}{{ m.content }}").replace(
    ASKING, ASKING.replace("assistant\n", "assistant\n<think>\n")
)
TEMPLATES = {
    "plain": (PLAIN, Chat()),
    "trimmed": (TRIMMED, Chat()),
    "brackets": (BRACKETS, Chat()),
    "lines": (LINES.replace("assistant:", "assistant:\n"), Chat()),
    "line's end before the answer": (LINES, Chat()),
    "thinking off": (QWEN_3, Chat({"enable_thinking": False})),
    "own system": (SYSTEM, Chat()),
    "other system": (SYSTEM, Chat(system="Be brief.")),
    "no system": (SYSTEM, Chat(system="")),
}
AWKWARD = (
    Fact("line", "Mira Vale", "Where was {} born?\n", "Rome"),
    Fact("blank", "Mira Vale", "\n Where was {} born? ", "Rome"),
    Fact("quoted", "Mira Vale", 'Say "{}"', "and no more"),
    Fact("role", "user", "user {} user", "assistant"),
)


def chatting(template: str, bos: bool = False):
    chatty = make_tokenizer(bos=bos)
    chatty.chat_template = template
    return chatty


def rendered(tokenizer, chat: Chat, *turns: str) -> str:
    """The rendering of a conversation by transformers."""
    contents = [] if chat.system is None else [("system", chat.system)]
    contents += zip(("user", "assistant"), turns, strict=False)
    messages = [{"role": role, "content": content} for role, content in contents]
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=len(turns) == 1, **chat.options
    )


def ids_of(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_templates_own_rendering(name, bos, facts):
    template, chat = TEMPLATES[name]
    chatty = chatting(template, bos)
    assert chat_of(chatty, "m", chat.options, chat.system) == chat
    for fact in facts + AWKWARD:
        for context in ("{}", "The weather was fine. {}"):
            text = context.replace("{}", fact.text)
            row = fact_prompt(chatty, fact, context, answer=True, chat=chat)
            whole = rendered(chatty, chat, text, fact.target_new)
            begun = whole[: whole.rindex(fact.target_new) + len(fact.target_new)]
            assert row.ids + row.answer[-1:] == ids_of(chatty, begun)
            assert row.ids[: row.prompt_length] == ids_of(chatty, rendered(chatty, chat, text))
            assert chatty.decode(row.answer).strip() == fact.target_new
            upto = chatty.decode(row.ids[: row.decisive + 1])
            before = (context.replace("{}", fact.prompt).partition("{}")[0] + fact.subject).lstrip()
            assert upto.endswith(before) or upto.startswith(before, upto.rindex(before))
            assert fact_prompt(chatty, fact, context, chat=chat).ids == row.ids[: row.prompt_length]
            question = text_prompt(chatty, text, fact.target_new, chat=chat)
            assert (question.ids, question.answer) == (row.ids, row.answer)
        kl = kl_prompt(chatty, fact, chat)
        assert kl.ids == ids_of(chatty, rendered(chatty, chat, f"{fact.subject} is a"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])
def test_on_every_kind_of_tokenizer(kind, facts):
    chatty = tokenizer_of(kind)
    chatty.chat_template = BRACKETS.replace("{{ bos_token }}", "<s>").replace("{{ eos_token }}", "</s>")
    chat = chat_of(chatty, "m")
    for fact in facts:
        row = fact_prompt(chatty, fact, answer=True, chat=chat)
        prompt = rendered(chatty, chat, fact.text)
        backend = chatty.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        assert row.ids + row.answer[-1:] == ids_of(chatty, f"{prompt} {fact.target_new}")
        assert chatty.decode(row.ids[: row.decisive + 1]).endswith(fact.subject)


@pytest.mark.parametrize("template", [DATED, INDENTED])
def test_the_date_is_fixed(template, facts):
    chatty = chatting(template)
    chat = chat_of(chatty, "m")
    assert chat.date == DATE
    assert chat.prompt(chatty, "Hi").lstrip().startswith("Today: 26 Jul 2024, 0:00:00, 100%\n<bos>user\nHi")
    later = chat_of(chatty, "m", date="2026-11-29T07:05:09")
    assert "Today: 29 Nov 2026, 7:05:09, 100%" in later.prompt(chatty, "Hi")
    assert fact_prompt(chatty, facts[0], chat=chat) != fact_prompt(chatty, facts[0], chat=later)


@pytest.mark.slow
def test_a_fixed_date_changes_nothing_else():
    """Against transformers' own clock, up to what it writes."""
    for template in (DATED, INDENTED, "  \n" + DATED, "\n\n" + DATED, "  {% if true %}\n" + DATED + "{% endif %}"):
        day_only = template.replace(", %-H:%M:%S", "")
        chatty = chatting(day_only)
        now = Chat(date=datetime.now().date().isoformat())
        assert now.prompt(chatty, "Hi") == rendered(chatty, now, "Hi")


def test_what_a_template_changes_of_subject_or_answer_is_refused():
    chat, trimming, thinking = Chat(), chatting(TRIMMED), chatting(QWEN_3)
    assert fact_prompt(chatting(PLAIN), Fact(0, "Ada", "{} wrote", "\nx"), answer=True, chat=chat).answer
    for answer in ("\nx", " x", "x\n"):
        with pytest.raises(InputError, match="an answer that the chat template writes as it stands"):
            fact_prompt(trimming, Fact(0, "Ada", "{} wrote", answer), answer=True, chat=chat)
    with pytest.raises(InputError, match="an answer that the chat template writes as it stands"):
        text_prompt(thinking, "Hi", "\nx", chat=Chat({"enable_thinking": False}))
    with pytest.raises(InputError, match="a subject that the chat template writes as it stands"):
        fact_prompt(trimming, Fact(0, " Ada", "{} wrote", "x"), chat=chat)
    shouting = chatting(PLAIN.replace("m.content", "m.content | upper"))
    with pytest.raises(InputError, match="a subject that the chat template writes as it stands"):
        fact_prompt(shouting, Fact(0, "Ada", "{} wrote", "x"), chat=chat)


def test_marks_that_eat_blanks_beside_them():
    """Phi's template does so, whose rstrip takes the blanks after them into the mark."""
    chatty = chatting("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n")
    marks = [AddedToken(f"<|{name}|>", rstrip=True, special=True) for name in ("user", "assistant", "end")]
    chatty.add_special_tokens({"additional_special_tokens": marks})
    chatty.chat_template = chatty.chat_template.replace(
        "<|assistant|>\n", "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    chat = chat_of(chatty, "m")
    for answer in ("Rome", " Rome", "\nRome", "\n\n Rome and Paris"):
        row = fact_prompt(chatty, Fact(0, "Ada Lovelace", "{} wrote about", answer), answer=True, chat=chat)
        text = f"<|user|>\nAda Lovelace wrote about<|end|>\n<|assistant|>\n{answer}"
        assert row.ids + row.answer[-1:] == ids_of(chatty, text)
        assert row.answer == ids_of(chatty, answer.strip())
    with pytest.raises(InputError, match="expected plain text"):
        fact_prompt(chatty, Fact(0, "Ada", "{} wrote", "<|end|> x"), answer=True, chat=chat)


def test_an_answer_within_the_thinking_is_refused_and_the_switch_offered():
    for template in (R_1, FORCED):
        with pytest.raises(InputError, match=r"ends a prompt in '.*<think>.*leave chat out$"):
            chat_of(chatting(template), "m")
    with pytest.raises(InputError) as caught:
        chat_of(chatting(QWEN_3), "m")
    assert "give --chat-option enable_thinking=false" in caught.value.by_option()
    assert chat_of(chatting(QWEN_3), "m", {"enable_thinking": False})
    granite = R_1.replace("<think>\n", "{% if thinking is not defined or thinking %}<think>\n{% endif %}")
    with pytest.raises(InputError, match="give chat_option thinking=false"):
        chat_of(chatting(granite), "m")


def test_options_are_read():
    texts = ("enable_thinking=false", "level=2", "share=0.5", "style=short and = plain", "n=NaN", 'year="2024"')
    read = {"enable_thinking": False, "level": 2, "share": 0.5, "style": "short and = plain", "n": "NaN"}
    assert chat_options(texts) == {**read, "year": "2024"}
    for wrong in (("enable_thinking",), ("=1",), ("a b=1",), ("a=1", "a=2")):
        with pytest.raises(InputError, match="expected chat_option as name=value"):
            chat_options(wrong)


def test_options_that_a_template_does_not_read_are_refused():
    for name in ("enable_thinkin", "think", "messages", "add_generation_prompt", "tokenize", "strftime_now"):
        with pytest.raises(InputError, match=f"as chat_option, got '{name}'"):
            chat_of(chatting(QWEN_3 + "{% if tokenize or strftime_now is undefined %}{% endif %}"), "m", {name: False})
    with pytest.raises(InputError, match="chat_date as 2024-07-26"):
        chat_of(chatting(PLAIN), "m", date="yesterday")
    silent = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="leave chat_system out"):
        chat_of(chatting(silent), "m", system="Be brief.")


def test_models_that_cannot_chat_are_refused():
    with pytest.raises(InputError, match="chat template for chat, got 'm' without one"):
        chat_of(make_tokenizer(), "m")
    with pytest.raises(InputError, match="writes the user's text once, got 0 times"):
        chat_of(chatting("nothing"), "m")
    with pytest.raises(InputError, match="that can be filled in, got one that says 'no'"):
        chat_of(chatting("{{ raise_exception('no') }}"), "m")


def test_what_is_kept_is_what_was_asked():
    chat = Chat({"enable_thinking": False, "level": 2}, "Be brief.", "2026-01-02")
    assert stored_chat(chat_settings(chat), "here") == chat
    assert chat_settings(None) == {}
    assert stored_chat({}, "here") is None
    assert "enable_thinking=false" in str(chat)
    with pytest.raises(InputError, match="in here, got head, join, tail, as an older version kept them"):
        stored_chat({"chat": {"head": "", "tail": "", "join": ""}}, "here")
    assert replace(chat, date=DATE) != chat


def test_a_prompt_that_is_written_as_a_chat_is_taken_where_turns_open_with_the_bos():
    written = Fact(0, "Mira Vale", "<bos>user\nWhere was {} born?<eos>\n<bos>assistant\n", "Rome")
    question = Fact(0, "Mira Vale", "Where was {} born?", "Rome")
    chatty = chatting(PLAIN)
    assert opens_turns(chatty)
    assert not opens_turns(chatting(BRACKETS))
    assert fact_prompt(chatty, written, answer=True) == fact_prompt(
        chatty, question, answer=True, chat=chat_of(chatty, "m")
    )
    doubled = Fact(0, "Mira Vale", "<bos>" + written.prompt, "Rome")
    with pytest.raises(InputError, match="one BOS at most, got 3"):
        fact_prompt(chatty, doubled)
    with pytest.raises(InputError, match="one BOS at most, got 2"):
        fact_prompt(make_tokenizer(), written)
