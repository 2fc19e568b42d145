"""How the methods train that do."""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from jacobian_lab.errors import InputError
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.training.memories import Place


@dataclass(frozen=True)
class WiseSettings:
    """How WISE trains and routes; what is not given suits the model at hand.

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
        mask_ratio: The share of the entries that a shard trains.
        clamp: How far an entry may move.
        decay: Weight decay of a step.
        decayed: Which entries decay: those that the shard trains, all (as published, in float32), or none.
        shards: Into how many shards the facts are divided.
        merged: After how many shards they are merged.
        density: The share of a shard's changes that a merge keeps.
        retrieve: Whether merged memories stay apart and the farthest serves, instead of one that all are merged into.
        seed: Seed of the masks.
    """

    block: int | None = None
    entrance: bool = False
    lr: float = 0.9
    steps: int = 30
    alpha: float = 0.1
    beta: float = 1.0
    gamma: float = 0.5
    absolute: bool = False
    act_ratio: float = 0.5
    mask_ratio: float = 0.2
    clamp: float = 1.0
    decay: float = 1e-5
    decayed: Literal["masked", "all", "none"] = "masked"
    shards: int = 4
    merged: int = 2
    density: float = 0.53
    retrieve: bool = False
    seed: int = 0

    def place(self, model: LanguageModel) -> Place:
        """Where the memory stands.

        Args:
            model: The model.

        Returns:
            The place.
        """
        return Place(round(0.9 * model.n_layers) if self.block is None else self.block, self.entrance)


@dataclass(frozen=True)
class RLEditSettings:
    """How RLEdit is trained and edits; what is not given suits the model at hand.

    Attributes:
        blocks: Blocks whose matrices are changed; nine at two thirds of the depth by default.
        projections: Whether these are the MLPs' output projections instead of the maps at their entrance.
        rank: Rank of the network's blocks.
        depth: How many blocks it has.
        meta_lr: Adam's learning rate for the network.
        rate: η at first.
        local: Weight of the divergence on unrelated prompts.
        penalty: Weight of ‖Δ‖².
        discount: μ, by which older batches count less.
        back: How many batches a loss looks back on, itself counted.
        clip: The norm that gradients are cut to.
        clipped: Whether once, before a step of the network, or after every batch, as published, where the last batch
            then counts most.
        penalised: Whether the penalty has a gradient; in the published code it has none.
        step: Whether the network takes a step after a trajectory, or after every batch.
        facts_at_once: Facts of a batch.
        rows_at_once: Rows of a pass.
        batches: Batches of a trajectory at the most.
        epochs: How often it is gone through.
        seed: Seed of the network, and of which paraphrase and neighbour a fact is trained with.
    """

    blocks: tuple[int, ...] | None = None
    projections: bool = False
    rank: int = 256
    depth: int = 4
    meta_lr: float = 1e-5
    rate: float = 1e-6
    local: float = 0.6
    penalty: float = 1e-4
    discount: float = 0.95
    back: int = 10
    clip: float = 1.0
    clipped: Literal["once", "each"] = "once"
    penalised: bool = True
    step: Literal["trajectory", "batch"] = "trajectory"
    facts_at_once: int = 20
    rows_at_once: int = 4
    batches: int = 20
    epochs: int = 1
    seed: int = 0

    def modules(self, model: LanguageModel) -> dict[str, nn.Module]:
        """What is changed.

        Args:
            model: The model.

        Returns:
            The modules by their names in it, block by block.

        Raises:
            InputError: If there is no such block.
        """
        middle = round(0.68 * model.n_layers)
        blocks = self.blocks or tuple(range(middle, min(middle + 9, model.n_layers)))
        if min(blocks) < 1 or max(blocks) >= model.n_layers:
            raise InputError(
                f"expected blocks of 1 to {model.n_layers - 1} for RLEdit, got {min(blocks)} to {max(blocks)}: choose "
                "among them"
            )
        names = {module: name for name, module in model.hf.named_modules()}
        chosen = [
            module
            for block in blocks
            for module in ([model.projection(block)] if self.projections else model.inner(block))
        ]
        return {names[module]: module for module in chosen}

    def first(self, model: LanguageModel) -> int:
        """The lowest block that is changed.

        Args:
            model: The model.

        Returns:
            Its index.
        """
        return min(self.blocks) if self.blocks else round(0.68 * model.n_layers)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of all methods that train.

    Attributes:
        wise: WISE's.
        rledit: RLEdit's.
    """

    wise: WiseSettings = field(default_factory=WiseSettings)
    rledit: RLEditSettings = field(default_factory=RLEditSettings)
