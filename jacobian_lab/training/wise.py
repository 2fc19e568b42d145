"""WISE: one edit after the other by masked gradient steps on a side matrix, shard by shard, merged now and then."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobian_lab.editing.deltas import Form
from jacobian_lab.errors import InputError
from jacobian_lab.maps.likelihood import answer_nll
from jacobian_lab.maps.replay import Frozen, freeze, tail_outputs
from jacobian_lab.maps.writes import moved
from jacobian_lab.model.language_model import matrix
from jacobian_lab.model.rows import FactRows
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.merging import margin, ties
from jacobian_lab.training.settings import WiseConfig
from jacobian_lab.training.wise_memory import (
    Memory,
    Side,
    activation_of,
    beside,
    distances,
    first_tokens,
    prompt_passes,
    save_memory,
)

FIRST_WEIGHT, LATER_WEIGHT, OLD_WEIGHT = 1.0, 0.4, 0.6
"""Weights of all new shards in the first merge and in later ones, and of the merged memory there."""

STILL, LOW = 1e-4, 0.02
"""An edit ends once the loss before its last step is at most `LOW` and has moved by at most `STILL`."""


@dataclass(frozen=True)
class Trained:
    """Outcome of one fact's training.

    Attributes:
        steps: Number of steps.
        loss: The loss at the last pass.
        inside: Mean distance of its prompts at the last pass.
        outside: Distance of the unrelated row there.
    """

    steps: int
    loss: float
    inside: float
    outside: float


@dataclass(eq=False)
class Wise:
    """A side memory in training.

    Attributes:
        rows: The facts.
        unrelated: For each fact an unrelated row.
        settings: The settings, resolved.
        done: Outcomes of the facts so far.
        side: The present W'.
        mask: The entries that the present shard trains.
        merged: Merged matrices with their thresholds; with `retrieve` all of them serve, else the last.
        shards: Completion shards that are not merged yet.
        least: Least distance of an edited prompt so far; with `retrieve`, since the last merge.
    """

    rows: FactRows
    unrelated: Sequence[Prompt]
    settings: WiseConfig
    done: list[Trained] = field(default_factory=list)
    shards: list[Tensor] = field(default_factory=list)
    merged: list[Side] = field(default_factory=list)
    least: float = math.inf

    def __post_init__(self) -> None:
        if len(self.unrelated) != len(self.rows):
            raise InputError(
                f"expected an unrelated row for each of {len(self.rows)} facts, got {len(self.unrelated)}: give more "
                "records than are edited"
            )
        model = self.rows.model
        self.place = self.settings.place
        self.module: Any = self.place.module(model)
        self.own = matrix(self.module).detach().clone()
        self.side, self.mask = self.own.clone(), self._drawn(0)
        self.activation = activation_of(model)
        self.scale = 1.0 if self.settings.absolute else self._size()

    def train(self, advance: Callable[[int], Any] = lambda _: None) -> Iterator[Trained]:
        """Train on the facts that are left, one after the other."""
        count, shards = len(self.rows), self.settings.shards
        ends = {-(-(number + 1) * count // shards) for number in range(shards)}
        for place in range(len(self.done), count):
            if place in ends:
                self.side, self.mask = self.own.clone(), self._drawn(place)
            self.done.append(self._edit(place))
            if place + 1 in ends:
                self._close_shard()
            advance(1)
            yield self.done[-1]

    @property
    def finished(self) -> int:
        """Facts that are trained on."""
        return len(self.done)

    def state(self) -> dict[str, Tensor]:
        """State between two facts, as tensors, for `restore`."""
        outcomes = [[float(fact.steps), fact.loss, fact.inside, fact.outside] for fact in self.done]
        state = {
            "done": torch.tensor(outcomes, dtype=torch.float64).reshape(-1, len(fields(Trained))),
            "side": self.side,
            "mask": self.mask,
            "least": torch.tensor(self.least, dtype=torch.float64),
            "thresholds": torch.tensor([side.threshold for side in self.merged], dtype=torch.float64),
        }
        state |= {f"shard.{n}": shard for n, shard in enumerate(self.shards)}
        return state | {f"merged.{n}": side.weight for n, side in enumerate(self.merged)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another that was made with the same facts and settings."""

        def like_own(tensor: Tensor) -> Tensor:
            return torch.empty_like(self.own).copy_(tensor)  # as the matrix lies in memory: products may round by that

        self.done = [Trained(int(steps), *others) for steps, *others in state["done"].tolist()]
        self.side, self.mask = like_own(state["side"]), state["mask"].to(self.own.device)
        self.least, thresholds = float(state["least"]), state["thresholds"].tolist()
        self.shards = [like_own(state[f"shard.{n}"]) for n in range(sum(name.startswith("shard.") for name in state))]
        self.merged = [Side(like_own(state[f"merged.{n}"]), least) for n, least in enumerate(thresholds)]

    def memory(self) -> Memory:
        """Memory as it serves now: the merged matrices, and the side matrix in training."""
        threshold, sides = self.settings.act_ratio * self.least, list(reversed(self.merged))
        if not self.settings.retrieve:  # the least distance is that of all edits
            sides = [replace(side, threshold=threshold) for side in sides]
        if not torch.equal(self.side, self.own):
            sides.insert(0, Side(self.side.clone(), threshold))
        return Memory(self.place, tuple(sides))

    @contextmanager
    def edited(self, advance: Callable[[int], Any] = lambda _: None) -> Iterator[None]:
        """Serve the memory within."""
        advance(len(self.rows))
        with self.memory().serving(self.rows.model):
            yield

    def diagnostics(self) -> dict[str, Any]:
        """Outcomes of the facts, and the routing ratios of their prompts."""
        model, memory, facts = self.rows.model, self.memory(), self.rows.facts

        def distance(texts: Sequence[Sequence[str]]) -> list[list[float]]:
            rows = [model.text_prompt(text) for prompts in texts for text in prompts]
            ratios = memory.reach(memory.judge(model, rows))
            return [part.tolist() for part in ratios.split([len(prompts) for prompts in texts])]

        return {
            "training_steps": [float(fact.steps) for fact in self.done],
            "training_loss": [fact.loss for fact in self.done],
            "distance": [ratio for (ratio,) in distance([[fact.text] for fact in facts])],
            "distance_paraphrase": distance([fact.paraphrase_prompts for fact in facts]),
            "distance_neighbor": distance([fact.neighborhood_prompts for fact in facts]),
            "threshold": min((side.threshold for side in memory.sides), default=math.inf),
        }

    def save(self, form: Form, path: Path, config: Mapping[str, Any]) -> None:
        """Write the memory."""
        if form != "delta":
            raise InputError(f"expected ⟨save⟩ delta for wise, got {form}: no plain model asks which matrix serves")
        save_memory(path, self.rows.model, self.memory(), config)

    def _edit(self, place: int) -> Trained:
        """Gradient steps on one fact."""
        settings = self.settings
        edited, unrelated = _Seen(self, list(self.rows.answered_contexts[place])), _Seen(self, [self.unrelated[place]])
        side, losses = self.side.clone().requires_grad_(), list[float]()
        inside = outside = side.new_zeros(())
        last = math.nan
        for number in range(settings.n_iter):
            served = edited.served(side)
            inside, outside = edited.distances(served), unrelated.distances(unrelated.served(side))
            limits = (self.scale * share for share in (settings.alpha, settings.beta, settings.gamma))
            loss = edited.loss(served) + margin(inside, outside, *limits)
            last = loss.item()
            if not math.isfinite(last):  # the fact is left out, as one without a finite anchor is
                return Trained(number + 1, math.nan, math.nan, math.nan)
            if len(losses) > 1 and abs(losses[-1] - losses[-2]) <= STILL and losses[-1] <= LOW:
                break  # as published after the pass at the final weights, whose distances decide the threshold
            losses.append(last)
            (gradient,) = torch.autograd.grad(loss, side)
            with torch.no_grad():
                self._step(side, gradient)
        if not torch.isfinite(side).all():
            return Trained(len(losses), math.nan, math.nan, math.nan)
        self.side = side.detach()
        self.least = min(self.least, inside.mean().item())
        return Trained(len(losses), last, inside.mean().item(), outside.mean().item())

    def _step(self, side: Tensor, gradient: Tensor) -> None:
        """One masked step, with decay, clamped."""
        settings = self.settings
        shrunk = settings.weight_decay * side
        if settings.decayed == "none":
            shrunk = torch.zeros_like(side)
        elif settings.decayed == "masked":
            shrunk = shrunk * self.mask
        side -= settings.edit_lr * (gradient * self.mask + shrunk)
        side.clamp_(self.own - settings.norm_constraint, self.own + settings.norm_constraint)

    def _close_shard(self) -> None:
        """End the shard, and merge if enough are finished."""
        self.shards.append(self.side)
        self.side = self.own.clone()
        if len(self.shards) < self.settings.merged and len(self.done) < len(self.rows):
            return
        threshold, count = self.settings.act_ratio * self.least, len(self.shards)
        shards, weights = list(self.shards), [FIRST_WEIGHT / count] * count
        if self.merged and not self.settings.retrieve:
            shards, weights = [*shards, self.merged[-1].weight], [*([LATER_WEIGHT / count] * count), OLD_WEIGHT]
        merged = Side(ties(self.own, shards, weights, self.settings.densities), threshold)
        if self.settings.retrieve:
            self.merged.append(merged)
            self.least = math.inf
        else:
            self.merged = [merged]
        self.shards = []

    def _drawn(self, number: int) -> Bool[Tensor, "out in"]:
        """Mask of the shard that begins at a fact."""
        generator = torch.Generator().manual_seed(random.Random(f"{self.settings.seed} {number}").getrandbits(32))
        return (torch.rand(self.own.shape, generator=generator) < self.settings.mask_ratio).to(self.own.device)

    @torch.no_grad()
    def _size(self) -> float:
        """Mean size of the matrix's own activations over the facts' prompts, contexts before them."""
        total = count = 0.0
        rows = [row for contexts in self.rows.answered_contexts for row in contexts]
        for _, _, output, counted in prompt_passes(self.rows.model, self.place, rows):
            sizes = torch.linalg.vector_norm(self.activation(output).double(), dim=-1)
            total, count = total + float((sizes * counted).sum()), count + float(counted.sum())
        return total / count


