"""Diagnoses of facts before their edit, a record each, from anchors that are optimized or that another run holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jacobian_lab.catalogue import COORDINATED, SCHEMES
from jacobian_lab.editing.diagnosis import LayerDiagnosis, diagnosed_layers
from jacobian_lab.jobs.experiment import Experiment
from jacobian_lab.jobs.present import present_answers
from jacobian_lab.maps.operator import Jacobian
from jacobian_lab.model.language_model import Layers
from jacobian_lab.progress import bar
from jacobian_lab.session.descents import (
    ANCHOR,
    CLAMPED,
    LOSS,
    PASSES,
    SHIFT,
    InMemory,
    Labels,
    places_of,
)
from jacobian_lab.store.run import open_run

Record = dict[str, Any]
"""Diagnosis of one fact, as JSON can hold it: an absent number is None. ``layers`` holds those of each layer."""
Bounds = Mapping[str, np.ndarray]
"""``lambda_min`` and ``lambda_max`` of S, ``[fact, layer]`` over the decisive layers."""
OF_FACT = ("loss", "passes", "reached", "rank", "probability", "decisive", "prompt_tokens")
"""Numbers of a fact that belong to no layer."""
OF_LAYER = (
    *("ease", "key_cosine", "key_cosine_whitened", "alone", "together", "realised", "crosstalk", "out_of_reach"),
    *("residual_cosine", "rayleigh", "lambda_min", "range_position"),
)
"""Numbers of a fact at a layer."""


def diagnose(
    experiment: Experiment,
    scheme: str,
    recorder: InMemory | None = None,
    *,
    ridge: float | None = None,
    bounds: Bounds | None = None,
) -> list[Record]:
    """Diagnose the joint edit of all facts by a scheme, on the unedited model.

    Descents that the recorder lacks are optimized. λ is the session's by default. Without bounds of S nothing is said
    of λ_min.
    """
    session, recorder = experiment.session, InMemory() if recorder is None else recorder
    targets = session.targets(recorder, (scheme,))
    setting = session.setting if ridge is None else replace(session.setting, ridge=ridge)
    records = [
        {"id": label} | descent | answer
        for label, descent, answer in zip(
            experiment.labels(), _descents(experiment, scheme, recorder), _present(experiment), strict=True
        )
    ]
    edited = SCHEMES[scheme].edited(experiment.layers)
    with bar(len(edited), "diagnosis", "layer", show=session.progress) as progress_bar:
        for own in diagnosed_layers(setting, SCHEMES[scheme], targets):
            for record, values in zip(records, _at_layer(experiment, own, bounds), strict=True):
                record.setdefault("layers", []).append(values)
            progress_bar.update()
    return records


def symmetric_bounds(experiment: Experiment) -> Bounds:
    """Survey S = (J + Jᵀ)/2 of every fact and layer below the last; NaN at the last."""
    model, layers = experiment.model, experiment.layers
    ends = np.full((2, len(experiment.facts), len(layers)), np.nan)
    with bar(len(experiment.facts), "Jacobians", "fact", show=experiment.session.progress) as progress_bar:
        for place, fact in enumerate(experiment.facts):
            for index, layer in enumerate(layers[:-1]):
                verdict = Jacobian(model, fact, layer, layers[-1]).definiteness()
                ends[:, place, index] = verdict.smallest, verdict.largest
            progress_bar.update()
    return {"lambda_min": ends[0], "lambda_max": ends[1]}


def donated(experiment: Experiment, scheme: str) -> InMemory:
    """Read what a scheme needs of the descents of the run that ⟨anchors_from⟩ names, as far as it has them."""
    recorder, donor, labels = InMemory(), experiment.donor, experiment.labels()
    if donor is None:
        return recorder
    stored = open_run(donor.folder)
    for name, where in _descents_of(scheme, experiment.layers, experiment.session.anchor_layers):
        if set(stored.get(PASSES.format(name), stored["fact"]).dims) - {"fact", *where}:
            continue  # several descents at one place, such as those of tune
        usable = donor.gives(name, where, labels, experiment.settings(), experiment.deciding(name))
        facts = np.flatnonzero(usable).tolist()
        if facts:
            cells = {"fact": [labels[fact] for fact in facts], **where}
            names = (name, *(rest.format(name) for rest in (LOSS, PASSES, CLAMPED)))
            states, loss, passes, clamped = (torch.tensor(stored[variable].sel(cells).values) for variable in names)
            recorder.put(name, where, facts, (states, loss, passes, clamped, torch.full_like(loss, torch.nan)))
    return recorder


def table_of(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate records, a row for each fact and layer."""
    rows = [
        {"fact": record["id"], **{name: record[name] for name in OF_FACT}, **layer}
        for record in records
        for layer in record["layers"]
    ]
    return pd.DataFrame(rows, columns=["fact", "layer", *OF_FACT, *OF_LAYER])


