"""Shares of keys, and imposed shifts, one prompt at a time through the whole untouched model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import options
from helpers.reference import Plain, encode
from helpers.reference import prompt as plain_prompt
from helpers.small import CONTEXTS

from jacobian_lab import cli
from jacobian_lab.errors import InputError
from jacobian_lab.facts.reading import load_facts
from jacobian_lab.jobs.config import EditTableConfig
from jacobian_lab.jobs.experiment import prepare
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.jobs.transferring import TransferConfig, transfer_job
from jacobian_lab.model.loading import load_model
from jacobian_lab.report.results import Results
from jacobian_lab.store.run import open_run

HELD_OUT = ("Once upon a time. {}", "Nobody knows why. {}")
SHARES = (1.0, 0.5)
SCHEMES = {"backward-dividing": (3,), "forward-replay": (1,), "coordinated-replay": (1, 2, 3)}


@pytest.fixture(scope="module")
def given(arguments, once):
    """Three facts, one of whose paraphrases does not name its subject."""

    def make(path):
        records = [
            {"id": "a", "subject": "Rome", "prompt": "{} lies in", "target_new": "Spain", "target_true": "Italy",
             "paraphrase_prompts": ["To see Rome, go to", "The eternal city is in"],
             "neighborhood_prompts": ["Milan lies in", "The capital of France is"]},
            {"id": "b", "subject": "Ada Lovelace", "prompt": "{} wrote about", "target_new": "poetry",
             "target_true": "engines", "paraphrase_prompts": ["Much was said by Ada Lovelace of"],
             "neighborhood_prompts": ["Byron wrote about"]},
            {"id": "c", "subject": "the Louvre", "prompt": "You find {} in", "target_new": "London city",
             "target_true": "Paris", "neighborhood_prompts": ["You find the Prado in"]},
        ]  # fmt: skip
        path.write_text(json.dumps(records))

    held_out = once("held-out.json", lambda path: path.write_text(json.dumps([HELD_OUT])))
    facts = once("facts-of-transfer.json", make)
    return {**arguments, "facts": str(facts), "slice": None, "held_out_templates": held_out, "shares": SHARES}


@pytest.fixture(scope="module")
def run(given, once):
    return open_run(once("transfer", lambda path: run_job(TransferConfig(**given, out=path), progress=False)))


@pytest.fixture(scope="module")
def plain(given):
    model = load_model(given["model"], given["dtype"])
    return model, Plain.of(model)


def prompts_of(tokenizer, fact):
    """Ids and decisive place of every prompt by its label, without the answer."""
    seen = [text for group in CONTEXTS for text in group]
    rows = {f"seen {at}": plain_prompt(tokenizer, fact, text) for at, text in enumerate(seen)}
    rows |= {f"held out {at}": plain_prompt(tokenizer, fact, text) for at, text in enumerate(HELD_OUT)}
    named = [text for text in fact.paraphrase_prompts if fact.subject in text]
    for at, text in enumerate(named):
        rows[f"paraphrase {at}"] = encode(tokenizer, text, text.rindex(fact.subject), fact.subject)
    return rows


def keys_of(model, ids, layer):
    """Inputs of a layer's output projection, token by token."""
    seen = []
    handle = model.projection(layer).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        model.hf(torch.tensor([ids]))
    handle.remove()
    return seen[0].double()


def test_shares_are_those_of_the_matrix_that_is_solved_with(given, run, plain):
    model, _ = plain
    facts = load_facts(given["facts"])
    setting = prepare(TransferConfig(**given)).session.setting
    weights = [1 / len(CONTEXTS) / len(group) for group in CONTEXTS for _ in group]
    for layer in (1, 2, 3):
        every = []
        for fact in facts:
            rows = prompts_of(model.tokenizer, fact)
            every.append({label: keys_of(model, ids, layer)[place] for label, (ids, place) in rows.items()})
        own = [sum(w * keys[f"seen {at}"] for at, w in enumerate(weights)) for keys in every]
        inverse = torch.linalg.inv(setting.ridge * setting.moments[layer] + sum(torch.outer(k, k) for k in own))
        for fact, key, keys in zip(facts, own, every, strict=True):
            cell = run.sel(fact=fact.id, layer=layer)
            length = key @ inverse @ key
            assert float(cell["own_share"]) == pytest.approx(float(length))
            for label, other in keys.items():
                share = float(other @ inverse @ key / length)
                assert float(cell["transferred"].sel(prompt=label)) == pytest.approx(share, abs=1e-9)
            for at, text in enumerate(fact.neighborhood_prompts):
                shares = keys_of(model, model.tokenizer(text)["input_ids"], layer) @ inverse @ key / length
                largest = float(shares[shares.abs().argmax()])
                assert float(cell["transferred"].sel(prompt=f"neighborhood {at}")) == pytest.approx(largest, abs=1e-9)
            eased = key @ torch.linalg.inv(setting.moments[layer]) @ key
            assert float(cell["ease"]) == pytest.approx(float(eased), rel=1e-6)


