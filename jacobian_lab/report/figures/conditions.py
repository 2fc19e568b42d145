"""Figures of the theorems' conditions, and of Jacobians."""

import numpy as np
import xarray as xr
from matplotlib.figure import FigureBase

from jacobian_lab.report.figures.axes import mean_curve, schemes_with
from jacobian_lab.report.figures.style import STYLES
from jacobian_lab.report.writing import DEGREES, below_last
from jacobian_lab.store.run import config_of
from jacobian_lab.store.schema import DECISIONS

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
    """The strict condition and the milder one: the ends of S's spectrum for every fact, and cos(Jδ, δ)."""
    below = below_last(dataset)
    left, middle, right = figure.subplots(1, 3)
    layers = below["layer"].values
    for name, marker, label in (("lambda_max", "^", r"$\lambda_{\max}$"), ("lambda_min", "v", r"$\lambda_{\min}$")):
        shift = np.linspace(-0.25, 0.25, below.sizes["fact"])
        for place, layer in enumerate(layers):
            look = {
                "color": "0.2" if marker == "v" else "0.65",
                "marker": marker,
                "linestyle": "none",
                "markersize": 1.5,
            }
            left.plot(layer + shift, below[name].values[:, place], label=label if not place else None, **look)
    left.axhline(0, color="0.3", linewidth=0.6)
    left.set(ylabel=r"eigenvalues of $S$", xlabel="layer", xticks=layers)
    left.set_ylim(top=1.25 * left.get_ylim()[1])
    left.legend(fontsize="x-small", frameon=False, loc="upper right", ncols=2)
    definite = (below["decision"] == DECISIONS["definite"]).where(below["surveyed"] == 1)
    middle.plot(layers, definite.mean("fact"), **YARDSTICK | {"label": r"$S \succ 0$"})
    for scheme in schemes_with(below, "linear_cosine"):
        edit, look = below.sel(scheme=scheme), STYLES.get(scheme, {})
        positive = (edit["linear_cosine"] > 0).where(edit["linear_cosine"].notnull())
        middle.plot(layers, positive.mean("fact"), label=scheme, markersize=3, linewidth=1, **look)
        right.plot(layers, edit["linear_cosine"].mean("fact"), markersize=3, linewidth=1, **look)
        hollow = look | {"markerfacecolor": "white", "linestyle": "--"}
        right.plot(layers, edit["cosine"].mean("fact"), markersize=3, linewidth=0.8, **hollow)
    middle.set(ylabel="share of facts", ylim=(-0.04, 1.04))
    right.plot([], [], color="0.3", label=r"$\cos(J\delta, \delta)$")
    right.plot([], [], color="0.3", linestyle="--", label="realised")
    right.legend(fontsize="x-small", frameon=False)
    right.set(ylabel="mean cosine", ylim=(min(0.0, right.get_ylim()[0]), 1.02))
    for ax in (middle, right):
        ax.set(xlabel="layer", xticks=layers)
    figure.legend(*middle.get_legend_handles_labels(), fontsize="x-small", loc="outside upper center", ncols=7)


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
