"""Draw the pictures of the theory pages: the idea of each scheme, and one fact's J in the plane, measured.

    python docs/drawings.py           # all, into docs/images
    python docs/drawings.py idea      # some of them: idea, plane, vectors

The idea is a sketch; the other two show the fact `FACT` in the embedded model: its J, and what backward spreading
did to it in the run `RUN` (``make reproduce ARGS="--slice 0:32"``).
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import jacobian_lab as jl
from jacobian_lab.report.figures.style import STYLES, save, style
from jacobian_lab.store.run import open_run

IMAGES = Path(__file__).resolve().parent / "images"
FACT = "3:4"
RUN = Path("runs/reproduce")
LAYERS = (4, 5, 6, 7, 8)
BACK, FORTH, TOGETHER = (
    STYLES[f"{name}"]["color"] for name in ("backward-dividing", "forward-replay", "coordinated-replay")
)


def idea() -> Figure:
    """Sketch of the three schemes: where the descent is, and where the other layers' targets come from."""
    figure = Figure()
    panels = figure.subplots(1, 3)
    titles = ("backward spreading", "forward replay", "coordinated replay")
    for ax, title, color in zip(panels, titles, (BACK, FORTH, TOGETHER), strict=True):
        for place, layer in enumerate(LAYERS):
            box = FancyBboxPatch(
                (place - 0.28, -0.22), 0.56, 0.44, "round,pad=0.05", facecolor="white", edgecolor="0.4"
            )
            ax.add_patch(box)
            ax.text(place, 0, f"{layer}", ha="center", va="center", fontsize=7)
        arrow = {"arrowstyle": "-|>", "color": "0.4", "linewidth": 0.8}
        ax.annotate("", (5.1, 0), (4.4, 0), arrowprops=arrow)
        ax.text(5.2, 0, "answer", va="center", fontsize=7)
        ax.set_title(title, color=color)
        ax.set(xlim=(-0.7, 6.3), ylim=(-1.5, 1.5))
        ax.axis("off")
    back, forth, together = panels
    for place in range(4):
        _arc(back, 4, place, BACK, 0.35 + 0.1 * (4 - place))
        _arc(forth, place, place + 1, FORTH, -0.45)
        back.text(place, -0.6, f"R/{5 - place}", ha="center", fontsize=6, color=BACK)
        forth.text(place + 1, -0.6, rf"$F_{place + 5}(m_4)$", ha="center", fontsize=6, color=FORTH)
    back.text(4, -0.6, "R", ha="center", fontsize=6, color=BACK)
    forth.text(0, -0.6, "$m_4$", ha="center", fontsize=6, color=FORTH)
    _descent(back, 4, BACK)
    _descent(forth, 0, FORTH)
    for place in range(5):
        _descent(together, place, TOGETHER)
        together.text(place, -0.6, rf"$\delta_{place + 4}$", ha="center", fontsize=6, color=TOGETHER)
    notes = (
        "one descent at the last layer;\nevery layer gets a share of its residual",
        "one descent at the first layer;\nthe other targets are read off a forward pass",
        "one descent over a shift at every layer;\nthe effort is shared",
    )
    for ax, note in zip(panels, notes, strict=True):
        ax.text(2.3, -1.45, note, ha="center", va="bottom", fontsize=6)
    return figure


def _arc(ax: Axes, start: int, end: int, color: str, bend: float) -> None:
    arrow = FancyArrowPatch(
        (start, 0.3), (end, 0.3), connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=6, color=color
    )
    ax.add_patch(arrow)


def _descent(ax: Axes, place: int, color: str) -> None:
    ax.plot(place, 0.42, marker="*", color=color, markersize=7)


def plane() -> Figure:
    """Numerical range and eigenvalues of one fact's J between neighbouring and distant layers, in the complex plane."""
    model, (fact,) = jl.load_model(dtype="float64", device="cpu"), jl.load_facts("builtin", FACT)
    figure = Figure()
    for ax, layer in zip(figure.subplots(1, 3), (7, 6, 4), strict=True):
        J = jl.Jacobian(model, fact, layer, LAYERS[-1])
        boundary, values = J.numerical_range(128), np.linalg.eigvals(J.dense())
        verdict = J.definiteness()
        ax.fill(boundary.real, boundary.imag, facecolor="0.9", edgecolor="0.4", linewidth=0.8)
        ax.plot(values.real, values.imag, ".", color=BACK, markersize=1.5)
        ax.axvline(0, color="0.3", linewidth=0.6, linestyle=":")
        ax.plot([verdict.smallest, verdict.largest], [0, 0], "|", color=TOGETHER, markersize=6)
        ax.set(title=rf"$J_{{{layer} \to {LAYERS[-1]}}}$", xlabel="real part", aspect="equal")
    figure.axes[0].set(ylabel="imaginary part")
    return figure


def vectors() -> Figure:
    """Residual R, Jδ and the change that came, layer by layer of one edit: lengths over ‖R‖, angles to R."""
    stored = open_run(RUN).sel(scheme="backward-dividing").isel(fact=int(FACT.partition(":")[0]))
    names = ("residual_norm", "residual_ratio", "passive_shift_norm", "linear_norm", "linear_residual_cosine")
    measures = {name: stored[name].values for name in names}
    after = measures["residual_norm"]
    before = np.concatenate([[after[0] / measures["residual_ratio"][0]], after[:-1]])
    passive = measures["passive_shift_norm"] / before
    cosine = (1 + passive**2 - (after / before) ** 2) / (2 * passive)
    figure = Figure()
    for place, ax in enumerate(figure.subplots(1, len(LAYERS), sharey=True)):
        _arrow(ax, passive[place], cosine[place], color=TOGETHER, linewidth=2)
        linear = measures["linear_norm"][place] / before[place], measures["linear_residual_cosine"][place]
        _arrow(ax, *linear, color="0.1", linewidth=0.8)
        _arrow(ax, 1, 1.0, color="0.6", linewidth=1)
        ax.set(xlim=(-0.05, 1.1), ylim=(-0.05, 0.45), aspect="equal", xticks=[0, 1], yticks=[])
        ax.set_title(f"layer {LAYERS[place]}", fontsize="small")
    looks = {"residual $R$": ("0.6", 1), r"$J\delta$": ("0.1", 0.8), "change at layer 8": (TOGETHER, 2)}
    handles = [Line2D([], [], color=color, linewidth=width) for color, width in looks.values()]
    figure.legend(handles, list(looks), fontsize="x-small", loc="outside upper center", ncols=3)
    return figure


def _arrow(ax: Axes, length: float, cosine: float, **look: Any) -> None:
    angle = np.arccos(np.clip(cosine, -1, 1))
    end = (length * np.cos(angle), length * np.sin(angle))
    ax.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **look})


DRAWINGS: Mapping[str, tuple[Callable[[], Figure], int, float]] = {
    "idea": (idea, 3, 0.8),
    "plane": (plane, 3, 1.0),
    "vectors": (vectors, 5, 0.8),
}


def main() -> None:
    """Draw."""
    for name in sys.argv[1:] or DRAWINGS:
        draw, columns, height = DRAWINGS[name]
        with style("full", columns, height):
            figure = draw()
        save(figure, IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
