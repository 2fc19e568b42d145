"""Settings of the methods that train, under their authors' names, and their values for each model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from annotated_types import Gt, Le
from torch import nn

from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.model.protocols import literature
from jacobian_lab.training.wise_memory import Place

if TYPE_CHECKING:
    Unset = Any  # `resolved` leaves none of them None, and a type checker need not know when that was
else:
    Unset = None

Natural = Annotated[int, Gt(-1)]
Positive = Annotated[int, Gt(0)]
Above = Annotated[float, Gt(0)]
Fraction = Annotated[float, Gt(0), Le(1)]

RENAMED: Mapping[str, Mapping[str, str]] = {
    "wise": {
        "clamp": "norm_constraint",
        "decay": "weight_decay",
        "density": "densities",
        "lr": "edit_lr",
        "steps": "n_iter",
    },
    "rledit": {
        "depth": "n_blocks",
        "local": "loc_coef",
        "penalty": "reg_coef",
        "discount": "time_decay",
        "back": "back_depth",
        "clip": "max_grad_norm",
        "penalised": "penalized",
        "facts_at_once": "n_edits",
        "rows_at_once": "batch_size",
        "epochs": "n_epochs",
        "rate": "lr",
        "batches": "num_seq",
    },
}
"""Former names of settings, which runs and trainings are stored under, with the present ones."""

WISE_OF: Mapping[str, Mapping[str, Any]] = {
    "llama-3-8b-instruct": {
        "block": 29,
        "edit_lr": 0.9,
        "alpha": 2.0,
        "beta": 20.0,
        "gamma": 10.0,
        "absolute": True,
        "act_ratio": 0.5,
    },
    "gpt2-xl": {
        "block": 8,
        "entrance": True,
        "edit_lr": 1.0,
        "n_iter": 40,
        "alpha": 5.0,
        "beta": 20.0,
        "gamma": 10.0,
        "absolute": True,
        "act_ratio": 0.8,
    },
    "gpt-j-6b": {
        "block": 21,
        "edit_lr": 1.0,
        "n_iter": 70,
        "alpha": 15.0,
        "beta": 40.0,
        "gamma": 20.0,
        "absolute": True,
        "act_ratio": 0.88,
    },
}
"""Published values of WISE for the models of the paper; all else is the same for every model."""

_PUBLISHED = {"lr": 1e-6, "rank": 1024, "num_seq": 400}
RLEDIT_OF: Mapping[str, Mapping[str, Any]] = {
    "llama-3-8b-instruct": {"blocks": tuple(range(22, 31)), **_PUBLISHED},
    "gpt2-xl": {"blocks": tuple(range(32, 41)), "projections": True, **_PUBLISHED},
    "gpt-j-6b": {"blocks": tuple(range(22, 28)), "projections": True, **_PUBLISHED},
}
"""The same for RLEdit."""
UNTUNED = ("gpt2-xl", "gpt-j-6b")
"""Models that the paper has no RLEdit on, since no stable setting was found; theirs are those first published."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """A method's settings: unset ones are None until a model is there."""

    method: ClassVar[str]

    def stored(self) -> str:
        """JSON that identifies a training: byte for byte as it has always been, so that what was made is found."""
        former = {present: name for name, present in RENAMED[self.method].items()}
        return json.dumps({former.get(name, name): value for name, value in asdict(self).items()})

    def _filled(self, values: Mapping[str, Any]) -> Self:
        """The settings with values for those that are unset."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})


@dataclass(frozen=True, kw_only=True)
class WiseConfig(_Settings):
    """Settings of WISE, under EasyEdit's names where it has them.

    Attributes:
        mask_ratio: Share of the entries that a shard trains.
        norm_constraint: Farthest that an entry moves.
        weight_decay: Weight decay of a step.
        decayed: Entries that decay: those that the shard trains, all (as published, in float32), or none.
        shards: Shards that the facts are divided into; facts over shards is EasyEdit's save_freq.
        merged: Shards in a merge; merge_freq over save_freq in EasyEdit.
        densities: Share of a shard's changes that a merge keeps.
        retrieve: Keep merged memories apart, and let the farthest serve, instead of merging all into one.
        block: Block of the matrix; at nine tenths of the depth by default.
        entrance: Take the matrix at the MLP's entrance instead of the output projection.
        edit_lr: Learning rate of plain gradient steps.
        n_iter: Steps of an edit at the most.
        alpha: Distance that unrelated prompts are to stay below, as a share of the size of the matrix's activations.
        beta: Distance that edited prompts are to exceed, likewise.
        gamma: Least difference between the two, likewise.
        absolute: Take these as distances as they are, as EasyEdit does.
        act_ratio: The threshold is this times the least distance of an edited prompt.
        seed: Seed of the masks; the run's by default.
    """

    method: ClassVar[str] = "wise"

    mask_ratio: Fraction = 0.2
    norm_constraint: Above = 1.0
    weight_decay: float = 1e-5
    decayed: Literal["masked", "all", "none"] = "masked"
    shards: Positive = 4
    merged: Positive = 2
    densities: Fraction = 0.53
    retrieve: bool = False
    block: Natural | Unset = None
    entrance: bool | Unset = None
    edit_lr: Above | Unset = None
    n_iter: Positive | Unset = None
    alpha: float | Unset = None
    beta: float | Unset = None
    gamma: float | Unset = None
    absolute: bool | Unset = None
    act_ratio: Above | Unset = None
    seed: Natural | Unset = None

    def resolved(self, model: LanguageModel, protocol: str | None = None, seed: int = 0) -> Self:
        """Fill in what is unset for a model."""
        own: dict[str, Any] = {
            "block": min(round(0.9 * model.n_layers), model.n_layers - 1),
            "entrance": False,
            "edit_lr": 0.05,
            "n_iter": 30,
            "alpha": 0.03,
            "beta": 0.3,
            "gamma": 0.15,
            "absolute": False,
            "act_ratio": 0.88,
            "seed": seed,
        }
        return self._filled(own | _published(WISE_OF, model, protocol))

    @property
    def place(self) -> Place:
        """The memory's place."""
        return Place(self.block, self.entrance)


