"""Ways to look at images, displacements and labels: what the figures are put together from."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from regnet_lab import ops
from regnet_lab.visualization.layout import Draw, View, symmetric, window
from regnet_lab.visualization.slices import Array, Plane, cut, grid_lines, grid_steps

MOST_NAMED = 6  # labels for which a legend has room
FOLD = (0.9, 0.0, 0.1, 1.0)  # red, which the colours of log det J do not hold

Colour = tuple[float, float, float]


def fold_overlay(determinant: Array) -> Array:
    """RGBA picture (*shape, 4), red exactly where det <= 0 and transparent elsewhere."""
    return (determinant <= 0)[..., None] * np.array(FOLD)


def image_of(
    volume: Array, limits: tuple[float, float], colours: str = "gray", opacity: float = 1
) -> Draw:
    """The plane of a volume (*spatial), ``limits`` being the ends of the colours."""

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        low, high = limits
        return axes.imshow(
            cut(volume, plane).T, colours, vmin=low, vmax=high, alpha=opacity, origin="lower"
        )

    return draw


def grey(name: str, image: Array, limits: tuple[float, float]) -> View:
    """An image from black to white, its title telling the values of both."""
    low, high = limits
    return View(f"{name}\ngrey {low:.3g} to {high:.3g}", image_of(image, limits))


def difference(name: str, values: Array, limits: tuple[float, float]) -> View:
    """A difference of images, blue below zero and red above, and its root mean square."""
    error = np.sqrt(np.mean(values**2))
    return View(f"{name}\nRMS {error:.3g}", image_of(values, limits, "RdBu_r"), True)


def deformed_grid(u: Array, image: Array, spacing: Sequence[float]) -> View:
    """Lines carried by x + u(x), over the moving image: its space is where they go.

    Args:
        u: (D, *spatial) displacement in voxels.
        image: (*spatial) the moving image.
        spacing: Millimetres per voxel; the lines are square in millimetres.
    """
    steps = grid_steps(u.shape[1:], spacing)
    behind = image_of(image, window(image), opacity=0.3)

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        lines = grid_lines(u, plane, steps)
        axes.add_collection(LineCollection(lines, colors="navy", linewidths=0.6))
        return behind(axes, plane)

    return View(f"grid x + u(x), every\n{' x '.join(map(str, steps))} voxels", draw)


def magnitude(u: Array) -> View:
    """The length of a displacement (D, *spatial)."""
    size = np.linalg.norm(u, axis=0)
    title = f"|u| (voxels)\nmean {size.mean():.3g}, max {size.max():.3g}"
    return View(title, image_of(size, (0, symmetric(size)[1]), "viridis"), True)


def jacobian(u: Array) -> View:
    """The logarithm of the map's Jacobian determinant, red where it has none: there are folds."""
    determinant = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy()
    logarithm = np.log(np.where(determinant > 0, determinant, np.nan))
    behind = image_of(logarithm, symmetric(logarithm), "PuOr")

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        shown = behind(axes, plane)
        axes.imshow(fold_overlay(cut(determinant, plane).T), origin="lower")
        return shown

    folds = 100 * np.mean(determinant <= 0)
    red = Patch(color=FOLD, label="fold: det J ≤ 0 (central differences)")
    return View(f"log det J, folds in\n{folds:.3g} % of all voxels", draw, True, (red,))


def outlines(fixed: Array, warped: Array, image: Array) -> View:
    """Each label's outline over the fixed image, in a colour of its own."""
    behind = image_of(image, window(image))
    colours = colormaps["tab10"]

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        shown = behind(axes, plane)
        for labels, style in ((fixed, "solid"), (warped, "dashed")):
            region = cut(labels, plane).T
            for label in np.unique(region[region != 0]):
                colour = colours(int(label) % 10)
                axes.contour(region == label, [0.5], colors=[colour], linestyles=style)
        return shown

    legend = (
        Line2D([], [], color="black", linestyle="solid", label="fixed labels"),
        Line2D([], [], color="black", linestyle="dashed", label="warped moving labels"),
    )
    return View("labels\non the fixed image", draw, legend=legend)


def label_colours(values: Sequence[int]) -> dict[int, Colour]:
    """A colour for each label, no two neighbours in the list alike."""
    palette = [colour for name in ("tab10", "Set3") for colour in colormaps[name].colors]  # type: ignore[attr-defined]
    return {value: palette[place % len(palette)] for place, value in enumerate(values)}


def regions(labels: Array, image: Array, limits: tuple[float, float], opacity: float = 0.5) -> View:
    """Labels (*spatial) as colours over an image (*spatial), in a legend if they are few."""
    behind = image_of(image, limits)
    colours = label_colours([int(value) for value in np.unique(labels) if value])

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        shown = behind(axes, plane)
        region = cut(labels, plane).T
        overlay = np.zeros((*region.shape, 4))
        for value, colour in colours.items():
            overlay[region == value] = (*colour, opacity)
        axes.imshow(overlay, origin="lower")
        return shown

    legend = tuple(Patch(facecolor=c, label=f"label {v}") for v, c in colours.items())
    return View("labels", draw, legend=legend if len(legend) <= MOST_NAMED else ())
