"""--chat: the same numbers as the same facts with the template written out by hand."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from helpers.commands import options
from helpers.small import CONFIGS, make_folder, make_tokenizer

from jacobian_lab import cli
from jacobian_lab.facts.fact import describe
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs.config import AnchorConfig
from jacobian_lab.model.chat import Chat
from jacobian_lab.store.run import config_of, open_run

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return make_folder(tmp_path_factory.mktemp("chat") / "m", CONFIGS["llama"], tokenizer), tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("command", ["edit-table", "tables"])
def test_chat_is_the_template_around_every_prompt(command, chatting, arguments, tmp_path, capsys):
    folder, tokenizer = chatting
    chat = partial(Chat().prompt, tokenizer)
    (tmp_path / "templates.json").write_text('[["{}"]]')
    records = describe(load_facts("builtin", "0:3"))
    for record in records:
        record["neighborhood_prompts_answers"] = record.pop("neighborhood_answers")
    written = [
        {
            **record,
            "prompt": chat(record["prompt"]),
            **{name: [chat(text) for text in record[name]] for name in ("paraphrase_prompts", "neighborhood_prompts")},
        }
        for record in records
    ]
    arguments_of_all = {
        **arguments,
        "model": folder,
        "templates": tmp_path / "templates.json",
        "anchor": AnchorConfig(lr=0.1, steps=4, kl_factor=0.0),
    }
    del arguments_of_all["slice"]
    last = ["--methods", "memit", "memit+fe"] if command == "edit-table" else ["--schemes", "forward-replay"]
    for name, facts, more in (("chat", records, ["--chat"]), ("hand", written, [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
        where = {"facts": tmp_path / f"{name}.json", "out": tmp_path / name}
        cli.main([command, *options({**arguments_of_all, **where}), *more, *last])
    in_chat, by_hand = (open_run(tmp_path / name) for name in ("chat", "hand"))
    assert config_of(in_chat)["settings"]["chat"] == asdict(Chat())
    assert "chat" not in config_of(by_hand)["settings"]
    for variable in in_chat:
        if not variable.startswith("random_") and not variable.endswith("_digest"):  # seeds come from the facts' text
            np.testing.assert_array_equal(in_chat[variable], by_hand[variable], err_msg=variable)
    assert np.isfinite(in_chat["anchor"]).all()
    capsys.readouterr()


def test_contexts_are_inside_the_users_turn(chatting):
    from jacobian_lab.model.loading import load_model

    folder, _ = chatting
    model = replace(load_model(folder, device="cpu"), chat=Chat())
    fact = load_facts("builtin", "0:1")[0]
    text = model.tokenizer.decode(model.fact_prompt(fact, "The weather was fine. {}").ids)
    assert text == f"<bos>user\nThe weather was fine. {fact.text}<eos>\n<bos>assistant\n"
    assert model.tokenizer.decode(model.kl_prompt(fact).ids).startswith(f"<bos>user\n{fact.subject} is a")
