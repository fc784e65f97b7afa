"""Pictures of a batch registered by an unrolled model, beside the truth where it is known.

Volumes are shown in the plane of their first two axes through the middle, axis 0 to the right,
axis 1 up; displacements are in voxels of the grid they are on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from regnet_lab import ops
from regnet_lab.ops.pairs import resized
from regnet_lab.types import Pair, Registration
from regnet_lab.visualization.layout import symmetric, window
from regnet_lab.visualization.slices import Array, cut, planes

CELL = 1.5  # inches
MOST = 8  # columns
ARROWS = 24  # along the longest side


@dataclass(frozen=True)
class Strip:
    """Pictures in a row, on one scale of colours."""

    name: str
    images: Sequence[Array]  # (right, up) each
    titles: Sequence[str]
    limits: tuple[float, float]
    colours: str = "gray"
    told: bool = False  # mean, deviation and range are written into the pictures


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches, without pyplot."""
    figure = Figure((width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plane(image: Tensor) -> Array:
    """(..., *spatial) as (..., right, up) through the middle."""
    ndim = image.ndim - 2
    middle = planes([n // 2 for n in image.shape[2:]])[0]
    array = image.detach().float().cpu().numpy()
    return cut(array, middle) if ndim > 2 else array


def _tell(axes: Axes, image: Array) -> None:
    text = f"{image.mean():.3g} ± {image.std():.3g}\n[{image.min():.3g}, {image.max():.3g}]"
    box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
    axes.text(
        0.98, 0.02, text, transform=axes.transAxes, fontsize=5, ha="right", va="bottom", bbox=box
    )


def sheet(heading: str, strips: Sequence[Strip]) -> Figure:
    """Strips below each other."""
    columns = max(len(strip.images) for strip in strips)
    figure = canvas(CELL * columns + 1.2, CELL * len(strips) + 0.8)
    figure.suptitle(heading, fontsize=10)
    grid = figure.subplots(len(strips), columns, squeeze=False)
    for row, strip in zip(grid, strips, strict=True):
        low, high = strip.limits
        for axes in row[len(strip.images) :]:
            axes.set_axis_off()
        for axes, image, title in zip(row, strip.images, strip.titles, strict=False):
            shown = axes.imshow(image.T, strip.colours, vmin=low, vmax=high, origin="lower")
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=7)
            if strip.told:
                _tell(axes, image)
        row[0].set_ylabel(strip.name, fontsize=8)
        bar = figure.colorbar(shown, ax=row, fraction=0.03, aspect=12)
        bar.ax.tick_params(labelsize=6)
    return figure


def _names(pair: Pair) -> list[str]:
    return [name[-18:] for name in pair["name"][:MOST]]


def images(pair: Pair, out: Registration) -> Figure:
    """Fixed, moving and registered images and what differs, a column for each of up to 8 pairs."""
    fixed, moving, warped = (
        plane(x[:MOST])[:, 0] for x in (pair["fixed"], pair["moving"], out.warped)
    )
    names, blank, grey = _names(pair), [""] * MOST, window(fixed, moving)
    differences = {"fixed - moving": fixed - moving, "fixed - registered": fixed - warped}
    scale = symmetric(*differences.values())
    return sheet(
        "Images",
        [
            Strip("fixed", [*fixed], names, grey),
            Strip("moving", [*moving], blank, grey),
            Strip("registered", [*warped], blank, grey),
            *(
                Strip(name, [*image], blank, scale, "bwr", told=True)
                for name, image in differences.items()
            ),
        ],
    )


def _beside_truth(pair: Pair, out: Registration) -> dict[str, Array]:
    """Displacements (B, D, right, up): the answer and, where known, truth and error."""
    answer = {"answer": out.displacement}
    if "displacement" in pair:
        truth = pair["displacement"]
        answer = {"truth": truth} | answer | {"truth - answer": truth - out.displacement}
    return {name: plane(u[:MOST]) for name, u in answer.items()}


def displacements(pair: Pair, out: Registration) -> Figure:
    """Every component of the displacement, a column for each of up to 8 pairs, on one scale."""
    shown = _beside_truth(pair, out)
    scale, titles = symmetric(*shown.values()), _names(pair)
    strips = [
        Strip(f"{name}\naxis {k}", [*u[:, k]], titles, scale, "bwr", told=True)
        for k in range(out.displacement.shape[1])
        for name, u in shown.items()
    ]
    return sheet("Displacements (voxels)", strips)


def _arrows(axes: Axes, u: Array, longest: float) -> None:
    step = max(1, round(max(u.shape[1:]) / ARROWS))
    x, y = np.mgrid[: u.shape[1] : step, : u.shape[2] : step]
    right, up = u[:2, ::step, ::step]
    arrows = axes.quiver(
        *(x, y, right, up, np.hypot(right, up)),
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.006,
        cmap="winter",
    )
    arrows.set_clim(0, longest)
    axes.set(xticks=[], yticks=[], aspect="equal")


def vectors(pair: Pair, out: Registration) -> Figure:
    """The displacement in the plane as arrows, true to scale, coloured by length."""
    shown = _beside_truth(pair, out)
    longest = max(float(np.linalg.norm(u[:, :2], axis=1).max()) for u in shown.values())
    names = _names(pair)
    figure = canvas(1.5 * CELL * len(names) + 0.5, 1.5 * CELL * len(shown) + 0.8)
    figure.suptitle(f"Displacements in the plane, up to {longest:.3g} voxels", fontsize=10)
    grid = figure.subplots(len(shown), len(names), squeeze=False)
    for row, (name, fields) in zip(grid, shown.items(), strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for axes, u in zip(row, fields, strict=False):
            _arrows(axes, u, longest)
    for axes, name in zip(grid[0], names, strict=False):
        axes.set_title(name, fontsize=7)
    return figure


def by_level(pair: Pair, out: Registration) -> list[tuple[Pair, list[Tensor]]]:
    """The batch on each level's grid, with the fields of the level's units, coarse to fine."""
    fields = [u.detach() for u in out.fields]
    levels = [list(units) for _, units in groupby(fields, lambda u: u.shape[2:])]
    return [(resized(pair, units[0].shape[2:]), units) for units in levels]


def _columns(units: int) -> list[int]:
    """Units that are shown: all, or 8 from the first to the last."""
    return np.linspace(0, units - 1, min(units, MOST)).round().astype(int).tolist()


def _titles(
    level: int, units: Sequence[Tensor], chosen: Sequence[int], more: Sequence[str]
) -> list:
    size = " x ".join(map(str, units[0].shape[2:]))
    return [f"level {level}, unit {k + 1}\n{size}" for k in chosen] + [*more]


def unit_images(pair: Pair, out: Registration) -> Figure:
    """The first pair's registered image after every unit, a row for each level; then the image that
    the known displacement gives, and the fixed image less the last registered one.
    """
    strips = []
    for number, (level, units) in enumerate(by_level(pair, out), 1):
        chosen = _columns(len(units))
        shown = [ops.warp(level["moving"][:1], units[k][:1]) for k in chosen]
        more = ["fixed"]
        if "displacement" in level:
            shown.append(ops.warp(level["moving"][:1], level["displacement"][:1]))
            more = ["by the truth", "fixed"]
        cells = [plane(image)[0, 0] for image in [*shown, level["fixed"][:1]]]
        titles = _titles(number, units, chosen, more)
        strips.append(Strip(f"level {number}", cells, titles, window(*cells)))
    return sheet("Registered image after every unit", strips)


def unit_displacements(pair: Pair, out: Registration) -> Figure:
    """The first pair's displacement after every unit, a row for each level and axis; then, where it
    is known, the truth and the last error.
    """
    strips = []
    for number, (level, units) in enumerate(by_level(pair, out), 1):
        chosen, more = _columns(len(units)), []
        shown = [units[k][:1] for k in chosen]
        if "displacement" in level:
            truth = level["displacement"][:1]
            shown, more = [*shown, truth, truth - units[-1][:1]], ["truth", "truth - answer"]
        cells = [plane(u)[0] for u in shown]
        scale, titles = symmetric(*cells), _titles(number, units, chosen, more)
        strips += [
            Strip(f"level {number}\naxis {k}", [u[k] for u in cells], titles, scale, "bwr")
            for k in range(len(cells[0]))
        ]
    return sheet("Displacement after every unit (voxels of the level)", strips)


def level_errors(pair: Pair, out: Registration) -> list[dict[str, float]]:
    """Of the last unit of every level: ``epe_vox``, in voxels of the finest grid and only where the
    truth is known, and ``mae``, mean |fixed - registered|.
    """
    rows = []
    finest = pair["fixed"].shape[2]
    for number, (level, units) in enumerate(by_level(pair, out), 1):
        warped = ops.warp(level["moving"], units[-1])
        row = {"level": number, "mae": float((level["fixed"] - warped).abs().mean())}
        if "displacement" in level:
            error = (level["displacement"] - units[-1]).norm(dim=1).mean()
            row["epe_vox"] = float(error) * finest / warped.shape[2]
        rows.append(row)
    return rows
