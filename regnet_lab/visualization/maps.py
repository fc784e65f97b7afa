"""Figures of one displacement or volume: folding map, deformed grid, montage of slices.

Arrays have no batch axis: images and labels (*spatial), a displacement u (D, *spatial) in voxels;
spacing is in millimeters per voxel.  Axes are shown as stored, see
:mod:`regnet_lab.visualization.slices`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.visualization import slices, views
from regnet_lab.visualization.layout import View, compute_intensity_limits, draw_figure
from regnet_lab.visualization.slices import Array, Plane

UNITS = ("mm", "voxels")


def select_plane(shape: Sequence[int], axes: Sequence[int], at: int | None = None) -> Plane:
    """Return the plane of two array axes at index ``at`` of the third axis; None: its middle."""
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

    Planes pass the center of the folded voxels, or of the grid if there are none.  Without an
    image, such as the fixed one, the background is white.
    """
    determinant = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy()
    folded = determinant <= 0
    background = np.zeros_like(determinant) if image is None else image
    limits = (-1.0, 0.0) if image is None else compute_intensity_limits(image)
    drawer = views.make_image_drawer(background, limits)
    draw = views.make_overlay_drawer(drawer, determinant, views.make_fold_overlay)
    title = f"folds\n{int(folded.sum())} of {folded.size} voxels"
    shown = [View(title, draw), views.make_jacobian_view(u)]
    planes = slices.get_orthogonal_planes(slices.find_center_voxel(folded))
    rows = [[(plane, view) for view in shown] for plane in planes]
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
    """
    if unit not in UNITS:
        raise UserError(f"unit={unit} must be one of {', '.join(UNITS)}.")
    shown_plane = select_plane(u.shape[1:], plane, at)
    right, up = shown = [*shown_plane.axes]
    voxel_size = np.array(spacing, float) if unit == "mm" else np.ones(len(spacing))
    steps = [max(1, round(every / size)) for size in voxel_size]
    scale, count = voxel_size[shown], np.array(u.shape[1:])[shown]
    lines = [line * scale for line in slices.compute_warped_grid_lines(u, shown_plane, steps)]
    low, high = -0.5 * scale, (count - 0.5) * scale
    figure = Figure((6, 6.4), layout="constrained")
    axes = figure.subplots()
    if image is not None:
        limits = compute_intensity_limits(image)
        views.make_image_drawer(image, limits, opacity=0.4)(axes, shown_plane)
        axes.images[0].set_extent((low[0], high[0], low[1], high[1]))
    axes.add_collection(LineCollection(lines, colors="navy", linewidths=0.8))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set(xlabel=f"axis {right} ({unit})", ylabel=f"axis {up} ({unit})")
    axes.set_aspect(1 if unit == "mm" else spacing[up] / spacing[right])
    gaps = " x ".join(f"{steps[a] * voxel_size[a]:.3g}" for a in shown)
    title = f"x + u(x), components {right} and {up} of u, every {gaps} {unit}"
    axes.set_title("\n".join([title, *shown_plane.cuts]))
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
    """Draw equally spaced slices of a 3D volume along an axis on one gray scale, in rows.

    They include the first and the last one and are at most as many as there are.  Labels, where
    given, are shown over them in color.
    """
    if volume.ndim != 3 or axis not in range(3):
        raise UserError(f"a montage needs a 3D volume and axis 0 to 2, not {volume.ndim}D, {axis}.")
    limits, shown_axes = compute_intensity_limits(volume), [a for a in range(3) if a != axis]
    view = View("", views.make_image_drawer(volume, limits))
    if labels is not None:
        view = views.make_label_view(labels, volume, limits)
    placed = [
        (select_plane(volume.shape, shown_axes, k), replace(view, title=f"axis {axis} = {k}"))
        for k in slices.space_evenly(volume.shape[axis], count)
    ]
    rows = [placed[start : start + columns] for start in range(0, len(placed), columns)]
    return draw_figure(heading, rows, volume.shape, spacing)
