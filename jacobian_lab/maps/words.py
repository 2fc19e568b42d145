"""Shifts read out as words: tokens whose probability a shift raises and lowers, as J has it and as it comes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jacobian_lab.errors import InputError
from jacobian_lab.maps.hooks import capture, forward
from jacobian_lab.maps.jacobians import attention_by_formula
from jacobian_lab.maps.lens import Lens
from jacobian_lab.maps.replay import freeze, replay_logits
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.tokens import Prompt


class Word(NamedTuple):
    """A token that a shift moves.

    Attributes:
        token: Its text.
        linear: Change of its log-probability in nats to first order, the derivative along the shift.
        replayed: The change when the shift is made, by replay.
    """

    token: str
    linear: float
    replayed: float


@dataclass(frozen=True)
class Readout:
    """A shift in words.

    Attributes:
        rising: Tokens whose log-probability rises most to first order, the first one most.
        falling: Those whose log-probability falls most.
        agreement: Cosine of the linear and the replayed change of all tokens' log-probabilities.
    """

    rising: tuple[Word, ...]
    falling: tuple[Word, ...]
    agreement: float


@torch.no_grad()
def read_out(
    model: LanguageModel,
    prompt: Prompt,
    layer: int,
    shift: Float[Tensor, " d_model"],
    *,
    count: int = 10,
    lens: Lens | None = None,
) -> Readout:
    """Read a shift of the decisive token's hidden state through the rest of the model and its head.

    Args:
        model: The model.
        prompt: The prompt. The words are those behind its last token where it has an answer
            (`LanguageModel.fact_prompt` with ``answer=True``), else those behind the decisive token.
        layer: The layer at which the state is shifted.
        shift: δ.
        count: Tokens of each kind.
        lens: Mean Jacobians to transport the shift with, in place of the prompt's own derivative.

    Returns:
        Its words, sorted by the linear change.

    Raises:
        InputError: If the model has no such layer or the lens has not.

    Examples:
        >>> import jacobian_lab as jl
        >>> model, (fact,) = jl.load_model(), jl.load_facts("builtin", "3:4")
        >>> anchor = jl.optimize_anchors(jl.fact_rows(model, [fact]), 4).states[0]
        >>> prompt = model.fact_prompt(fact, answer=True)
        >>> shift = anchor - jl.freeze(model, [prompt], [4]).states(4)[0]
        >>> fact.target_new, [word.token for word in jl.read_out(model, prompt, 4, shift, count=3).rising]
        ('Asia', [' Indonesian', ' Chinese', ' Asian'])
    """
    layers = range(model.n_layers) if lens is None else sorted(lens.jacobians)
    if layer not in layers:
        raise InputError(f"expected a layer of {', '.join(map(str, layers))}, got {layer}: choose one of them")
    frozen = freeze(model, [prompt], [layer])
    state, direction = frozen.states(layer), shift.to(frozen.states(layer))[None]

    def log_p(states: Float[Tensor, "1 d_model"]) -> Float[Tensor, " vocab"]:
        with attention_by_formula():
            return replay_logits(frozen, layer, states)[0, 0].log_softmax(-1)

    if lens is None:
        before, linear = torch.func.jvp(log_p, (state,), (direction,))[:2]
    else:
        change = lens.jacobians[layer].to(direction) @ direction[0]
        before, linear = log_p(state), _through(model, prompt, int(frozen.answer_at[0, 0]), change)
    replayed = log_p(state + direction) - before
    order = linear.argsort(descending=True).tolist()

    def words(tokens: list[int]) -> tuple[Word, ...]:
        return tuple(Word(model.tokenizer.decode([t]), float(linear[t]), float(replayed[t])) for t in tokens)

    agreement = torch.nn.functional.cosine_similarity(linear, replayed, dim=0)
    return Readout(words(order[:count]), words(order[: -count - 1 : -1]), float(agreement))


def _through(
    model: LanguageModel, prompt: Prompt, place: int, change: Float[Tensor, " d_model"]
) -> Float[Tensor, " vocab"]:
    """Derivative of the log-probabilities behind a token along a change of its last hidden state."""
    last = model.n_layers - 1
    with capture(model, hidden=[last]) as record:
        forward(model, [prompt], stop=last)
    state = record.hidden[last][0, prompt.decisive + place]
    read: Callable[[Tensor], Tensor] = lambda hidden: model.head(model.norm(hidden)).log_softmax(-1)  # noqa: E731
    derivative: Float[Tensor, " vocab"] = torch.func.jvp(read, (state,), (change.to(state),))[1]
    return derivative