def features_of(record: Record) -> dict[str, float]:
    """Describe a fact by as many numbers on every model: those of layers at the first, the last, and on average."""

    def number(value: float | None) -> float:
        return np.nan if value is None else float(value)

    features = {name: number(record[name]) for name in OF_FACT}
    for name in OF_LAYER:
        values = np.array([number(layer.get(name)) for layer in record["layers"]])
        finite = values[np.isfinite(values)]
        mean = finite.mean() if finite.size else np.nan
        features |= {f"{name}, first layer": values[0], f"{name}, last layer": values[-1], f"{name}, mean": mean}
    return features


def _descents_of(scheme: str, layers: Layers, ends: Iterable[int]) -> list[tuple[str, Labels]]:
    """List a scheme's descents, name and place: anchors at some ends of the layers, and what it needs beside them."""
    kind = SCHEMES[scheme].kind
    places: list[tuple[str, Labels]] = [(ANCHOR, {"anchor_layer": layer}) for layer in ends]
    places += [(SHIFT, {})] if kind == COORDINATED else []
    return places + places_of((kind,), layers)


def _descents(experiment: Experiment, scheme: str, recorder: InMemory) -> list[Record]:
    """Tell how the descents of a scheme ended: the largest loss, the most passes, and if all came to their end."""
    settings, every = experiment.session.anchor, range(len(experiment.facts))
    ends = [
        (recorder.get(LOSS.format(name), where, every), recorder.get(PASSES.format(name), where, every))
        for name, where in _descents_of(scheme, experiment.layers, SCHEMES[scheme].anchored(experiment.layers))
    ]
    losses, passes = (torch.stack(values) for values in zip(*ends, strict=True))
    reached = losses.isfinite() & ((losses < settings.stop_loss) | (passes < settings.steps))
    return [
        {"loss": _number(loss), "passes": int(count), "reached": bool(end)}
        for loss, count, end in zip(losses.amax(0), passes.amax(0), reached.all(0), strict=True)
    ]


def _present(experiment: Experiment) -> list[Record]:
    """Say of each fact what the model gives now, and where its subject stands."""
    rows = experiment.rows
    answers = present_answers(experiment.model, rows.answered, progress=False)
    return [
        {
            "rank": answer["rank"],
            "probability": answer["probability"],
            "decisive": row.decisive,
            "prompt_tokens": row.prompt_length,
        }
        for row, answer in zip(rows.answered, answers, strict=True)
    ]


def _at_layer(experiment: Experiment, own: LayerDiagnosis, bounds: Bounds | None) -> list[Record]:
    """Put the numbers of a layer into a record for each fact."""
    labels, place = experiment.labels(), experiment.layers.index(own.layer)
    values = {name: tensor.cpu().numpy() for name, tensor in own.values.items()}
    if bounds is not None:
        low, high = bounds["lambda_min"][:, place], bounds["lambda_max"][:, place]
        values |= {"lambda_min": low, "range_position": (values["rayleigh"] - low) / (high - low)}
    near = zip(own.near.facts.tolist(), own.near.cosines.tolist(), strict=True)
    return [
        {"layer": own.layer}
        | {name: _number(column[fact]) for name, column in values.items()}
        | {"nearest": [{"id": labels[n], "cosine": c} for n, c in zip(facts, cosines, strict=True)]}
        for fact, (facts, cosines) in enumerate(near)
    ]


def _number(value: float | Tensor) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
