"""How the methods train that do: what is asked for, and what it comes to on the model at hand."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from torch import nn

from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.training.memories import Place

Positive = Annotated[int, Gt(0)]
Above = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]

WISE_OF: Mapping[str, Mapping[str, Any]] = {
    "llama-3-8b-instruct": {
        "block": 29,
        "lr": 0.9,
        "alpha": 2.0,
        "beta": 20.0,
        "gamma": 10.0,
        "absolute": True,
        "act_ratio": 0.5,
    },
    "gpt2-xl": {
        "block": 8,
        "entrance": True,
        "lr": 1.0,
        "steps": 40,
        "alpha": 5.0,
        "beta": 20.0,
        "gamma": 10.0,
        "absolute": True,
        "act_ratio": 0.8,
    },
    "gpt-j-6b": {
        "block": 21,
        "lr": 1.0,
        "steps": 70,
        "alpha": 15.0,
        "beta": 40.0,
        "gamma": 20.0,
        "absolute": True,
        "act_ratio": 0.88,
    },
}
"""What the published code has for the models of the paper; all else is the same for every model."""

_PUBLISHED = {"rate": 1e-6, "rank": 1024, "batches": 400}
RLEDIT_OF: Mapping[str, Mapping[str, Any]] = {
    "llama-3-8b-instruct": {"blocks": tuple(range(22, 31)), **_PUBLISHED},
    "gpt2-xl": {"blocks": tuple(range(32, 41)), "projections": True, **_PUBLISHED},
    "gpt-j-6b": {"blocks": tuple(range(22, 28)), "projections": True, **_PUBLISHED},
}
"""The same for RLEdit."""
UNTUNED = ("gpt2-xl", "gpt-j-6b")
"""Models that the paper has no RLEdit on, since no stable setting was found; theirs are those first published."""


@dataclass(frozen=True, kw_only=True)
class _Wise:
    """What WISE has alike for every model.

    Attributes:
        mask_ratio: The share of the entries that a shard trains.
        clamp: How far an entry may move.
        decay: Weight decay of a step.
        decayed: Which entries decay: those that the shard trains, all (as published, in float32), or none.
        shards: Into how many shards the facts are divided.
        merged: After how many shards they are merged.
        density: The share of a shard's changes that a merge keeps.
        retrieve: Whether merged memories stay apart and the farthest serves, instead of one that all are merged into.
    """

    mask_ratio: Share = 0.2
    clamp: Above = 1.0
    decay: float = 1e-5
    decayed: Literal["masked", "all", "none"] = "masked"
    shards: Positive = 4
    merged: Positive = 2
    density: Share = 0.53
    retrieve: bool = False


@dataclass(frozen=True, kw_only=True)
class WiseSettings(_Wise):
    """How WISE trains and routes on a model.

    Attributes:
        block: Block of the matrix.
        entrance: Whether the matrix is that at the MLP's entrance instead of the output projection.
        lr: Learning rate of plain gradient steps.
        steps: Steps of an edit at the most.
        alpha: Distance that unrelated prompts are to stay below, as a share of the size of the matrix's activations.
        beta: Distance that edited prompts are to exceed, likewise.
        gamma: By how much the two are to differ, likewise.
        absolute: Whether these are distances as they are.
        act_ratio: The threshold is this times the least distance of an edited prompt.
        seed: Seed of the masks.
    """

    block: int
    entrance: bool = False
    lr: float = 0.05
    steps: int = 30
    alpha: float = 0.03
    beta: float = 0.3
    gamma: float = 0.15
    absolute: bool = False
    act_ratio: float = 0.88
    seed: int = 0

    @property
    def place(self) -> Place:
        """Where the memory stands."""
        return Place(self.block, self.entrance)


@dataclass(frozen=True, kw_only=True)
class WiseConfig(_Wise):
    """How WISE is to train and route; what is not given suits the model at hand.

    Attributes:
        block: Block of the matrix; at nine tenths of the depth by default.
        entrance: Whether the matrix is that at the MLP's entrance instead of the output projection.
        lr: Learning rate of plain gradient steps.
        steps: Steps of an edit at the most.
        alpha: Distance that unrelated prompts are to stay below, as a share of the size of the matrix's activations.
        beta: Distance that edited prompts are to exceed, likewise.
        gamma: By how much the two are to differ, likewise.
        absolute: Whether these are distances as they are.
        act_ratio: The threshold is this times the least distance of an edited prompt.
        seed: Seed of the masks; the run's by default.
    """

    block: Annotated[int, Gt(-1)] | None = None
    entrance: bool | None = None
    lr: Above | None = None
    steps: Positive | None = None
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    absolute: bool | None = None
    act_ratio: Above | None = None
    seed: Annotated[int, Gt(-1)] | None = None

    def suited(self, model: LanguageModel, protocol: str | None = None, seed: int = 0) -> WiseSettings:
        """What this comes to on a model."""
        own = {"block": min(round(0.9 * model.n_layers), model.n_layers - 1), "seed": seed}
        return WiseSettings(**{**own, **_known(WISE_OF, model, protocol), **_given(self)})


@dataclass(frozen=True, kw_only=True)
class _RLEdit:
    """What RLEdit has alike for every model.

    Attributes:
        depth: How many blocks the network has.
        meta_lr: Adam's learning rate for the network.
        local: Weight of the divergence on unrelated prompts.
        penalty: Weight of ‖Δ‖².
        discount: μ, by which older batches count less.
        back: How many batches a loss looks back on, itself counted.
        clip: The norm that gradients are cut to.
        clipped: Whether once, before a step of the network, or after every batch, as published, where the last batch
            then counts most.
        penalised: Whether the penalty has a gradient; in the published code it has none.
        step: Whether the network takes a step after a trajectory, or after every batch.
        facts_at_once: Facts of a batch of the training.
        rows_at_once: Rows of a pass.
        epochs: How often the trajectory is gone through.
    """

    depth: Positive = 4
    meta_lr: Above = 1e-5
    local: float = 0.6
    penalty: float = 1e-4
    discount: Annotated[float, Le(1)] = 0.95
    back: Positive = 10
    clip: Above = 1.0
    clipped: Literal["once", "each"] = "once"
    penalised: bool = True
    step: Literal["trajectory", "batch"] = "trajectory"
    facts_at_once: Positive = 20
    rows_at_once: Positive = 4
    epochs: Positive = 1


@dataclass(frozen=True, kw_only=True)
class RLEditSettings(_RLEdit):
    """How RLEdit is trained and edits on a model.

    Attributes:
        blocks: Blocks whose matrices are changed.
        projections: Whether these are the MLPs' output projections instead of the maps at their entrance.
        rate: η at first.
        rank: Rank of the network's blocks.
        batches: Batches of a trajectory at the most.
        edited_at_once: Facts that are edited at once, batch after batch.
        seed: Seed of the network, and of which paraphrase and neighbour a fact is trained with.
    """

    blocks: tuple[int, ...]
    projections: bool = False
    rate: float = 3e-4
    rank: int = 256
    batches: int = 10
    edited_at_once: int = 20
    seed: int = 0

    def modules(self, model: LanguageModel) -> dict[str, nn.Module]:
        """What is changed."""
        if not self.blocks or min(self.blocks) < 1 or max(self.blocks) >= model.n_layers:
            raise InputError(
                f"expected ⟨rledit.blocks⟩ of 1 to {model.n_layers - 1}, got "
                f"{', '.join(map(str, self.blocks)) or 'none'}: choose among them"
            )
        names = {module: name for name, module in model.hf.named_modules()}
        chosen = [
            module
            for block in self.blocks
            for module in ([model.projection(block)] if self.projections else model.inner(block))
        ]
        return {names[module]: module for module in chosen}


@dataclass(frozen=True, kw_only=True)
class RLEditConfig(_RLEdit):
    """How RLEdit is to be trained and to edit; what is not given suits the model at hand.

    Attributes:
        blocks: Blocks whose matrices are changed; nine at two thirds of the depth by default.
        projections: Whether these are the MLPs' output projections instead of the maps at their entrance.
        rate: η at first.
        rank: Rank of the network's blocks.
        batches: Batches of a trajectory at the most.
        edited_at_once: Facts that are edited at once, batch after batch; as many as in training by default.
        seed: Seed of the network, and of which paraphrase and neighbour a fact is trained with; the run's by default.
    """

    blocks: tuple[Annotated[int, Gt(0)], ...] | None = None
    projections: bool | None = None
    rate: Above | None = None
    rank: Positive | None = None
    batches: Positive | None = None
    edited_at_once: Positive | None = None
    seed: Annotated[int, Gt(-1)] | None = None

    def suited(self, model: LanguageModel, protocol: str | None = None, seed: int = 0) -> RLEditSettings:
        """What this comes to on a model."""
        first = round(0.68 * model.n_layers)
        blocks = tuple(range(first, min(first + 9, model.n_layers)))
        own = {"blocks": blocks, "edited_at_once": self.facts_at_once, "seed": seed}
        return RLEditSettings(**{**own, **_known(RLEDIT_OF, model, protocol), **_given(self)})


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of all methods that train, on a model.

    Attributes:
        wise: WISE's.
        rledit: RLEdit's.
    """

    wise: WiseSettings
    rledit: RLEditSettings


@dataclass(frozen=True)
class TrainingConfig:
    """What is asked of all methods that train.

    Attributes:
        wise: Of WISE.
        rledit: Of RLEdit.
    """

    wise: WiseConfig = field(default_factory=WiseConfig)
    rledit: RLEditConfig = field(default_factory=RLEditConfig)

    def suited(self, model: LanguageModel, protocol: str | None = None, seed: int = 0) -> TrainingSettings:
        """What this comes to on a model."""
        return TrainingSettings(self.wise.suited(model, protocol, seed), self.rledit.suited(model, protocol, seed))


def _known(of: Mapping[str, Mapping[str, Any]], model: LanguageModel, protocol: str | None) -> Mapping[str, Any]:
    return of.get((protocol or model.known()).lower(), {})


def _given(config: WiseConfig | RLEditConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if value is not None}
