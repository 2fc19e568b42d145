"""RLEdit: a hypernetwork trained over sequences of edits, then used on the facts to be edited."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacobian_lab.editing.deltas import delta_dtype, save_delta, save_model
from jacobian_lab.errors import InputError
from jacobian_lab.maps.replay import Frozen, freeze, tail_outputs
from jacobian_lab.model.edited import sole_edit
from jacobian_lab.model.language_model import LanguageModel, matrix
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.hypernetworks import (
    Hypernetwork,
    Normaliser,
    Solve,
    changes_by_block,
    pull_back,
    total_norm,
)
from jacobian_lab.training.lessons import Lesson
from jacobian_lab.training.settings import RLEditConfig

Shape = tuple[int, int]
_LOWER = "lower ⟨rledit.lr⟩ or ⟨rledit.meta_lr⟩, or give ⟨dtype⟩ float32"


@dataclass(frozen=True, eq=False)
class _Told:
    """What some rows say of the changed matrices: their loss, and its gradients."""

    loss: Tensor
    inputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


@dataclass(eq=False)
class RLEdit:
    """A hypernetwork for a model, and what it has learnt so far.

    Attributes:
        model: The model; edited in place, within `edited`.
        lessons: What it is trained with, in batches one after the other.
        rows: What it edits: the rewriting prompts with the new answers.
        settings: How it is trained and edits.
        networks: One for each shape of matrix.
        normalisers: Likewise.
        losses: Of every batch of the training: what the edit should do, and the divergence that it causes.
        changed: The matrices as the trajectory that is gone through has left them; none where it begins.
        deltas: ΔW by module, of the last `edited`, in `delta_dtype`.
        before: The matrices before it.
        learnt: The loss of each fact's answer just after its own batch was edited.
    """

    model: LanguageModel
    lessons: Sequence[Lesson]
    rows: Sequence[Prompt]
    settings: RLEditConfig
    losses: list[tuple[float, float]] = field(default_factory=list)
    changed: dict[str, Tensor] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    learnt: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.modules = self.settings.modules(self.model)
        self.start = min(self.settings.blocks) - 1
        shapes: dict[Shape, list[str]] = {}
        for name, module in self.modules.items():
            outputs, inputs = matrix(module).shape
            shapes.setdefault((inputs, outputs), []).append(name)
        dtype, device = torch.promote_types(self.model.dtype, torch.float32), self.model.device
        chosen = self.settings
        self.networks = {
            shape: Hypernetwork(
                len(names),
                *shape,
                rank=chosen.rank,
                blocks=chosen.n_blocks,
                rate=chosen.lr,
                seed=chosen.seed,
                dtype=dtype,
            ).to(device)
            for shape, names in shapes.items()
        }
        self.normalisers = {shape: Normaliser(sum(shape), dtype, device) for shape in shapes}
        self.places = {name: (shape, number) for shape, names in shapes.items() for number, name in enumerate(names)}
        self.dtype = dtype
        parts = 3 * (chosen.back_depth + 1) * -(-chosen.n_edits // chosen.batch_size)
        self._below = lru_cache(parts)(self._run_below)
        self.adam = torch.optim.Adam(
            [p for network in self.networks.values() for p in network.parameters()], chosen.meta_lr
        )

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Put every changed matrix back bit for bit on leaving, whatever happens within."""
        with sole_edit(self.model):
            before = {name: matrix(module).clone() for name, module in self.modules.items()}
            try:
                yield
            finally:
                self._put(before)

    def train(self, advance: Callable[[int], Any] = lambda _: None) -> Iterator[None]:
        """Go through the lessons in sequences of edits, as often as is set, and learn from what the edits do.

        Between two batches nothing is left on the model but what `state` holds too, so that it can be put away there
        and gone on from.
        """
        settings = self.settings
        batches = _parts(self.lessons, settings.n_edits)[: settings.num_seq]
        while len(self.losses) < settings.n_epochs * len(batches):
            number = len(self.losses) % len(batches)
            with self.changing():
                self._put(self.changed)
                seen = batches[max(0, number + 1 - settings.back_depth) : number + 1]
                told = self._learn(list(reversed(seen)))
                self.changed = {name: matrix(module).clone() for name, module in self.modules.items()}
            if settings.clipped == "each":
                self._clip()
            if number + 1 == len(batches):
                self.changed = {}
            if settings.step == "batch" or not self.changed:
                self._step()
            self.losses.append(told)
            advance(len(batches[number]))
            yield

    @property
    def finished(self) -> int:
        """Facts that the network is trained with."""
        batches = _parts(self.lessons, self.settings.n_edits)[: self.settings.num_seq]
        return sum(len(batches[number % len(batches)]) for number in range(len(self.losses)))

    def state(self) -> dict[str, Tensor]:
        """All that goes from one batch to the next, as tensors: what `restore` goes on from."""
        found = {"losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2)}
        found |= {f"changed.{name}": weight for name, weight in self.changed.items()}
        for number, normaliser in enumerate(self.normalisers.values()):
            found |= {f"normaliser.{number}.{name}": each for name, each in normaliser.state().items()}
        for name, parameter in self._parameters():
            found[name] = parameter.detach()
            if parameter.grad is not None:
                found[f"{name}.grad"] = parameter.grad
            found |= {f"{name}.adam.{key}": each for key, each in self.adam.state[parameter].items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what another was that was made with the same model, lessons and settings."""
        self.losses = [(first, second) for first, second in state["losses"].tolist()]
        self.changed = {
            name: state[f"changed.{name}"].to(matrix(module))
            for name, module in self.modules.items()
            if f"changed.{name}" in state
        }
        for number, normaliser in enumerate(self.normalisers.values()):
            normaliser.restore({name: state[f"normaliser.{number}.{name}"] for name in normaliser.state()})
        for name, parameter in self._parameters():
            parameter.data.copy_(state[name])
            kept, moments = state.get(f"{name}.grad"), f"{name}.adam."
            parameter.grad = None if kept is None else kept.to(parameter, copy=True)
            self.adam.state[parameter] = {
                key.removeprefix(moments): each.clone() if each.dim() == 0 else each.to(parameter, copy=True)
                for key, each in state.items()
                if key.startswith(moments)
            }

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for number, network in enumerate(self.networks.values()):
            for name, parameter in network.named_parameters():
                yield f"network.{number}.{name}", parameter

    @contextmanager
    def edited(self, advance: Callable[[int], Any] = lambda _: None) -> Iterator[None]:
        """The model edited within, batch after batch as trained, and bit for bit as it was without."""
        kept = [(normaliser, normaliser.state()) for normaliser in self.normalisers.values()]
        self.before = before = {name: matrix(module).detach().clone() for name, module in self.modules.items()}
        asked = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in before.items()}
        self.learnt = []
        try:
            with self.changing():
                for some in _parts(self.rows, self.settings.edited_at_once):
                    for name, change in self._changes(self._told_of(some)).items():
                        asked[name] += change.T
                        self._write(name, before[name], asked[name])  # rounded once, not batch by batch
                    self.learnt += self._losses(some)
                    advance(len(some))
                dtype = delta_dtype(self.model)
                self.deltas = {name: each.to(dtype) for name, each in asked.items()}
                for name, delta in self.deltas.items():  # what is saved is what is measured
                    self._write(name, before[name], delta)
                yield
        finally:
            for normaliser, state in kept:
                normaliser.restore(state)

    @torch.no_grad()
    def _write(self, name: str, before: Tensor, change: Tensor) -> None:
        weight = matrix(self.modules[name])
        weight.copy_(before.double() + change.double())

    def told(self) -> dict[str, Any]:
        """How much each block changed, at which rank, and what its dtype did not take; what each fact's edit left."""
        found = changes_by_block(self.model, self.modules, self.before, self.deltas)
        return found | {"training_steps": [1.0] * len(self.rows), "training_loss": list(self.learnt)}

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write what `edited` changed last, as a delta, or the model as it is now."""
        if path.suffix == ".safetensors":
            save_delta(path, self.model, self._placed(self.deltas), config)
        else:
            save_model(self.model, path)

    def _placed(self, deltas: Mapping[str, Tensor]) -> dict[int | str, Tensor]:
        """Output projections by their layers."""
        layers = {self.model.projection(layer): layer for layer in range(self.model.n_layers)}
        return {layers.get(self.modules[name], name): delta for name, delta in deltas.items()}

    def _learn(self, seen: Sequence[Sequence[Lesson]]) -> tuple[float, float]:
        """Edit the newest of some batches, and take the gradients of what that does to all of them."""
        settings = self.settings
        parts = [
            (settings.time_decay**age, some)
            for age, batch in enumerate(seen)
            for some in _parts(batch, settings.batch_size)
        ]
        before = [self._log_p([each.unrelated for each in some]) for _, some in parts]
        told = self._told_of([each.edit for each in seen[0]])
        self._add(self._changes(told))
        totals = {name: torch.zeros_like(matrix(module).T, dtype=self.dtype) for name, module in self.modules.items()}
        losses = [0.0, 0.0]
        for (weight, some), reference in zip(parts, before, strict=True):
            for which, found, factor in (
                (0, self._told([each.other for each in some]), weight),
                (1, self._told([each.unrelated for each in some], reference), settings.loc_coef * weight),
            ):
                losses[which] += factor * float(found.loss)
                for name, total in totals.items():
                    inputs, gradients = found.inputs[name].flatten(0, 1), found.gradients[name].flatten(0, 1)
                    total += factor * (inputs.T @ gradients)
        penalty = settings.reg_coef if settings.penalized else 0.0
        for name, (keys, standard) in told.items():
            shape, number = self.places[name]
            pull_back(self.networks[shape], number, keys, standard, totals[name], penalty)
        return losses[0], losses[1]

    def _told_of(self, rows: Sequence[Prompt]) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys and standardised keys and gradients at the answers' tokens, by module."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.modules}
        for some in _parts(rows, self.settings.batch_size):
            told = self._told(some)
            lengths = [(len(row.ids) - len(row.answer), len(row.ids)) for row in some]
            for name in self.modules:
                keys = torch.cat([told.inputs[name][n, a:b] for n, (a, b) in enumerate(lengths)])
                gradients = torch.cat([told.gradients[name][n, a:b] for n, (a, b) in enumerate(lengths)])
                found[name].append((keys, gradients))
                self.normalisers[self.places[name][0]].see(torch.cat([keys, gradients], dim=1))
        whole = {}
        for name, parts in found.items():
            keys, gradients = (torch.cat(each) for each in zip(*parts, strict=True))
            normaliser = self.normalisers[self.places[name][0]]
            whole[name] = keys, normaliser(torch.cat([keys, gradients], dim=1))
        return whole

    @torch.no_grad()
    def _changes(self, told: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Float[Tensor, "in out"]]:
        changes = {}
        for name, (keys, standard) in told.items():
            shape, number = self.places[name]
            network = self.networks[shape]
            if not (torch.isfinite(keys).all() and torch.isfinite(standard).all()):
                raise InputError(f"expected finite keys and gradients, got NaN or infinity in {name}: {_LOWER}")
            changes[name] = Solve(keys, network.log_ridge[number].exp()).change(network(number, keys, standard))
            if not torch.isfinite(changes[name]).all():
                raise InputError(f"expected finite changes, got NaN or infinity in {name}: {_LOWER}")
        return changes

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            matrix(self.modules[name]).copy_(weight)

    @torch.no_grad()
    def _add(self, changes: Mapping[str, Float[Tensor, "in out"]]) -> None:
        for name, change in changes.items():
            weight = matrix(self.modules[name])
            weight.copy_(weight.double() + change.T.double())

    def _told(self, rows: Sequence[Prompt], reference: Tensor | None = None) -> _Told:
        """The loss of some rows' answers, or the divergence from a reference, and what it says of the matrices."""
        frozen, hidden = self._above(rows)
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(partial(_remember, inputs, outputs, name))
            for name, module in self.modules.items()
        ]
        try:
            log_p = self._log_p_of(frozen, hidden.requires_grad_())
        finally:
            for handle in handles:
                handle.remove()
        told = frozen.answer >= 0
        if reference is None:
            loss = -log_p.gather(-1, frozen.answer.clamp(min=0)[..., None])[..., 0][told].mean()
        else:
            loss = (reference[told].exp() * (reference[told] - log_p[told])).sum(-1).mean()
        names = list(outputs)
        gradients = torch.autograd.grad(loss, [outputs[name] for name in names])
        return _Told(
            loss.detach(),
            {name: inputs[name].detach().to(self.dtype) for name in names},
            {name: each.to(self.dtype) for name, each in zip(names, gradients, strict=True)},
        )

    @torch.no_grad()
    def _log_p(self, rows: Sequence[Prompt]) -> Float[Tensor, "row answer vocab"]:
        return self._log_p_of(*self._above(rows))

    def _log_p_of(self, frozen: Frozen, hidden: Float[Tensor, "row tail d_model"]) -> Float[Tensor, "row answer vocab"]:
        return frozen.model.head(tail_outputs(frozen, self.start, hidden)).double().log_softmax(-1)

    def _losses(self, rows: Sequence[Prompt]) -> list[float]:
        """Mean −log P of each row's answer."""
        found = []
        for some in _parts(rows, self.settings.batch_size):
            for row, log_p in zip(some, self._log_p(some), strict=True):
                found.append(float(-log_p[range(len(row.answer)), list(row.answer)].mean()))
        return found

    def _above(self, rows: Sequence[Prompt]) -> tuple[Frozen, Float[Tensor, "row token d_model"]]:
        """Rows from the lowest changed block on."""
        frozen = self._below(tuple(rows))
        return frozen, frozen.tails[self.start].clone()

    def _run_below(self, rows: tuple[Prompt, ...]) -> Frozen:
        """Rows below the lowest changed block, where nothing ever changes; kept while they are looked back on."""
        return freeze(self.model, [Prompt(row.ids, 0, row.answer) for row in rows], [self.start])

    def _clip(self) -> None:
        networks = list(self.networks.values())
        factor = self.settings.max_grad_norm / (float(total_norm(networks)) + 1e-6)
        if factor < 1:
            for network in networks:
                for parameter in network.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(factor)

    def _step(self) -> None:
        if self.settings.clipped == "once":
            self._clip()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def _remember(
    inputs: dict[str, Tensor], outputs: dict[str, Tensor], name: str, _module: Any, given: Any, output: Tensor
) -> None:
    inputs[name], outputs[name] = given[0], output


def _parts(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Rows, so many at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