@dataclass(frozen=True, kw_only=True)
class RLEditConfig(_Settings):
    """Settings of RLEdit, under its authors' names where they have them.

    Attributes:
        n_blocks: Blocks of the network.
        meta_lr: Adam's learning rate for the network.
        loc_coef: Weight of the divergence on unrelated prompts.
        reg_coef: Weight of ‖Δ‖².
        time_decay: Factor μ by which an older batch counts less than the next.
        back_depth: Batches that a loss looks back on, its own among them.
        max_grad_norm: Norm that gradients are cut to.
        clipped: Cut once, before a step of the network, or after each batch, as published, where the last batch then
            counts most.
        penalized: Give the penalty a gradient; in the published code it has none.
        step: Step the network after a trajectory, or after every batch.
        n_edits: Facts of a batch of the training.
        batch_size: Rows of a pass.
        n_epochs: Passes through the trajectory.
        blocks: Blocks whose matrices are changed; nine at two thirds of the depth by default.
        projections: Change the MLPs' output projections instead of the maps at their entrance.
        lr: Initial η.
        rank: Rank of the network's blocks.
        num_seq: Batches of a trajectory at the most.
        edited_at_once: Facts that are edited at once, batch after batch; as many as in training by default.
        seed: Seed of the network, and of a fact's paraphrase and neighbour in training; the run's by default.
    """

    method: ClassVar[str] = "rledit"

    n_blocks: Positive = 4
    meta_lr: Above = 1e-5
    loc_coef: float = 0.6
    reg_coef: float = 1e-4
    time_decay: Annotated[float, Le(1)] = 0.95
    back_depth: Positive = 10
    max_grad_norm: Above = 1.0
    clipped: Literal["once", "each"] = "once"
    penalized: bool = True
    step: Literal["trajectory", "batch"] = "trajectory"
    n_edits: Positive = 20
    batch_size: Positive = 4
    n_epochs: Positive = 1
    blocks: tuple[Positive, ...] | Unset = None
    projections: bool | Unset = None
    lr: Above | Unset = None
    rank: Positive | Unset = None
    num_seq: Positive | Unset = None
    edited_at_once: Positive | Unset = None
    seed: Natural | Unset = None

    def resolved(self, model: LanguageModel, protocol: str | None = None, seed: int = 0) -> Self:
        """Fill in what is unset for a model."""
        first = round(0.68 * model.n_layers)
        own: dict[str, Any] = {
            "blocks": tuple(range(first, min(first + 9, model.n_layers))),
            "projections": False,
            "lr": 3e-4,
            "rank": 256,
            "num_seq": 10,
            "edited_at_once": self.n_edits,
            "seed": seed,
        }
        return self._filled(own | _published(RLEDIT_OF, model, protocol))

    def modules(self, model: LanguageModel) -> dict[str, nn.Module]:
        """Modules whose matrices are changed, by name."""
        if not self.blocks or min(self.blocks) < 1 or max(self.blocks) >= model.n_layers:
            raise InputError(
                f"expected ⟨rledit.blocks⟩ of 1 to {model.n_layers - 1}, got "
                f"{', '.join(map(str, self.blocks)) or 'none'}: choose among them"
            )
        names = {module: name for name, module in model.hf.named_modules()}
        return {
            names[module]: module
            for block in self.blocks
            for module in ([model.projection(block)] if self.projections else model.inner(block))
        }


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of all methods that train.

    Attributes:
        wise: Settings of WISE.
        rledit: Settings of RLEdit.
    """

    wise: WiseConfig = field(default_factory=WiseConfig)
    rledit: RLEditConfig = field(default_factory=RLEditConfig)

    def resolved(self, model: LanguageModel, protocol: str | None = None, seed: int = 0) -> Self:
        """Fill in what is unset for a model."""
        return replace(
            self,
            wise=self.wise.resolved(model, protocol, seed),
            rledit=self.rledit.resolved(model, protocol, seed),
        )


def _published(table: Mapping[str, Mapping[str, Any]], model: LanguageModel, protocol: str | None) -> dict[str, Any]:
    return dict(table.get(literature(protocol) or model.known_as(), {}))
