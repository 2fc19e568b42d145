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

from jacobian_lab.editing.deltas import Form, delta_dtype, save_edit
from jacobian_lab.errors import InputError
from jacobian_lab.maps.replay import Frozen, freeze, tail_outputs
from jacobian_lab.model.edited import sole_edit
from jacobian_lab.model.language_model import LanguageModel, matrix
from jacobian_lab.model.tokens import Prompt
from jacobian_lab.training.examples import TrainingExample
from jacobian_lab.training.hypernetworks import (
    Hypernetwork,
    Normalizer,
    Solve,
    changes_by_block,
    pull_back,
    total_norm,
)
from jacobian_lab.training.settings import RLEditConfig

Shape = tuple[int, int]
_LOWER = "lower ⟨rledit.lr⟩ or ⟨rledit.meta_lr⟩, or give ⟨dtype⟩ float32"


@dataclass(frozen=True, eq=False)
class _Pass:
    """Loss of rows, with inputs of the changed matrices and gradients at their outputs."""

    loss: Tensor
    inputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


@dataclass(eq=False)
class RLEdit:
    """A hypernetwork for a model, and its training so far.

    Attributes:
        model: The model; edited in place, within `edited`.
        training_examples: Its training examples, batch after batch.
        rows: Rows to edit: the rewriting prompts with the new answers.
        settings: The settings, resolved.
        networks: One for each shape of matrix.
        normalizers: One for each shape of matrix.
        losses: Loss of the answers, and divergence, of every batch of the training.
        changed: The matrices as the trajectory has left them so far; empty at its beginning.
        deltas: ΔW by module, of the last `edited`, in `delta_dtype`.
        before: The matrices before it.
        learnt: Loss of each fact's answer just after the edit of its batch.
    """

    model: LanguageModel
    training_examples: Sequence[TrainingExample]
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
        settings = self.settings
        self.networks = {
            shape: Hypernetwork(
                len(names),
                *shape,
                rank=settings.rank,
                blocks=settings.n_blocks,
                rate=settings.lr,
                seed=settings.seed,
                dtype=dtype,
            ).to(device)
            for shape, names in shapes.items()
        }
        self.normalizers = {shape: Normalizer(sum(shape), dtype, device) for shape in shapes}
        self.places = {name: (shape, number) for shape, names in shapes.items() for number, name in enumerate(names)}
        self.dtype = dtype
        parts = 3 * (settings.back_depth + 1) * -(-settings.n_edits // settings.batch_size)
        self._below = lru_cache(parts)(self._run_below)
        self.adam = torch.optim.Adam(
            [p for network in self.networks.values() for p in network.parameters()], settings.meta_lr
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
        """Edit with the training examples, batch after batch in sequences, and learn from the outcome.

        Between two batches `state` is all there is to continue from.
        """
        settings = self.settings
        batches = self._batches()
        while len(self.losses) < settings.n_epochs * len(batches):
            number = len(self.losses) % len(batches)
            with self.changing():
                self._put(self.changed)
                recent = batches[max(0, number + 1 - settings.back_depth) : number + 1]
                losses = self._learn(list(reversed(recent)))
                self.changed = {name: matrix(module).clone() for name, module in self.modules.items()}
            if settings.clipped == "each":
                self._clip()
            if number + 1 == len(batches):
                self.changed = {}
            if settings.step == "batch" or not self.changed:
                self._step()
            self.losses.append(losses)
            advance(len(batches[number]))
            yield

    @property
    def finished(self) -> int:
        """Number of facts in the training so far."""
        batches = self._batches()
        return sum(len(batches[number % len(batches)]) for number in range(len(self.losses)))

    def _batches(self) -> list[Sequence[TrainingExample]]:
        return _parts(self.training_examples, self.settings.n_edits)[: self.settings.num_seq]

    def state(self) -> dict[str, Tensor]:
        """State between two batches, as tensors, for `restore`."""
        state = {"losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2)}
        state |= {f"changed.{name}": weight for name, weight in self.changed.items()}
        for number, normalizer in enumerate(self.normalizers.values()):
            state |= {f"normaliser.{number}.{name}": value for name, value in normalizer.state().items()}
        for name, parameter in self._parameters():
            state[name] = parameter.detach()
            if parameter.grad is not None:
                state[f"{name}.grad"] = parameter.grad
            state |= {f"{name}.adam.{key}": value for key, value in self.adam.state[parameter].items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another that was made with the same model, examples and settings."""
        self.losses = [(first, second) for first, second in state["losses"].tolist()]
        self.changed = {
            name: state[f"changed.{name}"].to(matrix(module))
            for name, module in self.modules.items()
            if f"changed.{name}" in state
        }
        for number, normalizer in enumerate(self.normalizers.values()):
            normalizer.restore({name: state[f"normaliser.{number}.{name}"] for name in normalizer.state()})
        for name, parameter in self._parameters():
            parameter.data.copy_(state[name])
            gradient, moments = state.get(f"{name}.grad"), f"{name}.adam."
            parameter.grad = None if gradient is None else gradient.to(parameter, copy=True)
            self.adam.state[parameter] = {
                key.removeprefix(moments): value.clone() if value.dim() == 0 else value.to(parameter, copy=True)
                for key, value in state.items()
                if key.startswith(moments)
            }

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for number, network in enumerate(self.networks.values()):
            for name, parameter in network.named_parameters():
                yield f"network.{number}.{name}", parameter

    @contextmanager
    def edited(self, advance: Callable[[int], Any] = lambda _: None) -> Iterator[None]:
        """Edit the model within, batch after batch, and put it back bit for bit on leaving."""
        normalizers = [(normalizer, normalizer.state()) for normalizer in self.normalizers.values()]
        self.before = before = {name: matrix(module).detach().clone() for name, module in self.modules.items()}
        sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in before.items()}
        self.learnt = []
        try:
            with self.changing():
                for rows in _parts(self.rows, self.settings.edited_at_once):
                    for name, change in self._changes(self._keys_and_standardized(rows)).items():
                        sums[name] += change.T
                        self._write(name, before[name], sums[name])  # rounded once, not batch by batch
                    self.learnt += self._losses(rows)
                    advance(len(rows))
                dtype = delta_dtype(self.model)
                self.deltas = {name: total.to(dtype) for name, total in sums.items()}
                for name, delta in self.deltas.items():  # what is saved is what is measured
                    self._write(name, before[name], delta)
                yield
        finally:
            for normalizer, state in normalizers:
                normalizer.restore(state)

    @torch.no_grad()
    def _write(self, name: str, before: Tensor, change: Tensor) -> None:
        weight = matrix(self.modules[name])
        weight.copy_(before.double() + change.double())

    def diagnostics(self) -> dict[str, Any]:
        """Size, rank and rounding loss of each block's change, and the loss that each fact's edit left."""
        changes = changes_by_block(self.model, self.modules, self.before, self.deltas)
        return changes | {"training_steps": [1.0] * len(self.rows), "training_loss": list(self.learnt)}

    def save(self, form: Form, path: Path, config: Mapping[str, Any]) -> None:
        """Save the last change as a delta or an adapter, or the model as it is now."""
        save_edit(form, path, self.model, self._placed(self.deltas), config)

    def _placed(self, deltas: Mapping[str, Tensor]) -> dict[int | str, Tensor]:
        """Output projections by their layers."""
        layers = {self.model.projection(layer): layer for layer in range(self.model.n_layers)}
        return {layers.get(self.modules[name], name): delta for name, delta in deltas.items()}

    def _learn(self, batches: Sequence[Sequence[TrainingExample]]) -> tuple[float, float]:
        """Edit the first batch, the newest, and compute the gradients of the loss on all of them."""
        settings = self.settings
        parts = [
            (settings.time_decay**age, examples)
            for age, batch in enumerate(batches)
            for examples in _parts(batch, settings.batch_size)
        ]
        before = [self._log_p([example.unrelated for example in examples]) for _, examples in parts]
        keys_and_standardized = self._keys_and_standardized([example.edit for example in batches[0]])
        self._add(self._changes(keys_and_standardized))
        totals = {name: torch.zeros_like(matrix(module).T, dtype=self.dtype) for name, module in self.modules.items()}
        losses = [0.0, 0.0]
        for (weight, examples), reference in zip(parts, before, strict=True):
            for which, passed, factor in (
                (0, self._pass([example.other for example in examples]), weight),
                (1, self._pass([example.unrelated for example in examples], reference), settings.loc_coef * weight),
            ):
                losses[which] += factor * float(passed.loss)
                for name, total in totals.items():
                    inputs, gradients = passed.inputs[name].flatten(0, 1), passed.gradients[name].flatten(0, 1)
                    total += factor * (inputs.T @ gradients)
        penalty = settings.reg_coef if settings.penalized else 0.0
        for name, (keys, standard) in keys_and_standardized.items():
            shape, number = self.places[name]
            pull_back(self.networks[shape], number, keys, standard, totals[name], penalty)
        return losses[0], losses[1]

    def _keys_and_standardized(self, rows: Sequence[Prompt]) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys, and standardised keys with gradients, at the answers' tokens, by module."""
        by_module: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.modules}
        for part in _parts(rows, self.settings.batch_size):
            passed = self._pass(part)
            lengths = [(len(row.ids) - len(row.answer), len(row.ids)) for row in part]
            for name in self.modules:
                keys = torch.cat([passed.inputs[name][n, a:b] for n, (a, b) in enumerate(lengths)])
                gradients = torch.cat([passed.gradients[name][n, a:b] for n, (a, b) in enumerate(lengths)])
                by_module[name].append((keys, gradients))
                self.normalizers[self.places[name][0]].see(torch.cat([keys, gradients], dim=1))
        whole = {}
        for name, parts in by_module.items():
            keys, gradients = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            normalizer = self.normalizers[self.places[name][0]]
            whole[name] = keys, normalizer(torch.cat([keys, gradients], dim=1))
        return whole

    @torch.no_grad()
    def _changes(self, by_module: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Float[Tensor, "in out"]]:
        changes = {}
        for name, (keys, standard) in by_module.items():
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

    def _pass(self, rows: Sequence[Prompt], reference: Tensor | None = None) -> _Pass:
        """Compute the loss of rows' answers, or their divergence from a reference, and its gradients."""
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
        answered = frozen.answer >= 0
        if reference is None:
            loss = -log_p.gather(-1, frozen.answer.clamp(min=0)[..., None])[..., 0][answered].mean()
        else:
            loss = (reference[answered].exp() * (reference[answered] - log_p[answered])).sum(-1).mean()
        names = list(outputs)
        gradients = torch.autograd.grad(loss, [outputs[name] for name in names])
        return _Pass(
            loss.detach(),
            {name: inputs[name].detach().to(self.dtype) for name in names},
            {name: gradient.to(self.dtype) for name, gradient in zip(names, gradients, strict=True)},
        )

    @torch.no_grad()
    def _log_p(self, rows: Sequence[Prompt]) -> Float[Tensor, "row answer vocab"]:
        return self._log_p_of(*self._above(rows))

    def _log_p_of(self, frozen: Frozen, hidden: Float[Tensor, "row tail d_model"]) -> Float[Tensor, "row answer vocab"]:
        return frozen.model.head(tail_outputs(frozen, self.start, hidden)).double().log_softmax(-1)

    def _losses(self, rows: Sequence[Prompt]) -> list[float]:
        """Mean −log P of each row's answer."""
        losses = []
        for part in _parts(rows, self.settings.batch_size):
            for row, log_p in zip(part, self._log_p(part), strict=True):
                losses.append(float(-log_p[range(len(row.answer)), list(row.answer)].mean()))
        return losses

    def _above(self, rows: Sequence[Prompt]) -> tuple[Frozen, Float[Tensor, "row token d_model"]]:
        """Rows from the lowest changed block on."""
        frozen = self._below(tuple(rows))
        return frozen, frozen.tails[self.start].clone()

    def _run_below(self, rows: tuple[Prompt, ...]) -> Frozen:
        """Run rows below the lowest changed block, which never changes; cached while losses look back on them."""
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
    inputs: dict[str, Tensor], outputs: dict[str, Tensor], name: str, _module: Any, entering: Any, output: Tensor
) -> None:
    inputs[name], outputs[name] = entering[0], output


def _parts(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split rows into parts of a size."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