def test_what_the_solve_is_made_of_gets_the_whole(run):
    weights = [1 / len(CONTEXTS) / len(group) for group in CONTEXTS for _ in group]
    seen = run["transferred"].sel(prompt=[f"seen {at}" for at in range(len(weights))]).values
    np.testing.assert_allclose(seen @ weights, 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_imposed_answers_are_those_of_hooks_on_the_whole_model(scheme, given, run, plain):
    model, reference = plain
    for fact in load_facts(given["facts"]):
        ids, place = plain_prompt(model.tokenizer, fact)
        cell, layers = run.sel(fact=fact.id, scheme=scheme), SCHEMES[scheme]
        if scheme == "coordinated-replay":
            shifts = {n: torch.tensor(run["coordinated_shift"].sel(fact=fact.id, layer=n).values) for n in layers}
        else:
            (layer,) = layers
            before = reference.seen(ids, place, [layer])[layer]
            shifts = {layer: torch.tensor(run["anchor"].sel(fact=fact.id, anchor_layer=layer).values) - before}
        target = model.tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"]
        for label, (row, decisive) in prompts_of(model.tokenizer, fact).items():
            for share in SHARES:
                scaled = {n: share * shift for n, shift in shifts.items()}
                with torch.no_grad():
                    logits, _ = reference.states(row + target[:-1], decisive, [], shifts=scaled)
                log_p = logits[len(row) - 1 :].log_softmax(-1)
                nll = -sum(float(log_p[j, token]) for j, token in enumerate(target)) / len(target)
                at = cell.sel(prompt=label, share=share)
                assert float(at["imposed_nll"]) == pytest.approx(nll, rel=1e-6)
                assert float(at["imposed_accuracy"]) == float(log_p.argmax(-1).tolist() == target)


def test_prompts_without_the_subject_or_an_answer_have_no_value(run):
    assert "paraphrase 1" not in run["prompt"].values  # the second one of the first fact names no subject
    assert run["imposed_nll"].sel(prompt=["neighborhood 0", "neighborhood 1"]).isnull().all()
    assert run["transferred"].sel(fact="c", prompt="paraphrase 0").isnull().all()
    assert run["transferred"].sel(fact="a", prompt="neighborhood 1").notnull().all()


def test_after_the_edit_the_rewriting_prompt_is_as_a_table_of_methods_has_it(given, run, tmp_path):
    names = {"backward-dividing": "memit", "forward-replay": "memit+fe", "coordinated-replay": "memit+cr"}
    shared = {name: value for name, value in given.items() if name not in {"held_out_templates", "shares"}}
    config = EditTableConfig(
        **shared, methods=tuple(names.values()), greedy=False, held_out_tokens=64, corpus_length=256, out=tmp_path / "r"
    )
    table = open_run(run_job(config, progress=False))
    for scheme, name in names.items():
        edited = run.sel(scheme=scheme, prompt="seen 0")
        own = table.sel(edit=name)
        np.testing.assert_allclose(edited["edited_nll"], own["nll_new"], rtol=1e-9)
        np.testing.assert_array_equal(edited["edited_accuracy"], own["efficacy_accuracy"])


def test_the_command_writes_both_tables_and_the_figure(given, run, once, capsys):
    folder = once("transfer", lambda _: None)
    shared = {name: value for name, value in given.items() if name != "shares"}
    cli.main(["transfer", *options({**shared, "out": folder}), "--shares", *map(str, SHARES)])
    printed = capsys.readouterr().out
    assert "share that arrives: contexts held out" in printed
    assert "0.5 of the shift" in printed
    numbers = pd.read_csv(folder / "imposed.csv")
    row = numbers[(numbers["scheme"] == "forward-replay") & (numbers["metric"] == "nll") & numbers["share"].isna()]
    own = run["edited_nll"].sel(scheme="forward-replay", prompt=["held out 0", "held out 1"]).mean("prompt")
    assert float(row.set_index("group")["mean"]["held out"]) == pytest.approx(float(own.mean()))
    shares = pd.read_csv(folder / "transfer.csv").set_index(["row", "layer"])["mean"]
    held_out = run["transferred"].sel(layer=2, prompt=["held out 0", "held out 1"]).mean("prompt")
    assert shares["share that arrives: contexts held out", 2] == pytest.approx(float(held_out.mean()))
    cli.main(["figure", str(folder), "transfer"])
    assert (folder / "figures" / "transfer.png").is_file()
    first, *others = Results(folder).figure("transfer").axes
    assert first.get_ylabel() == "share of the shift that arrives"
    assert [ax.get_ylabel() for ax in others] == ["accuracy, contexts held out", "accuracy, paraphrases"]


def test_templates_that_are_no_others_are_refused(given):
    config = TransferConfig(**{**given, "held_out_templates": given["templates"]})
    with pytest.raises(InputError, match="expected templates beside those that keys are averaged over"):
        transfer_job(config, progress=False)
