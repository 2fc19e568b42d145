"""J_{l→L} of every fact and layer: spectra, verdicts and yardsticks, into a run."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jacobian_lab.caching import content_key
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.jobs.config import DENSE, LANCZOS, METHODS, SubjectConfig
from jacobian_lab.jobs.setup import Subject, load_subject
from jacobian_lab.maps.conditions import (
    cosine,
    eigen_residual,
    eigenspaces,
    eigenvector_angle,
    gain,
    plane_angle,
    rayleigh_quotient,
)
from jacobian_lab.maps.definiteness import (
    Definiteness,
    definiteness,
    definiteness_matrix_free,
    is_positive_definite,
    largest_singular_value,
    positive_share,
    symmetric_part,
)
from jacobian_lab.maps.jacobians import MEMORY_BUDGET, dense_jacobians, linear_operator, precision, to_numpy
from jacobian_lab.maps.replay import MLP, RESIDUAL, Frozen, Site, freeze
from jacobian_lab.maps.spectra import henrici_departure, rotation
from jacobian_lab.model.fitting import check_lengths
from jacobian_lab.model.language_model import LanguageModel, Layers
from jacobian_lab.progress import bar
from jacobian_lab.store.run import Run, check_folder, marked
from jacobian_lab.store.schema import DECISIONS

RANDOM_DIRECTIONS = 64
"""Random directions that serve as a yardstick for each Jacobian."""


@dataclass(frozen=True)
class JacobianConfig(SubjectConfig):
    """Survey J_{l→L} at the decisive token of every fact: spectra, and the verdict of theorem 2.

    Whatever is not given suits the model at hand.

    Attributes:
        site: residual (the stream behind a block) or mlp (what the block's MLP adds to it).
        method: dense, or lanczos for models whose J is too large to hold: extreme eigenvalues only.
        memory: GiB that a sweep may hold beside the model; changes no number beyond rounding.
    """

    site: str = RESIDUAL
    method: str = DENSE
    memory: float = MEMORY_BUDGET / 2**30


def run_jacobian(config: JacobianConfig, *, progress: bool = True) -> Path:
    """Survey the Jacobians, or what is left of them; a finished run computes nothing.

    Args:
        config: The configuration.
        progress: Whether to show progress bars.

    Returns:
        The run's folder.

    Raises:
        InputError: If anything cannot be used.
    """
    _check_config(config)
    model, file, layers = load_subject(config)
    if len(layers) == 1:
        raise InputError(f"expected at least two layers, l and L, got only {layers[0]}: give them as 4-8")
    check_lengths(model, file.facts, (("{}",),))
    subject = Subject(config, model, file, layers)
    settings = subject.settings() | {"site": config.site, "method": config.method}
    coordinates: dict[str, Sequence[Any]] = {
        "fact": subject.labels(),
        "layer": list(layers[:-1]),
        "rank": range(model.d_model),
    }
    folder = config.out or Path("runs") / content_key(settings)[:12]
    check_folder(folder, "jacobian", settings)
    if marked(folder, "surveyed"):
        return folder
    with Run(folder, "jacobian", settings, subject.provenance(), coordinates) as run:
        survey(
            run,
            model,
            file.facts,
            layers,
            config.seed,
            site=MLP if config.site == MLP else RESIDUAL,
            method=config.method,
            budget=int(config.memory * 2**30),
            progress=progress,
        )
    return folder


def survey(
    run: Run,
    model: LanguageModel,
    facts: Sequence[Fact],
    layers: Layers,
    seed: int,
    *,
    site: Site = RESIDUAL,
    method: str = DENSE,
    budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> None:
    """Store spectra, verdicts and yardsticks of the facts that a run lacks; one fact's Jacobians are held at a time.

    Args:
        run: A run that has these variables.
        model: The model, unedited.
        facts: All facts of the run.
        layers: Layers l and, the last of them, L.
        seed: Seed of the random directions and of Lanczos.
        site: The residual stream or the MLPs' outputs.
        method: ``"dense"`` or ``"lanczos"``.
        budget: Bytes that a sweep may hold.
        progress: Whether to show a progress bar.
    """
    labels = run.coordinates["fact"]
    if len(layers) == 1:  # J of the last layer to itself is the identity
        run.seal("surveyed")
        return
    left = np.flatnonzero(~run.done("surveyed")).tolist()
    with bar(len(left), "Jacobians", "fact", show=progress) as shown:
        for index in left:
            row = model.fact_prompt(facts[index]).cut()
            frozen = freeze(model, [row], layers[:-1], layers[-1])
            seeds = (
                seed,
                zlib.crc32(facts[index].text.encode()),
            )  # so that a fact's directions are its own in any slice
            for layer, found in zip(layers, _measured(frozen, layers, seeds, site, method, budget), strict=False):
                for name in found.keys() & run.variables.keys():
                    run.write(name, found[name], fact=labels[index], layer=layer)
            run.seal("surveyed", fact=labels[index])
            shown.update()


def dense_conditions(
    J: Float[np.ndarray, "d d"], seed: int | Sequence[int] = 0, eps: float | None = None
) -> dict[str, Any]:
    """All that is stored of one Jacobian, from the dense matrix.

    Args:
        J: The Jacobian.
        seed: Seed of the random directions; a run gives its own with one of the fact and the layer, so that no two
            Jacobians share them.
        eps: Precision that it was computed in; that of its dtype by default.

    Returns:
        Numbers and spectra by the names under which runs store them.
    """
    singular = np.linalg.svd(J.astype(np.float64), compute_uv=False)
    verdict = definiteness(J, eps, singular[0])
    spaces = eigenspaces(J)
    random = np.random.default_rng(seed).standard_normal((RANDOM_DIRECTIONS, len(J)))
    pushed = random @ J.T
    own = eigen_residual(spaces.lines, spaces.lines @ J.T)
    order = np.argsort(spaces.values.real)
    return _verdict(verdict) | {
        "cholesky": float(is_positive_definite(symmetric_part(J))),
        "positive_share": positive_share(verdict.eigenvalues),
        "sigma_max": singular[0],
        "sigma_min": singular[-1],
        "spectral_radius": np.abs(spaces.values).max(),
        "henrici": henrici_departure(J, spaces.values),
        "rotation": rotation(J),
        "eigenvector_count": len(spaces.lines),
        "eigenvector_residual": own.max() if len(own) else np.nan,
        "eigenvector_positive": (spaces.values[spaces.values.imag == 0].real > 0).mean() if len(own) else np.nan,
        "random_rayleigh": rayleigh_quotient(random, pushed).mean(),
        "random_gain": gain(random, pushed).mean(),
        "random_cosine": cosine(random, pushed).mean(),
        "random_positive": (cosine(random, pushed) > 0).mean(),
        "random_residual": eigen_residual(random, pushed).mean(),
        "random_eigenvector_angle": eigenvector_angle(spaces, random).mean(),
        "random_plane_angle": plane_angle(spaces, random).mean(),
        "symmetric_eigenvalue": verdict.eigenvalues,
        "singular_value": singular,
        "eigenvalue_real": spaces.values.real[order],
        "eigenvalue_imag": spaces.values.imag[order],
    }


def _measured(
    frozen: Frozen, layers: Layers, seeds: tuple[int, int], site: Site, method: str, budget: int
) -> list[dict[str, Any]]:
    """What is stored of one fact, layer by layer; seeds are the run's and the fact's."""
    eps = precision(frozen.model.dtype)
    if method == LANCZOS:
        operators = [linear_operator(frozen, 0, layer, layers[-1], site=site) for layer in layers[:-1]]
        norms = [largest_singular_value(J, seed=seeds[0]) for J in operators]
        return [
            _verdict(definiteness_matrix_free(J, norm, seed=seeds[0], eps=eps)) | {"sigma_max": norm}
            for J, norm in zip(operators, norms, strict=True)
        ]
    sweep = dense_jacobians(frozen, layers[:-1], layers[-1], site=site, budget=budget)
    return [dense_conditions(to_numpy(J[0]), (*seeds, layer), eps) for J, layer in zip(sweep, layers, strict=False)]


def _verdict(verdict: Definiteness) -> dict[str, Any]:
    return {
        "lambda_min": verdict.smallest,
        "lambda_max": verdict.largest,
        "lambda_error": verdict.error,
        "decision": DECISIONS[verdict.decision],
        "margin": verdict.margin,
    }


def _check_config(config: JacobianConfig) -> None:
    if config.site not in {RESIDUAL, MLP}:
        raise InputError(f"expected a site of residual or mlp, got {config.site!r}: choose one of them")
    if config.method not in METHODS:
        raise InputError(f"expected a method of dense or lanczos, got {config.method!r}: choose one of them")
    if not (math.isfinite(config.memory) and config.memory > 0):
        raise InputError(f"expected a number above zero, got --memory {config.memory}: give another")
