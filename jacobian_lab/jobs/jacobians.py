"""J_{l→L} of every fact and layer: spectra, verdicts and yardsticks, into a run."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import JacobianConfig
from jacobian_lab.jobs.job import Job, Labels, Part, cell_by_cell
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
from jacobian_lab.maps.replay import RESIDUAL, Frozen, Site, freeze
from jacobian_lab.maps.spectra import henrici_departure, rotation
from jacobian_lab.model.language_model import Layers
from jacobian_lab.store.run import Run
from jacobian_lab.store.schema import DECISIONS

RANDOM_DIRECTIONS = 64
"""Random directions that serve as a yardstick for each Jacobian."""


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
    subject = load_subject(config)
    model, layers = subject.model, subject.layers
    if len(layers) == 1:
        raise InputError(f"expected at least two layers, l and L, got only {layers[0]}: give them as 4-8")

    def surveyed(run: Run) -> None:
        budget = int(config.memory * 2**30)
        survey(run, subject, config.seed, site=config.site, kind=config.survey, budget=budget, progress=progress)

    return Job(
        "jacobian",
        config.out,
        subject.settings() | {"site": config.site, "method": config.survey},
        subject.provenance,
        {"fact": subject.labels(), "layer": list(layers[:-1]), "rank": range(model.d_model)},
        [Part([("surveyed", {})], surveyed)],
    ).carry_out()


def survey(
    run: Run,
    subject: Subject,
    seed: int,
    *,
    site: Site = RESIDUAL,
    kind: str = "dense",
    budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> None:
    """Store spectra, verdicts and yardsticks of the facts that a run lacks; one fact's Jacobians are held at a time.

    Args:
        run: A run that has these variables.
        subject: The unedited model, all facts of the run, layers l and, the last of them, L.
        seed: Seed of the random directions and of Lanczos.
        site: The residual stream or the MLPs' outputs.
        kind: ``"dense"`` or ``"lanczos"``.
        budget: Bytes that a sweep may hold.
        progress: Whether to show a progress bar.
    """
    model, layers = subject.model, subject.layers
    if len(layers) == 1:  # J of the last layer to itself is the identity
        run.seal("surveyed")
        return
    facts = dict(zip(run.coordinates["fact"], subject.facts, strict=True))

    def measured(fact: Any) -> Iterator[tuple[str, Any, Labels]]:
        row = model.fact_prompt(facts[fact]).cut()
        frozen = freeze(model, [row], layers[:-1], layers[-1])
        seeds = (seed, zlib.crc32(facts[fact].text.encode()))  # so that a fact's directions are its own in any slice
        for layer, found in zip(layers, _measured(frozen, layers, seeds, site, kind, budget), strict=False):
            for name in found.keys() & run.variables.keys():
                yield name, found[name], {"layer": layer}

    cell_by_cell(run, "surveyed", [{"fact": label} for label in facts], measured, "Jacobians", "fact", progress)


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
    frozen: Frozen, layers: Layers, seeds: tuple[int, int], site: Site, kind: str, budget: int
) -> list[dict[str, Any]]:
    """What is stored of one fact, layer by layer; seeds are the run's and the fact's."""
    eps = precision(frozen.model.dtype)
    if kind == "lanczos":
        operators = [linear_operator(frozen, 0, layer, layers[-1], site=site) for layer in layers[:-1]]
        norms = [largest_singular_value(J, seed=seeds[0]) for J in operators]
        return [
            _verdict(definiteness_matrix_free(J, norm, seed=seeds[0], eps=eps)) | {"sigma_max": norm}
            for J, norm in zip(operators, norms, strict=True)
        ]
    sweep = dense_jacobians(frozen, layers[:-1], layers[-1], site=site, budget=budget)
    return [dense_conditions(to_numpy(J), (*seeds, layer), eps) for J, layer in zip(sweep[0], layers, strict=False)]


def _verdict(verdict: Definiteness) -> dict[str, Any]:
    return {
        "lambda_min": verdict.smallest,
        "lambda_max": verdict.largest,
        "lambda_error": verdict.error,
        "decision": DECISIONS[verdict.decision],
        "margin": verdict.margin,
    }
