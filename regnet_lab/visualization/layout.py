"""Rows of pictures on one figure, placed to the millimetre; no pyplot, no global state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from regnet_lab.visualization.slices import Array, Plane

DPI = 100
NARROWEST, WIDEST = 6.5, 16.0  # inches: room for the heading, and at most 1600 pixels
TALLEST = 10.0  # inches of pictures in a column
COLUMN = (1.62, 3.2)  # inches a picture has across: room for its title, and enough
LEFT, HEAD, TITLE, BAR, FOOT, GAP = 0.42, 0.55, 0.42, 0.36, 0.4, 0.08  # inches round pictures

Draw = Callable[[Axes, Plane], ScalarMappable]


@dataclass(frozen=True)
class View:
    """One way to look at a registration, in any plane."""

    title: str
    draw: Draw
    colour_bar: bool = False
    legend: tuple[Artist, ...] = ()


Row = tuple[Plane, Sequence[View]]


def window(*images: Array) -> tuple[float, float]:
    """Values from which to which to show images: 0.5 % to 99.5 % of what is finite."""
    values = np.concatenate([image[np.isfinite(image)] for image in images])
    low, high = np.quantile(values, [0.005, 0.995]) if values.size else (0.0, 1.0)
    return float(low), float(high)


def symmetric(*images: Array) -> tuple[float, float]:
    """A window about zero, wide enough for 99.5 % of the magnitudes that are not zero."""
    magnitudes = np.abs(np.concatenate([image.ravel() for image in images]))
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    high = float(np.quantile(magnitudes, 0.995)) if magnitudes.size else 1.0
    return -high, high


def arranged(planes: Sequence[Plane], views: Sequence[View]) -> list[Row]:
    """A single plane shows its views in two rows; of several each has a row, with the titles
    above the first and the colour bars below the last.
    """
    first, last = planes[0], planes[-1]
    if len(planes) == 1:
        half = (len(views) + 1) // 2
        return [(first, views[:half]), (first, views[half:])]

    def bare(view: View, plane: Plane) -> View:
        title = view.title if plane is first else ""
        return replace(view, title=title, colour_bar=view.colour_bar and plane is last)

    return [(plane, [bare(view, plane) for view in views]) for plane in planes]


def _scale(sizes: Array, columns: int) -> float:
    """Inches per millimetre at which rows of pictures, (rows, 2) mm right and up, fit."""
    across = min((WIDEST - LEFT) / columns - GAP, COLUMN[1])
    return min(across / sizes[:, 0].max(), TALLEST / sizes[:, 1].sum())


def _picture(figure: Figure, box: Sequence[float], view: View, plane: Plane) -> Axes:
    """A view in ``box`` (left, bottom, width, height in inches), its colour bar below."""
    whole = np.tile(figure.get_size_inches(), 2)
    left, bottom, width, _ = box
    axes = figure.add_axes(tuple(box / whole))
    mappable = view.draw(axes, plane)
    axes.set_title(view.title, fontsize=9, pad=4)
    if view.colour_bar:
        bar = np.array([left + 0.12, bottom - 0.15, width - 0.24, 0.08])  # ticks need the rest
        below = figure.add_axes(tuple(bar / whole))
        figure.colorbar(mappable, below, orientation="horizontal")
        below.tick_params(labelsize=7, length=2, pad=2)
    return axes


def _frame(axes: Axes, plane: Plane, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """The whole plane and no more, its voxels stretched to millimetres."""
    right, up = plane.axes
    axes.set(xlim=(-0.5, shape[right] - 0.5), ylim=(-0.5, shape[up] - 0.5), xticks=[], yticks=[])
    axes.set_aspect(spacing[up] / spacing[right])


def figure_of(
    heading: str, rows: Sequence[Row], shape: Sequence[int], spacing: Sequence[float]
) -> Figure:
    """Pictures in rows, all at one scale.

    Args:
        heading: Two lines above everything.
        rows: A plane and its views for each row.
        shape: Voxels of the images along each axis.
        spacing: Millimetres per voxel along each axis.
    """
    sizes = np.array([[float(shape[a] * spacing[a]) for a in plane.axes] for plane, _ in rows])
    columns = max(len(views) for _, views in rows)
    sizes *= _scale(sizes, columns)
    step = max(sizes[:, 0].max(), COLUMN[0]) + GAP
    above = [TITLE if any(view.title for view in views) else GAP for _, views in rows]
    below = [BAR if any(view.colour_bar for view in views) else 0 for _, views in rows]
    legend = dict.fromkeys(artist for _, views in rows for view in views for artist in view.legend)
    y = HEAD + sum(above) + sizes[:, 1].sum() + sum(below) + (FOOT if legend else GAP)
    spare = max(NARROWEST - LEFT - columns * step, 0)
    figure = Figure((LEFT + columns * step + spare, y), DPI)
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=11, y=1 - 0.1 / y, va="top")
    if legend:
        figure.legend(handles=list(legend), loc="lower center", ncols=len(legend), fontsize=9)
    y -= HEAD
    for (plane, views), (width, height), over, under in zip(rows, sizes, above, below, strict=True):
        y -= over + height
        for column, view in enumerate(views):
            left = spare / 2 + LEFT + column * step + (step - GAP - width) / 2
            axes = _picture(figure, (left, y, width, height), view, plane)
            _frame(axes, plane, shape, spacing)
            if column == 0:
                axes.set_ylabel(plane.name, fontsize=8, labelpad=3)
        y -= under
    return figure
