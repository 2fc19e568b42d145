"""The check at load time: does replay give the model's own states and logits on a sample?"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.activations import decisive_states
from jacobian_lab.errors import InputError
from jacobian_lab.facts import Fact, Refused
from jacobian_lab.language_model import LanguageModel
from jacobian_lab.replay import freeze, replay, replay_logits
from jacobian_lab.templates import Templates
from jacobian_lab.tokens import Prompt, check_bos, pad

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.2}
"""Largest relative difference, in the Euclidean norm of a state or a row of logits. A block that is called wrongly is
off by its whole size; in bfloat16 the logits of SmolLM2's thirty blocks differ by up to 0.06 from rounding alone."""

SAMPLE = 3


def check_lengths(model: LanguageModel, facts: Sequence[Fact], templates: Templates) -> None:
    """Refuse facts whose rows are longer than the model takes.

    Args:
        model: The model.
        facts: The facts.
        templates: The context templates.

    Raises:
        InputError: Naming the first such fact.
    """
    for fact in facts:
        for template in (template for group in templates for template in group):
            _check_length(model, fact, model.fact_prompt(fact, template, answer=True))


def editable(model: LanguageModel, facts: Sequence[Fact]) -> tuple[tuple[Fact, ...], tuple[Refused, ...]]:
    """Tell facts whose prompt the model takes from those whose it does not.

    Args:
        model: The model.
        facts: The facts.

    Returns:
        Those that can be edited, and the others with the reasons: a subject or an answer that the tokenizer drops,
        joins or takes for something else, or a row that is too long.
    """
    taken, refused = [], []
    for fact in facts:
        try:
            row = model.fact_prompt(fact, answer=True)
            _check_tokens(model, fact, row)
            _check_length(model, fact, row)
        except InputError as error:
            refused.append(Refused(f"fact {fact.id!r}", fact.id, str(error)))
        else:
            taken.append(fact)
    return tuple(taken), tuple(refused)


def _check_length(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    if len(row.ids) > model.max_tokens:
        raise InputError(
            f"expected prompts of at most {model.max_tokens} tokens, got one of {len(row.ids)} in fact {fact.id!r}: "
            "shorten it"
        )


@dataclass(frozen=True)
class ReplayCheck:
    """How far replay was from the model itself, on a sample.

    Attributes:
        states: Largest relative difference of a hidden state, in the Euclidean norm.
        logits: The same of the logits of an answer's token.
    """

    states: float
    logits: float


@torch.no_grad()
def check_replay(model: LanguageModel, facts: Sequence[Fact], layers: Sequence[int]) -> ReplayCheck:
    """Prove on a few facts that what is built on replay stands.

    Args:
        model: The model.
        facts: Facts to sample from.
        layers: The decisive layers; replay is checked from each of them.

    Returns:
        The largest differences, all below `TOLERANCE`.

    Raises:
        InputError: Naming what fails: the subject's index, the number of BOS, the hidden states or
            the logits, from which layer and for which fact.
    """
    sample = list(facts[:SAMPLE])
    rows = [model.fact_prompt(fact, answer=True) for fact in sample]
    for fact, row in zip(sample, rows, strict=True):
        _check_tokens(model, fact, row)
    frozen = freeze(model, rows, layers)
    above = tuple(range(layers[0], model.n_layers))
    own_states, own_logits = decisive_states(model, rows, above), _own_logits(model, rows)
    _check_finite(model, sample, own_states, own_logits)
    worst = {"hidden states": 0.0, "logits": 0.0}
    for layer in layers:
        start = own_states[above.index(layer)]
        states = replay(frozen, layer, start, above[above.index(layer) :])
        differences = {"hidden states": _differences(states, own_states[above.index(layer) :]).amax(0)}
        logits = replay_logits(frozen, layer, start)
        differences["logits"] = torch.stack([
            _differences(got[: len(own)], own).amax() for got, own in zip(logits, own_logits, strict=True)
        ])
        for what, difference in differences.items():
            _compare(what, layer, difference, sample, model)
            worst[what] = max(worst[what], float(difference.max()))
    return ReplayCheck(worst["hidden states"], worst["logits"])


def _own_logits(model: LanguageModel, rows: Sequence[Prompt]) -> list[Float[Tensor, "_ vocab"]]:
    """The model's own logits where each row's answer is predicted; of every token they would take gigabytes."""
    places = [range(len(row.ids) - len(row.answer), len(row.ids)) for row in rows]
    kept = sorted(set().union(*places))
    columns = torch.tensor(kept, device=model.device)
    logits = model.hf(input_ids=pad(rows).to(model.device), logits_to_keep=columns, use_cache=False).logits
    return [logits[index, [kept.index(place) for place in own]] for index, own in enumerate(places)]


def _check_finite(
    model: LanguageModel,
    facts: Sequence[Fact],
    states: Float[Tensor, "layer fact d_model"],
    logits: Sequence[Float[Tensor, "_ vocab"]],
) -> None:
    for index, fact in enumerate(facts):
        if not (torch.isfinite(states[:, index]).all() and torch.isfinite(logits[index]).all()):
            dtype = str(model.dtype).removeprefix("torch.")
            raise InputError(
                f"expected finite hidden states and logits, got NaN or infinity from {model.name!r} in {dtype} on fact "
                f"{fact.id!r}: choose a --dtype of wider range, such as float32 or bfloat16"
            )


def _check_tokens(model: LanguageModel, fact: Fact, row: Prompt) -> None:
    """The subject is complete with the decisive token, not before it, and there is one BOS at most."""
    tokenizer = model.tokenizer
    subject = _plain(fact.subject)
    with_it, without = (
        _plain(tokenizer.decode(row.ids[:end], skip_special_tokens=True)) for end in (row.decisive + 1, row.decisive)
    )
    if with_it.count(subject) <= without.count(subject):
        raise InputError(
            f"expected the decisive token to end the subject {fact.subject!r}, got {with_it!r} up to it: "
            f"the tokenizer of {model.name!r} is not supported"
        )
    check_bos(tokenizer, row.ids, fact.text)


def _plain(text: str) -> str:
    """Without spaces, and composed: what tokenizers may change."""
    return unicodedata.normalize("NFC", "".join(text.split()))


def _differences(got: Float[Tensor, "*row width"], own: Float[Tensor, "*row width"]) -> Float[Tensor, "*row"]:
    """Relative, in the Euclidean norm of each row."""
    error = torch.linalg.vector_norm(got.double() - own.double(), dim=-1)
    return error / torch.linalg.vector_norm(own.double(), dim=-1)


def _compare(what: str, layer: int, worst: Float[Tensor, " fact"], facts: Sequence[Fact], model: LanguageModel) -> None:
    if not (worst <= TOLERANCE[model.dtype]).all():
        fact = facts[int(worst.argmax())]
        raise InputError(
            f"expected replay from layer {layer} to give the {what} of {model.name!r} itself, got a relative "
            f"difference of {float(worst.max()):.1e} on fact {fact.id!r}: this model's blocks are called "
            "differently; please report it"
        )
