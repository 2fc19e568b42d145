"""The check at load time: does replay give the model's own states and logits on a sample?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps.hooks import decisive_states
from jacobian_lab.maps.replay import freeze, replay, replay_logits
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.rows import check_tokens
from jacobian_lab.model.tokens import Prompt, pad

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.2}
"""Largest relative difference, in the Euclidean norm of a state or a row of logits. A block that is called wrongly is
off by its whole size; in bfloat16 the logits of SmolLM2's thirty blocks differ by up to 0.06 from rounding alone."""

SAMPLE = 3


@dataclass(frozen=True)
class ReplayCheck:
    """Differences between replay and the model itself, on a sample.

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
        check_tokens(model, fact, row)
    frozen = freeze(model, rows, layers)
    above = tuple(range(layers[0], model.n_layers))
    own_states, own_logits = decisive_states(model, rows, above), _own_logits(model, rows)
    _check_finite(model, sample, own_states, own_logits)
    worst = {"hidden states": 0.0, "logits": 0.0}
    for layer in layers:
        place = above.index(layer)
        start = own_states[:, place]
        states = replay(frozen, layer, start, above[place:])
        differences = {"hidden states": _differences(states, own_states[:, place:]).amax(1)}
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
    predicting = sorted(set().union(*places))
    columns = torch.tensor(predicting, device=model.device)
    logits = model.hf(input_ids=pad(rows).to(model.device), logits_to_keep=columns, use_cache=False).logits
    return [logits[index, [predicting.index(place) for place in own]] for index, own in enumerate(places)]


def _check_finite(
    model: LanguageModel,
    facts: Sequence[Fact],
    states: Float[Tensor, "fact layer d_model"],
    logits: Sequence[Float[Tensor, "_ vocab"]],
) -> None:
    for index, fact in enumerate(facts):
        if not (torch.isfinite(states[index]).all() and torch.isfinite(logits[index]).all()):
            dtype = str(model.dtype).removeprefix("torch.")
            raise InputError(
                f"expected finite hidden states and logits, got NaN or infinity from {model.name!r} in {dtype} on fact "
                f"{fact.id!r}: choose a ⟨dtype⟩ of wider range, such as float32 or bfloat16"
            )


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
