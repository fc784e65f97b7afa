"""Layout of figures: views in rows at one scale in millimeters, and simple rows of images.

Figures are made without pyplot and touch no global state of matplotlib.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from regnet_lab.visualization.slices import Array, Plane

DPI = 100
# All lengths are in inches
MIN_WIDTH, MAX_WIDTH = 6.5, 16.0  # room for the heading, and at most 1600 pixels
MAX_COLUMN_HEIGHT = 10.0  # of all images of a column together
MIN_COLUMN_WIDTH, MAX_COLUMN_WIDTH = 1.62, 3.2  # the title must fit
LEFT_MARGIN, HEADING, TITLE, COLORBAR, LEGEND, GAP = 0.42, 0.55, 0.42, 0.36, 0.4, 0.08
CELL_INCHES = 1.5  # of an image of an ImageRow
ARROWS = 24  # along the longest side

DrawFunction = Callable[[Axes, Plane], ScalarMappable]


@dataclass(frozen=True)
class View:
    """One way to look at a registration, in any plane."""

    title: str
    draw: DrawFunction
    colorbar: bool = False
    legend: tuple[Artist, ...] = ()


Row = Sequence[tuple[Plane, View]]


@dataclass(frozen=True)
class ImageRow:
    """Images side by side on one color scale."""

    name: str
    images: Collection[Array]  # (right, up) each; displacements (2, right, up) are drawn as arrows
    limits: tuple[float, float]
    titles: Sequence[str] = ()  # one for each image, or none
    colormap: str = "gray"
    annotated: bool = False  # mean, standard deviation and range are written into the images
    colorbar: bool = True


def compute_intensity_limits(*images: Array) -> tuple[float, float]:
    """Return the display range of images: the 0.5 % and 99.5 % quantiles of their finite values.

    >>> compute_intensity_limits(np.linspace(0, 100, 101), np.array([np.nan]))
    (0.5, 99.5)
    """
    values = np.concatenate([image[np.isfinite(image)] for image in images])
    low, high = np.quantile(values, [0.005, 0.995]) if values.size else (0.0, 1.0)
    return float(low), float(high)


def compute_symmetric_limits(*images: Array) -> tuple[float, float]:
    """Return a display range about zero: the 99.5 % quantile of the nonzero magnitudes.

    >>> compute_symmetric_limits(np.array([0.0, 2.0, -2.0]))
    (-2.0, 2.0)
    """
    magnitudes = np.abs(np.concatenate([image.ravel() for image in images]))
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    high = float(np.quantile(magnitudes, 0.995)) if magnitudes.size else 1.0
    return -high, high


def arrange_views(planes: Sequence[Plane], views: Sequence[View]) -> list[Row]:
    """Arrange views of one plane in two rows, of several planes in a row for each.

    With several planes, titles stand above the first row and color bars below the last.
    """
    first, last = planes[0], planes[-1]
    if len(planes) == 1:
        half = (len(views) + 1) // 2
        return [[(first, view) for view in part] for part in (views[:half], views[half:])]

    def strip(view: View, plane: Plane) -> View:
        title = view.title if plane is first else ""
        return replace(view, title=title, colorbar=view.colorbar and plane is last)

    return [[(plane, strip(view, plane)) for view in views] for plane in planes]


def _draw_view(figure: Figure, box: Sequence[float], view: View, plane: Plane) -> Axes:
    """Draw a view in ``box`` (left, bottom, width, height in inches), its color bar below."""
    figure_size = np.tile(figure.get_size_inches(), 2)
    left, bottom, width, _ = box
    axes = figure.add_axes(tuple(box / figure_size))
    mappable = view.draw(axes, plane)
    axes.set_title(view.title, fontsize=9, pad=4)
    if view.colorbar:
        length = max(width - 0.24, 0.1)  # ticks need the rest; a single slice has none
        bar = np.array([left + (width - length) / 2, bottom - 0.15, length, 0.08])
        bar_axes = figure.add_axes(tuple(bar / figure_size))
        figure.colorbar(mappable, bar_axes, orientation="horizontal")
        bar_axes.tick_params(labelsize=7, length=2, pad=2)
    return axes


def draw_figure(
    heading: str, rows: Sequence[Row], shape: Sequence[int], spacing: Sequence[float]
) -> Figure:
    """Draw rows of views, all at one scale, below a heading of up to two lines.

    The planes of a row are of one size; ``spacing`` is in millimeters per voxel.
    """
    planes, columns = [plane for (plane, _), *_ in rows], max(len(row) for row in rows)
    sizes = np.array([[float(shape[a] * spacing[a]) for a in plane.axes] for plane in planes])
    width = min((MAX_WIDTH - LEFT_MARGIN) / columns - GAP, MAX_COLUMN_WIDTH)
    sizes *= min(width / sizes[:, 0].max(), MAX_COLUMN_HEIGHT / sizes[:, 1].sum())  # to inches
    step = max(sizes[:, 0].max(), MIN_COLUMN_WIDTH) + GAP
    above = [TITLE if any(view.title for _, view in row) else GAP for row in rows]
    below = [COLORBAR if any(view.colorbar for _, view in row) else 0 for row in rows]
    legend = dict.fromkeys(artist for row in rows for _, view in row for artist in view.legend)
    y = HEADING + sum(above) + sizes[:, 1].sum() + sum(below) + (LEGEND if legend else GAP)
    spare = max(MIN_WIDTH - LEFT_MARGIN - columns * step, 0)
    figure = Figure((LEFT_MARGIN + columns * step + spare, y), DPI)
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=11, y=1 - 0.1 / y, va="top")
    if legend:
        figure.legend(handles=list(legend), loc="lower center", ncols=len(legend), fontsize=9)
    y -= HEADING
    for row, (width, height), over, under in zip(rows, sizes, above, below, strict=True):
        y -= over + height
        for column, (plane, view) in enumerate(row):
            right, up = plane.axes
            left = spare / 2 + LEFT_MARGIN + column * step + (step - GAP - width) / 2
            axes = _draw_view(figure, (left, y, width, height), view, plane)
            axes.set(xlim=(-0.5, shape[right] - 0.5), ylim=(-0.5, shape[up] - 0.5))
            axes.set(xticks=[], yticks=[], aspect=spacing[up] / spacing[right])
            if column == 0:
                axes.set_ylabel(plane.description, fontsize=8, labelpad=3)
        y -= under
    return figure


def create_figure(width: float, height: float, heading: str) -> Figure:
    """Create an empty figure of a size in inches with a heading and automatic layout."""
    figure = Figure((width, height), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=10)
    return figure


def _draw_arrows(axes: Axes, u: Array, limits: tuple[float, float]) -> ScalarMappable:
    """Draw a displacement (2, right, up) as arrows, true to scale and colored by length."""
    step = max(1, round(max(u.shape[1:]) / ARROWS))
    x, y = np.mgrid[: u.shape[1] : step, : u.shape[2] : step]
    right, up = u[:, ::step, ::step]
    scale: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "width": 0.006}
    arrows = axes.quiver(x, y, right, up, np.hypot(right, up), cmap="winter", **scale)
    arrows.set_clim(limits)
    axes.set_aspect("equal")
    return arrows


def _draw_image(axes: Axes, image: Array, row: ImageRow) -> ScalarMappable:
    if image.ndim == 3:
        return _draw_arrows(axes, image, row.limits)
    if row.annotated:
        text = f"{image.mean():.3g} ± {image.std():.3g}\n[{image.min():.3g}, {image.max():.3g}]"
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        axes.text(0.98, 0.02, text, fontsize=5, bbox=box, **place)
    low, high = row.limits
    return axes.imshow(image.T, row.colormap, vmin=low, vmax=high, origin="lower")


def draw_image_rows(heading: str, rows: Sequence[ImageRow], cell: float = CELL_INCHES) -> Figure:
    """Draw rows of images below each other in cells of ``cell`` inches."""
    columns = max(len(row.images) for row in rows)
    figure = create_figure(cell * columns + 1.2, cell * len(rows) + 0.8, heading)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, image, title in zip_longest(axes_row, row.images, row.titles):
            if image is None:
                axes.set_axis_off()
                continue
            drawn = _draw_image(axes, image, row)
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=7)
        axes_row[0].set_ylabel(row.name, fontsize=8)
        if row.colorbar:
            bar = figure.colorbar(drawn, ax=axes_row, fraction=0.03, aspect=12)
            bar.ax.tick_params(labelsize=6)
    return figure
