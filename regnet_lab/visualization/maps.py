"""Figures of one displacement or volume: folding map, deformed grid, montage of slices.

Arrays have no batch axis: images (*spatial), a displacement u (D, *spatial) in voxels.  Axes are
shown as stored, see :mod:`regnet_lab.visualization.slices`.
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
from regnet_lab.visualization.layout import View, compute_intensity_limits, draw_figure
from regnet_lab.visualization.slices import (
    Array,
    Plane,
    compute_warped_grid_lines,
    extract_slice,
    find_center_voxel,
    get_orthogonal_planes,
)

UNITS = ("mm", "voxels")


def select_plane(shape: Sequence[int], axes: Sequence[int], at: int | None = None) -> Plane:
    """Return the plane of two array axes at index ``at`` of the third axis; None: its middle.

    Raises:
        UserError: There are no such axes, or no such index.
    """
    ndim = len(shape)
    if tuple(sorted(axes)) not in set(combinations(range(ndim), 2)):
        raise UserError(f"plane={list(axes)} must be two of the axes 0 to {ndim - 1}.")
    voxel = [n // 2 for n in shape]
    for axis in set(range(ndim)) - {*axes}:
        index = voxel[axis] if at is None else at
        if not 0 <= index < shape[axis]:
            raise UserError(f"at={at} must be an index of axis {axis}, 0 to {shape[axis] - 1}.")
        voxel[axis] = index
    right, up = sorted(axes)
    return Plane((right, up), tuple(voxel))


def draw_folding_map(
    u: Array, spacing: Sequence[float], image: Array | None = None, heading: str = "folds"
) -> Figure:
    """Draw the folded voxels, det(I + du/dx) <= 0, in red over ``image``, and the log determinant.

    Planes pass the center of the folded voxels, or of the grid if there are none.

    Args:
        u: (D, *spatial).
        spacing: Millimeters per voxel.
        image: (*spatial) background, such as the fixed image; None: white.
        heading: Text above everything.
    """
    determinant = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy()
    folded = determinant <= 0
    background = np.zeros_like(determinant) if image is None else image
    limits = (-1.0, 0.0) if image is None else compute_intensity_limits(image)

    def draw(axes: Axes, plane: Plane) -> ScalarMappable:
        mappable = views.make_image_drawer(background, limits)(axes, plane)
        axes.imshow(views.make_fold_overlay(extract_slice(determinant, plane).T), origin="lower")
        return mappable

    count = f"{int(folded.sum())} of {folded.size} voxels"
    red = Patch(color=views.FOLD_COLOR, label="fold: det J ≤ 0 (central differences)")
    shown = [View(f"folds\n{count}", draw, legend=(red,)), views.make_jacobian_view(u)]
    rows = [(plane, shown) for plane in get_orthogonal_planes(find_center_voxel(folded))]
    return draw_figure(heading, rows, folded.shape, spacing)


def draw_deformed_grid(
    u: Array,
    spacing: Sequence[float],
    plane: Sequence[int] = (0, 1),
    at: int | None = None,
    every: float = 4,
    unit: str = "voxels",
    image: Array | None = None,
) -> Figure:
    """Draw a plane of the fixed grid mapped by x + u(x), with axes in millimeters or voxels.

    Only the two components of u in the plane are shown.

    Args:
        u: (D, *spatial), in voxels whatever ``unit`` is.
        spacing: Millimeters per voxel.
        plane: Two array axes: right and up.
        at: Index of the plane along the third axis; None: the middle.
        every: Distance between lines in ``unit``, at least one voxel.
        unit: ``mm`` or ``voxels``, of the axes and of ``every``.
        image: (*spatial) background, such as the moving image, into which the lines map.

    Raises:
        UserError: There is no such plane or unit.
    """
    if unit not in UNITS:
        raise UserError(f"unit={unit} must be one of {', '.join(UNITS)}.")
    shown_plane = select_plane(u.shape[1:], plane, at)
    right, up = shown_plane.axes
    voxel_size = [mm if unit == "mm" else 1.0 for mm in spacing]
    steps = [max(1, round(every / size)) for size in voxel_size]
    scale = np.array([voxel_size[right], voxel_size[up]])
    lines = [line * scale for line in compute_warped_grid_lines(u, shown_plane, steps)]
    count = np.array([u.shape[1 + right], u.shape[1 + up]])
    low, high = -0.5 * scale, (count - 0.5) * scale
    figure = Figure((6, 6.4), layout="constrained")
    axes = figure.subplots()
    if image is not None:
        low_high = compute_intensity_limits(image)
        views.make_image_drawer(image, low_high, opacity=0.4)(axes, shown_plane)
        axes.images[0].set_extent((low[0], high[0], low[1], high[1]))
    axes.add_collection(LineCollection(lines, colors="navy", linewidths=0.8))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set(xlabel=f"axis {right} ({unit})", ylabel=f"axis {up} ({unit})")
    axes.set_aspect(1 if unit == "mm" else spacing[up] / spacing[right])
    cuts = [f"axis {a} = {x}" for a, x in enumerate(shown_plane.voxel) if a not in (right, up)]
    gaps = " x ".join(f"{steps[a] * voxel_size[a]:.3g}" for a in (right, up))
    title = f"x + u(x), components {right} and {up} of u, every {gaps} {unit}"
    axes.set_title("\n".join([title, *cuts]))
    return figure


def draw_montage(
    volume: Array,
    spacing: Sequence[float],
    axis: int = 2,
    count: int = 12,
    columns: int = 4,
    labels: Array | None = None,
    heading: str = "slices",
) -> Figure:
    """Draw equally spaced slices of a volume, including the first and the last, on one gray scale.

    Args:
        volume: (*spatial), 3D.
        spacing: Millimeters per voxel.
        axis: Axis to slice along.
        count: Number of slices, at most as many as there are.
        columns: Slices in a row.
        labels: (*spatial) labels shown over the slices in color; None: no labels.
        heading: Text above everything.

    Raises:
        UserError: The volume is not 3D, or has no such axis.
    """
    if volume.ndim != 3 or axis not in range(3):
        raise UserError(f"a montage needs a 3D volume and axis 0 to 2, not {volume.ndim}D, {axis}.")
    depth = volume.shape[axis]
    indices = np.linspace(0, depth - 1, min(count, depth)).round().astype(int).tolist()
    shown_axes = [a for a in range(3) if a != axis]
    limits = compute_intensity_limits(volume)
    volume_view = View("", views.make_image_drawer(volume, limits))
    if labels is not None:
        volume_view = views.make_label_view(labels, volume, limits)

    def make_slice_view(index: int) -> View:
        def draw(axes: Axes, _: Plane) -> ScalarMappable:
            return volume_view.draw(axes, select_plane(volume.shape, shown_axes, index))

        return View(f"axis {axis} = {index}", draw, legend=volume_view.legend)

    rows = []
    for start in range(0, len(indices), columns):
        row = indices[start : start + columns]
        plane = select_plane(volume.shape, shown_axes, row[0])
        rows.append((plane, [make_slice_view(index) for index in row]))
    return draw_figure(heading, rows, volume.shape, spacing)
