"""Figures of the theorems' conditions, and of Jacobians."""

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.report.figures.axes import mean_curve
from jacobian_lab.report.figures.style import STYLES
from jacobian_lab.report.tables.theorems import definite_jacobians
from jacobian_lab.report.writing import DEGREES, below_last, schemes_with
from jacobian_lab.store.run import config_of

YARDSTICK = {"color": "0.5", "linestyle": ":", "linewidth": 1, "marker": "x", "markersize": 3}
"""Look of random directions."""


def theorem1(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Distance of the layers' shifts from eigenvectors: sin∠(Jδ, δ), and the angle to the nearest one."""
    below = below_last(dataset)
    left, *right = figure.subplots(1, 1 + has_angles(dataset), squeeze=False)[0]
    schemes = schemes_with(below, "eigen_residual")
    for scheme in schemes:
        mean_curve(left, dataset, below["eigen_residual"].sel(scheme=scheme), label=scheme, **STYLES.get(scheme, {}))
    mean_curve(left, dataset, below["random_residual"], label="random directions", **YARDSTICK)
    left.set(ylabel=r"$\sin\angle(J\delta, \delta)$", ylim=(0, 1.02))
    for ax in right:
        for scheme in schemes:
            angles = below["eigenvector_angle"].sel(scheme=scheme)
            mean_curve(ax, dataset, angles * DEGREES, **STYLES.get(scheme, {}))
        mean_curve(ax, dataset, below["random_eigenvector_angle"] * DEGREES, **YARDSTICK)
        lowest = 5 * np.floor(ax.get_ylim()[0] / 5)
        ax.set(ylabel="angle to the\nnearest eigenvector (°)", ylim=(max(0, lowest), 91))
    figure.legend(*left.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=4)


def has_angles(dataset: xr.Dataset) -> bool:
    """Tell if eigenvectors of J were sought for any fact."""
    return bool(dataset["eigenvector_angle"].notnull().any())


def theorem2(figure: FigureBase, dataset: xr.Dataset) -> None:
    """The strict condition and the milder one: the ends of S's spectrum for every fact, cos(Jδ, δ), and what came."""
    below = below_last(dataset)
    left, linear, realised = figure.subplots(1, 3)
    layers = below["layer"].values
    shift = np.linspace(-0.25, 0.25, below.sizes["fact"])
    ends = (("lambda_max", "^", "0.65", r"$\lambda_{\max}$"), ("lambda_min", "v", "0.2", r"$\lambda_{\min}$"))
    for name, marker, color, label in ends:
        places = layers[:, None] + shift
        left.plot(places.ravel(), below[name].values.T.ravel(), marker, color=color, markersize=1.5, label=label)
    left.axhline(0, color="0.3", linewidth=0.6)
    definite, surveyed = definite_jacobians(below)
    title = rf"$S \succ 0$: {definite:,} of {surveyed:,}"
    left.set(ylabel=r"eigenvalues of $S$", xlabel="layer", xticks=layers)
    left.set_title(title, fontsize="small")
    left.set_ylim(top=1.25 * left.get_ylim()[1])
    left.legend(fontsize="x-small", frameon=False, loc="upper right", ncols=2)
    for ax, variable, label in (
        (linear, "linear_cosine", r"$\cos(J\delta, \delta)$"),
        (realised, "cosine", r"realised cosine, $\cos(\delta_L, \delta)$"),
    ):
        for scheme in schemes_with(below, "linear_cosine"):
            mean_curve(ax, dataset, below[variable].sel(scheme=scheme), label=scheme, **STYLES.get(scheme, {}))
        ax.set(ylabel=label, ylim=(min(0.0, ax.get_ylim()[0]), 1.02))
    figure.legend(*linear.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=7)


def jacobian(figure: FigureBase, dataset: xr.Dataset) -> None:
    """Spectra of S and of J by layer, medians over facts, and how far J is from normal against the distance."""
    left, middle, gains, right = figure.subplots(1, 4)
    layers = dataset["layer"].values
    last = max(config_of(dataset)["settings"]["layers"])
    places = np.linspace(0, 1, dataset.sizes["rank"])
    for place, layer in enumerate(layers):
        spectra, grey = dataset.sel(layer=layer), str(0.7 * place / max(1, len(layers) - 1))
        left.plot(
            places, spectra["symmetric_eigenvalue"].median("fact"), color=grey, linewidth=1, label=f"layer {layer}"
        )
        middle.plot(places, spectra["singular_value"].median("fact"), color=grey, linewidth=1)
    left.axhline(0, color="0.3", linewidth=0.6, linestyle=":")
    left.set(ylabel="eigenvalues of $S$\n(symmetric log)", xlabel="share of the spectrum", yscale="symlog")
    middle.set(ylabel=r"singular values of $J$", xlabel="share of the spectrum", yscale="log")
    left.legend(fontsize="x-small", frameon=False)
    distance = dataset.assign_coords(layer=last - layers)
    mean_curve(right, dataset, distance["henrici"], label="Henrici's departure", color="0.1", marker="o")
    mean_curve(right, dataset, distance["rotation"], label=r"rotation $\|A\|/\|S\|$", color="0.5", marker="s")
    mean_curve(gains, dataset, distance["sigma_max"], label=r"$\sigma_{\max}$", color="0.1", marker="o")
    mean_curve(gains, dataset, distance["random_gain"], label="random directions", color="0.5", marker="s")
    gains.set(xlabel="distance $L - l$", ylabel="gain", ylim=(0, None))
    gains.legend(fontsize="x-small", frameon=False)
    right.set(xlabel="distance $L - l$", ylim=(0, None))
    right.legend(fontsize="x-small", frameon=False)