class _Seen:
    """Rows at the memory's block; all but the side matrix is constant over the steps."""

    def __init__(self, wise: Wise, rows: Sequence[Prompt]) -> None:
        model, block = wise.rows.model, wise.place.block
        self.wise = wise
        entering: list[Tensor] = []
        handle = wise.module.register_forward_pre_hook(lambda _m, inputs: entering.append(inputs[0].detach()))
        try:
            self.frozen: Frozen = freeze(model, [Prompt(row.ids, 0, row.answer) for row in rows], [block])
        finally:
            handle.remove()
        self.entering = entering[0]
        with torch.no_grad():
            self.output = beside(wise.module, self.entering, wise.own)
        self.counted = first_tokens([row.prompt_length for row in rows], self.output)

    def served(self, side: Float[Tensor, "out in"]) -> Float[Tensor, "row token out"]:
        """Output of the module with the side matrix."""
        return beside(self.wise.module, self.entering, side)

    def distances(self, served: Float[Tensor, "row token out"]) -> Float[Tensor, " row"]:
        """Distance of that from the own matrix's output, on the prompts."""
        return distances(self.wise.activation, self.output, served, self.counted)

    def loss(self, served: Float[Tensor, "row token out"]) -> Float[Tensor, ""]:
        """Mean −log P of the answers' tokens, mean over the rows."""
        model, block = self.wise.rows.model, self.wise.place.block
        writes = [self.output, served]
        if self.wise.place.entrance:
            projection: Any = model.projection(block)
            writes = [beside(projection, self.wise.activation(output), matrix(projection)) for output in writes]
        change = moved(model, block, writes[0], writes[1] - writes[0])
        served_states = self.frozen.tails[block] + model.mlp_factor * change
        return answer_nll(self.frozen, tail_outputs(self.frozen, block, served_states)).mean()
