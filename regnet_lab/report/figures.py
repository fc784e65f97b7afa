"""Pictures of one registration, for TensorBoard and for files.

Axes are shown as stored (see :mod:`regnet_lab.report.slices`), stretched to millimetres by the
spacing; displacements are in voxels.  Figures are made without pyplot and touch no global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.pair import Pair, Registration
from regnet_lab.report.canvas import Draw, Row, View, figure_of, symmetric, window
from regnet_lab.report.slices import Array, Plane, centre, cut, grid_lines, grid_steps, planes

FOLD = (0.9, 0.0, 0.1, 1.0)  # red, which the colours of log det J do not hold
MOST_FIELDS = 9


@dataclass(frozen=True)
class Case:
    """The first pair of a batch as arrays on the host."""

    name: str
    fixed: Array  # (*spatial)
    moving: Array
    spacing: list[float]  # mm
    planes: list[Plane]

    @property
    def heading(self) -> str:
        """Name, size and spacing."""
        voxels = " x ".join(map(str, self.fixed.shape))
        spacing = " x ".join(f"{mm:.3g}" for mm in self.spacing)
        return f"{self.name}\n{voxels} voxels of {spacing} mm"


def _array(tensor: Tensor) -> Array:
    """The first case of a batch on the host, (channels, *spatial)."""
    first = tensor[0].detach().cpu()
    return (first.float() if first.is_floating_point() else first).numpy()


def _case(pair: Pair) -> Case:
    """Images, and the planes through the centre of the labels or else of the fixed image."""
    fixed = _array(pair["fixed"])[0]
    labels = _array(pair["fixed_labels"])[0] != 0 if "fixed_labels" in pair else np.zeros(1)
    through = centre(labels if labels.any() else fixed - np.nanmin(fixed))
    moving, spacing = _array(pair["moving"])[0], pair["spacing"][0].tolist()
    return Case(pair["name"][0], fixed, moving, spacing, planes(through))


def fold_overlay(determinant: Array) -> Array:
    """RGBA picture (*shape, 4), red exactly where det <= 0 and transparent elsewhere."""
    return (determinant <= 0)[..., None] * np.array(FOLD)


def _image(
    volume: Array, limits: tuple[float, float], colours: str = "gray", opacity: float = 1
) -> Draw:
    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        low, high = limits
        return axes.imshow(
            cut(volume, plane).T, colours, vmin=low, vmax=high, alpha=opacity, origin="lower"
        )

    return draw


def _grey(name: str, image: Array, limits: tuple[float, float]) -> View:
    low, high = limits
    return View(f"{name}\ngrey {low:.3g} to {high:.3g}", _image(image, limits))


def _difference(name: str, difference: Array, limits: tuple[float, float]) -> View:
    error = np.sqrt(np.mean(difference**2))
    return View(f"{name}\nRMS {error:.3g}", _image(difference, limits, "RdBu_r"), True)


def _grid(u: Array, case: Case) -> View:
    """Lines carried by x + u(x), over the moving image: its space is where they go."""
    steps = grid_steps(u.shape[1:], case.spacing)
    behind = _image(case.moving, window(case.moving), opacity=0.3)

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        lines = grid_lines(u, plane, steps)
        axes.add_collection(LineCollection(lines, colors="navy", linewidths=0.6))
        return behind(axes, plane)

    return View(f"grid x + u(x), every\n{' x '.join(map(str, steps))} voxels", draw)


def _magnitude(u: Array) -> View:
    size = np.linalg.norm(u, axis=0)
    title = f"|u| (voxels)\nmean {size.mean():.3g}, max {size.max():.3g}"
    return View(title, _image(size, (0, symmetric(size)[1]), "viridis"), True)


def _jacobian(u: Array) -> View:
    """The logarithm of the map's Jacobian determinant, red where it has none: there are folds."""
    determinant = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy()
    logarithm = np.log(np.where(determinant > 0, determinant, np.nan))
    behind = _image(logarithm, symmetric(logarithm), "PuOr")

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        shown = behind(axes, plane)
        axes.imshow(fold_overlay(cut(determinant, plane).T), origin="lower")
        return shown

    folds = 100 * np.mean(determinant <= 0)
    red = Patch(color=FOLD, label="fold: det J ≤ 0 (central differences)")
    return View(f"log det J, folds in\n{folds:.3g} % of all voxels", draw, True, (red,))


def _outlines(fixed: Array, warped: Array, case: Case) -> View:
    """Each label's outline in a colour of its own."""
    behind = _image(case.fixed, window(case.fixed))
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


def _views(pair: Pair, registration: Registration, case: Case) -> list[View]:
    """Everything the panel shows, left to right."""
    u, warped = _array(registration.displacement), _array(registration.warped)[0]
    before, after = case.fixed - case.moving, case.fixed - warped
    grey, scale = window(case.moving), symmetric(before, after)
    views = [
        _grey("fixed", case.fixed, window(case.fixed)),
        _grey("moving", case.moving, grey),
        _grey("warped moving", warped, grey),
        _difference("fixed - moving", before, scale),
        _difference("fixed - warped", after, scale),
        _grid(u, case),
        _magnitude(u),
        _jacobian(u),
    ]
    if "fixed_labels" in pair and "moving_labels" in pair:
        labels = ops.warp(pair["moving_labels"][:1], registration.displacement[:1], "nearest")
        views.append(_outlines(_array(pair["fixed_labels"])[0], _array(labels)[0], case))
    return views


def _rows(planes: Sequence[Plane], views: Sequence[View]) -> list[Row]:
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


def panel(pair: Pair, registration: Registration) -> Figure:
    """The first case of a batch at a glance.

    Fixed, moving and warped image, differences on one scale, the warped grid, |u|, log det J with
    folds in red and, where the pair has labels, their outlines: two rows of views in 2D, one row
    for each of three orthogonal planes in 3D.

    Args:
        pair: Images (B, 1, *spatial), labels if there are any.
        registration: Its last field is on the fixed grid, (B, D, *spatial) in voxels.
    """
    case = _case(pair)
    views = _views(pair, registration, case)
    return figure_of(case.heading, _rows(case.planes, views), case.fixed.shape, case.spacing)


def iterations(pair: Pair, registration: Registration) -> Figure:
    """How a model got there: one column for each field, coarse to fine, carried to the fixed grid.

    Rows are the warped image, its difference to the fixed one and the warped grid, in the plane of
    the first two axes.  Of more than nine fields, nine are shown, the first and the last included.

    Args:
        pair: Images (B, 1, *spatial).
        registration: Fields (B, D, *its own grid), each in voxels of its own grid.
    """
    case = _case(pair)
    fields = registration.fields
    chosen = np.linspace(0, len(fields) - 1, min(len(fields), MOST_FIELDS)).round().astype(int)
    carried = [ops.resize_field(fields[k][:1].detach(), case.fixed.shape) for k in chosen]
    warped = [_array(ops.warp(pair["moving"][:1], u))[0] for u in carried]
    grey = window(case.moving)
    scale = symmetric(*(case.fixed - image for image in warped))
    titles = [
        f"field {k + 1} of {len(fields)}\n{' x '.join(map(str, fields[k].shape[2:]))}"
        for k in chosen
    ]
    rows = [
        [View(name, _image(image, grey)) for name, image in zip(titles, warped, strict=True)],
        [_difference("fixed - warped", case.fixed - image, scale) for image in warped],
        [_grid(_array(u), case) for u in carried],
    ]
    laid = [(case.planes[0], row) for row in rows]
    return figure_of(case.heading, laid, case.fixed.shape, case.spacing)
