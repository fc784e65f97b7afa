"""Single pictures of a displacement or a volume: folding map, deformed grid, montage of slices.

Arrays carry no batch: images (*spatial), a displacement u (D, *spatial) in voxels of its grid.
Axes are shown as stored, see :mod:`regnet_lab.visualization.slices`.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.visualization import views
from regnet_lab.visualization.layout import View, figure_of, window
from regnet_lab.visualization.slices import Array, Plane, centre, cut, grid_lines, planes

UNITS = ("mm", "voxels")


def plane_of(shape: Sequence[int], axes: Sequence[int], at: int | None = None) -> Plane:
    """The plane of two array axes, at index ``at`` of the third; null: its middle.

    Raises:
        UserError: There are no such axes, or no such index.
    """
    ndim = len(shape)
    if tuple(sorted(axes)) not in set(combinations(range(ndim), 2)):
        raise UserError(f"plane={list(axes)} must be two of the axes 0 to {ndim - 1}.")
    through = [n // 2 for n in shape]
    for axis in set(range(ndim)) - {*axes}:
        index = through[axis] if at is None else at
        if not 0 <= index < shape[axis]:
            raise UserError(f"at={at} must be an index of axis {axis}, 0 to {shape[axis] - 1}.")
        through[axis] = index
    right, up = sorted(axes)
    return Plane((right, up), tuple(through))


def folding_map(
    u: Array, spacing: Sequence[float], image: Array | None = None, heading: str = "folds"
) -> Figure:
    """Where a map folds: red exactly where det(I + du/dx) <= 0, over ``image``; beside it the
    logarithm of the determinant.

    Planes go through the centre of the folds, or of the grid where there are none.

    Args:
        u: (D, *spatial).
        spacing: Millimetres per voxel.
        image: (*spatial), such as the fixed one; none: white.
        heading: Above everything.
    """
    determinant = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy()
    folded = determinant <= 0
    behind = np.zeros_like(determinant) if image is None else image
    limits = (-1.0, 0.0) if image is None else window(image)

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        shown = views.image_of(behind, limits)(axes, plane)
        axes.imshow(views.fold_overlay(cut(determinant, plane).T), origin="lower")
        return shown

    count = f"{int(folded.sum())} of {folded.size} voxels"
    red = Patch(color=views.FOLD, label="fold: det J ≤ 0 (central differences)")
    shown = [View(f"folds\n{count}", draw, legend=(red,)), views.jacobian(u)]
    rows = [(plane, shown) for plane in planes(centre(folded))]
    return figure_of(heading, rows, folded.shape, spacing)


def deformed_grid(
    u: Array,
    spacing: Sequence[float],
    plane: Sequence[int] = (0, 1),
    at: int | None = None,
    every: float = 4,
    unit: str = "voxels",
    image: Array | None = None,
) -> Figure:
    """Lines of a plane of the fixed grid, carried by x + u(x), with axes in the unit chosen.

    Of u the two components in the plane are shown, the one that leaves it is not.

    Args:
        u: (D, *spatial) in voxels, whatever the unit of the picture.
        spacing: Millimetres per voxel.
        plane: Two array axes: to the right and up.
        at: Index of the plane along the third axis; null: the middle.
        every: Distance of lines, in ``unit``; at least one voxel.
        unit: ``mm`` or ``voxels`` of the axes and of ``every``.
        image: (*spatial) behind the lines, which lead into the moving image.

    Raises:
        UserError: There is no such plane or unit.
    """
    if unit not in UNITS:
        raise UserError(f"unit={unit} must be one of {', '.join(UNITS)}.")
    where = plane_of(u.shape[1:], plane, at)
    scale = np.array([spacing[axis] if unit == "mm" else 1.0 for axis in where.axes])
    per_axis = [mm if unit == "mm" else 1.0 for mm in spacing]
    steps = [max(1, round(every / size)) for size in per_axis]
    lines = [line * scale for line in grid_lines(u, where, steps)]
    right, up = where.axes
    size = np.array([u.shape[1 + axis] for axis in where.axes])
    low, high = -0.5 * scale, (size - 0.5) * scale
    figure = Figure((6, 6.4), layout="constrained")
    axes = figure.subplots()
    if image is not None:
        box = (low[0], high[0], low[1], high[1])
        shown = views.image_of(image, window(image), opacity=0.4)(axes, where)
        shown.set_extent(box)  # type: ignore[attr-defined]
    axes.add_collection(LineCollection(lines, colors="navy", linewidths=0.8))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set(xlabel=f"axis {right} ({unit})", ylabel=f"axis {up} ({unit})")
    axes.set_aspect(1 if unit == "mm" else spacing[up] / spacing[right])
    cuts = [f"axis {a} = {x}" for a, x in enumerate(where.through) if a not in where.axes]
    gaps = " x ".join(f"{steps[a] * per_axis[a]:.3g}" for a in where.axes)
    axes.set_title(
        f"x + u(x), components {right} and {up} of u, every {gaps} {unit}\n{cuts}".strip()
    )
    return figure


def montage(
    volume: Array,
    spacing: Sequence[float],
    axis: int = 2,
    count: int = 12,
    columns: int = 4,
    labels: Array | None = None,
    heading: str = "slices",
) -> Figure:
    """Slices of a volume at equal distances along an axis, the first and the last included, on one
    scale of grey.

    Args:
        volume: (*spatial), 3D.
        spacing: Millimetres per voxel.
        axis: Along which to cut.
        count: Slices, at most as many as there are.
        columns: Slices in a row.
        labels: (*spatial) shown over the slices in colours.
        heading: Above everything.

    Raises:
        UserError: The volume is not 3D, or has no such axis.
    """
    if volume.ndim != 3 or axis not in range(3):
        raise UserError(f"a montage needs a 3D volume and axis 0 to 2, not {volume.ndim}D, {axis}.")
    depth = volume.shape[axis]
    chosen = np.linspace(0, depth - 1, min(count, depth)).round().astype(int).tolist()
    others = [a for a in range(3) if a != axis]
    limits = window(volume)

    def view(index: int) -> View:
        def draw(axes: Axes, _: Plane) -> ScalarMappable:
            here = plane_of(volume.shape, others, index)
            return drawn.draw(axes, here)

        return View(f"axis {axis} = {index}", draw, legend=drawn.legend)

    plain = View("", views.image_of(volume, limits))
    drawn = plain if labels is None else views.regions(labels, volume, limits)
    shown = [view(index) for index in chosen]
    starts = range(0, len(shown), columns)
    rows = [(plane_of(volume.shape, others, chosen[i]), shown[i : i + columns]) for i in starts]
    return figure_of(heading, rows, volume.shape, spacing)
