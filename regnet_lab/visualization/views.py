"""Views of images, displacements and labels, from which figures are composed.

Arrays are images and labels (*spatial) and displacements u (D, *spatial) in voxels.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from regnet_lab import ops
from regnet_lab.visualization import layout, slices
from regnet_lab.visualization.layout import DrawFunction, View
from regnet_lab.visualization.slices import Array, Plane, extract_slice

MAX_LEGEND_LABELS = 6
FOLD_COLOR = (0.9, 0.0, 0.1, 1.0)  # red, which the color map of log det J does not contain


def make_fold_overlay(determinant: Array) -> Array:
    """Return an RGBA image (*shape, 4), red exactly where det <= 0 and transparent elsewhere."""
    return (determinant <= 0)[..., None] * np.array(FOLD_COLOR)


def make_image_drawer(
    volume: Array, limits: tuple[float, float], colormap: str = "gray", opacity: float = 1
) -> DrawFunction:
    """Return a function that draws a plane of a volume with a display range."""
    low, high = limits

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        image = extract_slice(volume, plane).T
        return axes.imshow(image, colormap, vmin=low, vmax=high, alpha=opacity, origin="lower")

    return draw


def make_overlay_drawer(
    draw_background: DrawFunction, values: Array, colorize: Callable[[Array], Array]
) -> DrawFunction:
    """Return a function that draws a plane of values, colorized to RGBA, over a background."""

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        mappable = draw_background(axes, plane)
        axes.imshow(colorize(extract_slice(values, plane).T), origin="lower")
        return mappable

    return draw


def make_image_view(name: str, image: Array, limits: tuple[float, float]) -> View:
    """Show an image in gray, with the display range in the title."""
    low, high = limits
    return View(f"{name}\ngray {low:.3g} to {high:.3g}", make_image_drawer(image, limits))


def make_difference_view(name: str, values: Array, limits: tuple[float, float]) -> View:
    """Show a difference of images, blue below zero and red above, with its RMS in the title."""
    rms = np.sqrt(np.mean(values**2))
    return View(f"{name}\nRMS {rms:.3g}", make_image_drawer(values, limits, "RdBu_r"), True)


def make_deformed_grid_view(u: Array, image: Array, spacing: Sequence[float]) -> View:
    """Show the fixed grid's lines mapped by x + u(x) over the moving image, into which they map.

    ``spacing`` is in millimeters per voxel; the grid is square in millimeters.
    """
    steps = slices.compute_grid_steps(u.shape[1:], spacing)
    draw_background = make_image_drawer(image, layout.compute_intensity_limits(image), opacity=0.3)

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        lines = slices.compute_warped_grid_lines(u, plane, steps)
        axes.add_collection(LineCollection(lines, colors="navy", linewidths=0.6))
        return draw_background(axes, plane)

    return View(f"grid x + u(x), every\n{' x '.join(map(str, steps))} voxels", draw)


def make_magnitude_view(u: Array) -> View:
    """Show the magnitude of a displacement."""
    magnitude = np.linalg.norm(u, axis=0)
    title = f"|u| (voxels)\nmean {magnitude.mean():.3g}, max {magnitude.max():.3g}"
    limits = (0, layout.compute_symmetric_limits(magnitude)[1])
    return View(title, make_image_drawer(magnitude, limits, "viridis"), True)


def make_jacobian_view(u: Array) -> View:
    """Show the logarithm of the Jacobian determinant of x + u(x), folded voxels in red."""
    determinant = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy()
    logarithm = np.log(np.where(determinant > 0, determinant, np.nan))
    limits = layout.compute_symmetric_limits(logarithm)
    draw_background = make_image_drawer(logarithm, limits, "PuOr")
    draw = make_overlay_drawer(draw_background, determinant, make_fold_overlay)
    folds = 100 * np.mean(determinant <= 0)
    red = Patch(color=FOLD_COLOR, label="fold: det J ≤ 0 (central differences)")
    return View(f"log det J, folds in\n{folds:.3g} % of all voxels", draw, True, (red,))


def make_outline_view(fixed: Array, warped: Array, image: Array) -> View:
    """Show the outlines of fixed labels and warped moving labels over the fixed image."""
    draw_background = make_image_drawer(image, layout.compute_intensity_limits(image))
    palette = colormaps["tab10"]
    kinds = (("fixed labels", "solid", fixed), ("warped moving labels", "dashed", warped))

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        mappable = draw_background(axes, plane)
        for _, style, labels in kinds:
            label_slice = extract_slice(labels, plane).T
            for label in np.unique(label_slice[label_slice != 0]):
                color = palette(int(label) % 10)
                axes.contour(label_slice == label, [0.5], colors=[color], linestyles=style)
        return mappable

    legend = tuple(Line2D([], [], color="black", ls=style, label=name) for name, style, _ in kinds)
    return View("labels\non the fixed image", draw, legend=legend)


def assign_label_colors(values: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """Assign an RGB color to every label, different ones to neighbors in the list."""
    palette = [*colormaps["tab10"](range(10)), *colormaps["Set3"](range(12))]  # RGBA
    colors = zip(values, cycle(palette), strict=False)
    return {value: (red, green, blue) for value, (red, green, blue, _) in colors}


def make_label_view(
    labels: Array, image: Array, limits: tuple[float, float], opacity: float = 0.5
) -> View:
    """Show labels as colors over an image, with a legend if they are few."""
    colors = assign_label_colors([int(value) for value in np.unique(labels) if value])

    def colorize(label_slice: Array) -> Array:
        overlay = np.zeros((*label_slice.shape, 4))
        for value, color in colors.items():
            overlay[label_slice == value] = (*color, opacity)
        return overlay

    draw = make_overlay_drawer(make_image_drawer(image, limits), labels, colorize)
    legend = tuple(Patch(facecolor=c, label=f"label {v}") for v, c in colors.items())
    return View("labels", draw, legend=legend if len(legend) <= MAX_LEGEND_LABELS else ())
