"""Edits that are looked at while the model is edited."""

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from jacobian_lab.editing.deltas import Form
from jacobian_lab.editing.folders import check_new_folder
from jacobian_lab.editing.methods import MethodEdit
from jacobian_lab.errors import InputError
from jacobian_lab.evaluation.evaluator import Evaluator
from jacobian_lab.model.language_model import LanguageModel
from jacobian_lab.progress import span
from jacobian_lab.report.cards import Card, write_card
from jacobian_lab.store.schema import KINDS
from jacobian_lab.training.trainers import Trainer


class Edit(ABC):
    """One edit, while the model is edited.

    Made by `Editor.edit`.

    Attributes:
        name: The method.
        evaluator: What the edited model is asked.
        settings: Everything that decided the edit, as JSON can hold it.
    """

    def __init__(self, name: str, evaluator: Evaluator, settings: Callable[[], dict[str, Any]]) -> None:
        self.name, self.evaluator, self.settings, self._inside = name, evaluator, settings, True

    @property
    def model(self) -> LanguageModel:
        """The model."""
        return self.evaluator.model

    @property
    @abstractmethod
    def weights(self) -> pd.DataFrame:
        """Change of the weights: a row a layer."""

    @abstractmethod
    def _summary(self) -> str:
        """The edit in words."""

    @abstractmethod
    def _write(self, form: Form, path: Path, settings: Mapping[str, Any]) -> None:
        """Write the edit."""

    def __repr__(self) -> str:
        count, state = len(self.evaluator.facts), "" if self._inside else ", put back"
        facts = f"{count} fact{'s' if count > 1 else ''}"
        return f"{self.name} on {facts} in {self.model.name}: {self._summary()}{state}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.weights.to_html()}"

    def leave(self) -> None:
        """Take note that the model is itself again."""
        self._inside = False

    def evaluate(self) -> pd.DataFrame:
        """The paper's metrics of the edited model.

        Returns:
            A row a fact, by its id: shares and nats (``kl``), a fact's prompts averaged; NaN where it has none.

        Raises:
            InputError: After the ``with`` block, when the model is itself again.
        """
        self._check_inside()
        rows = [values for _, answers in self.evaluator.answers() for values in answers]
        names = dict.fromkeys(name for values in rows for name in values)
        means = [{name: _mean(values.get(name, [])) for name in names} for values in rows]
        frame = pd.DataFrame(means, index=_ids(self.evaluator))
        return frame.drop(columns=[] if self.evaluator.groups else ["probe_accuracy"])

    def save(self, path: str | Path, *, lora: bool = False) -> Path:
        """Save the edit: for ``jacobian-lab apply``, the whole model, or an adapter for PEFT.

        Args:
            path: A file that ends in ``.safetensors``, for `load_delta` (WISE's for `load_wise`); else a new folder,
                for the model or the adapter.
            lora: Whether the folder is to be an adapter.

        Returns:
            The path.

        Raises:
            InputError: After the ``with`` block, if the path cannot be written, or if the rank is too high for an
                adapter.
        """
        self._check_inside()
        path = Path(path)
        is_file = path.suffix == ".safetensors"
        if is_file and lora:
            raise InputError(f"expected a folder for an adapter, got the file {path}: leave its ending out")
        if not is_file:
            check_new_folder(path)
        settings = self.settings()
        if is_file:
            self._write("delta", path, settings)
            return path
        form: Literal["lora", "folder"] = "lora" if lora else "folder"
        self._write(form, path, settings)
        model, layers = self.model, self.weights.index.tolist()
        facts, ridge = self.evaluator.facts, settings.get("ridge")
        write_card(Card(form, model.name, model.fingerprint, self.name, facts, layers, ridge), path)
        return path

    def _check_inside(self) -> None:
        if not self._inside:
            raise InputError("expected to be within the edit, got a model that is itself again: move it into the with")


class PairEdit(Edit):
    """An edit by a target scheme with an update rule.

    Attributes:
        deltas: ΔW by layer.
    """

    def __init__(
        self,
        name: str,
        evaluator: Evaluator,
        settings: Callable[[], dict[str, Any]],
        edit: MethodEdit,
        measured: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        super().__init__(name, evaluator, settings)
        self.deltas, self._edit, self._measured = edit.deltas, edit, measured

    def _summary(self) -> str:
        largest = max(self._edit.values["update_norm"])
        return f"layers {span(tuple(self.deltas))}, largest ‖ΔW‖/‖W‖ {largest:.2g}"

    def _write(self, form: Form, path: Path, settings: Mapping[str, Any]) -> None:
        self._edit.save(form, path, self.model, settings)

    @property
    def weights(self) -> pd.DataFrame:
        """Change of each weight: a row a layer."""
        return pd.DataFrame(self._edit.values, index=pd.Index(list(self.deltas), name="layer"))

    @cached_property
    def measures(self) -> xr.Dataset:
        """The quantities of Tables 1, 2 and 5 and the split of every passive shift, ``[fact, layer]``.

        Raises:
            InputError: For a method that optimises its second anchor on the edited model, which has not one target.
        """
        values_by_name, variables = self._measured(), KINDS["tables"]
        arrays = {
            name: xr.DataArray(
                values.cpu().numpy(),
                dims=("fact", "layer") if values.dim() == 2 else ("layer",),
                attrs={"long_name": variables[name].long_name, "units": variables[name].units},
            )
            for name, values in values_by_name.items()
        }
        labels = {"fact": _ids(self.evaluator), "layer": list(self.deltas)}
        return xr.Dataset(arrays, coords=labels, attrs={"method": self.name, "model": self.model.name})


class TrainedEdit(Edit):
    """An edit by a method that trains.

    Attributes:
        training: What the method says of its training, by the names under which runs store it.
    """

    def __init__(
        self, name: str, evaluator: Evaluator, settings: Callable[[], dict[str, Any]], trainer: Trainer
    ) -> None:
        super().__init__(name, evaluator, settings)
        self.training, self._trainer = trainer.diagnostics(), trainer

    def _summary(self) -> str:
        if "threshold" in self.training:
            return f"a side memory, which serves from a distance of {self.training['threshold']:.2g} on"
        changed = self.weights["changed_norm"]
        return f"blocks {span(tuple(changed.index))}, largest ‖ΔW‖/‖W‖ {changed.max():.2g}"

    def _write(self, form: Form, path: Path, settings: Mapping[str, Any]) -> None:
        self._trainer.save(form, path, settings)

    @property
    def weights(self) -> pd.DataFrame:
        """Change of the weights: a row a block; none where they are as they were."""
        changed = {name: self.training[name] for name in ("changed_norm", "changed_rank") if name in self.training}
        return pd.DataFrame(changed).rename_axis("block").dropna()

    @property
    def facts(self) -> pd.DataFrame:
        """Training of each fact: a row a fact, by its id."""
        names = ("training_steps", "training_loss", "distance")
        return pd.DataFrame({n: self.training[n] for n in names if n in self.training}, index=_ids(self.evaluator))

    @property
    def measures(self) -> xr.Dataset:
        """Measures of targets, which a method that trains has not.

        Raises:
            InputError: Always.
        """
        raise InputError(f"expected a method with targets, got {self.name!r}, which trains: it has no such measures")


def _ids(evaluator: Evaluator) -> pd.Index:
    return pd.Index([fact.id for fact in evaluator.facts], name="fact")


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
