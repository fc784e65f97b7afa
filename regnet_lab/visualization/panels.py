"""Figures of one registration, for TensorBoard and for files, and of an atlas.

Axes are shown as stored (see :mod:`regnet_lab.visualization.slices`) and scaled to millimeters by
the spacing; displacements are in voxels.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from regnet_lab import ops
from regnet_lab.types import Pair, Registration
from regnet_lab.visualization import views
from regnet_lab.visualization.layout import (
    View,
    arrange_views,
    compute_intensity_limits,
    compute_symmetric_limits,
    draw_figure,
)
from regnet_lab.visualization.slices import Array, Plane, find_center_voxel, get_orthogonal_planes

MAX_FIELDS = 9


@dataclass(frozen=True)
class PairArrays:
    """The first pair of a batch as NumPy arrays, and the planes to show."""

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


def _to_array(tensor: Tensor) -> Array:
    """Return the first case of a batch (B, C, *spatial) as a NumPy array (C, *spatial)."""
    first = tensor[0].detach().cpu()
    return (first.float() if first.is_floating_point() else first).numpy()


def _convert_pair(pair: Pair) -> PairArrays:
    """Convert the first pair, with planes through the center of its fixed labels or fixed image."""
    fixed, moving = _to_array(pair["fixed"])[0], _to_array(pair["moving"])[0]
    foreground = _to_array(pair["fixed_labels"])[0] != 0 if "fixed_labels" in pair else np.zeros(1)
    center = find_center_voxel(foreground if foreground.any() else fixed - np.nanmin(fixed))
    planes = get_orthogonal_planes(center)
    return PairArrays(pair["name"][0], fixed, moving, pair["spacing"][0].tolist(), planes)


def _make_views(pair: Pair, registration: Registration, arrays: PairArrays) -> list[View]:
    u, warped = _to_array(registration.displacement), _to_array(registration.warped)[0]
    before, after = arrays.fixed - arrays.moving, arrays.fixed - warped
    gray, scale = compute_intensity_limits(arrays.moving), compute_symmetric_limits(before, after)
    shown = [
        views.make_image_view("fixed", arrays.fixed, compute_intensity_limits(arrays.fixed)),
        views.make_image_view("moving", arrays.moving, gray),
        views.make_image_view("warped moving", warped, gray),
        views.make_difference_view("fixed - moving", before, scale),
        views.make_difference_view("fixed - warped", after, scale),
        views.make_deformed_grid_view(u, arrays.moving, arrays.spacing),
        views.make_magnitude_view(u),
        views.make_jacobian_view(u),
    ]
    if "fixed_labels" in pair and "moving_labels" in pair:
        fixed_labels = _to_array(pair["fixed_labels"])[0]
        labels = ops.warp(pair["moving_labels"][:1], registration.displacement[:1], "nearest")
        shown.append(views.make_outline_view(fixed_labels, _to_array(labels)[0], arrays.fixed))
    return shown


def draw_registration(pair: Pair, registration: Registration) -> Figure:
    """Draw an overview of the first pair of a batch.

    It shows the fixed, moving and warped image, differences on one scale, the deformed grid, |u|,
    log det J with folds in red and, where the pair has labels, their outlines: two rows of views
    in 2D, one row for each of three orthogonal planes in 3D.

    Args:
        pair: Images (B, 1, *spatial), labels if there are any.
        registration: Its last field is on the fixed grid, (B, D, *spatial) in voxels.
    """
    arrays = _convert_pair(pair)
    rows = arrange_views(arrays.planes, _make_views(pair, registration, arrays))
    return draw_figure(arrays.heading, rows, arrays.fixed.shape, arrays.spacing)


def draw_iterations(pair: Pair, registration: Registration) -> Figure:
    """Draw the first pair after each iteration: one column per field, coarse to fine.

    Fields are resized to the fixed grid.  Rows are the warped image, its difference to the fixed
    image and the deformed grid, in the plane of the first two axes.  Of more than nine fields,
    nine are shown, including the first and the last.

    Args:
        pair: Images (B, 1, *spatial).
        registration: Fields (B, D, *grid), each in voxels of its own grid.
    """
    arrays = _convert_pair(pair)
    fields = registration.fields
    chosen = np.linspace(0, len(fields) - 1, min(len(fields), MAX_FIELDS)).round().astype(int)
    resized = [ops.resize_field(fields[k][:1].detach(), arrays.fixed.shape) for k in chosen]
    warped = [_to_array(ops.warp(pair["moving"][:1], u))[0] for u in resized]
    differences = [arrays.fixed - image for image in warped]
    gray, scale = compute_intensity_limits(arrays.moving), compute_symmetric_limits(*differences)
    titles = [
        f"field {k + 1} of {len(fields)}\n{' x '.join(map(str, fields[k].shape[2:]))}"
        for k in chosen
    ]
    rows = [
        [
            View(title, views.make_image_drawer(image, gray))
            for title, image in zip(titles, warped, strict=True)
        ],
        [views.make_difference_view("fixed - warped", image, scale) for image in differences],
        [
            views.make_deformed_grid_view(_to_array(u), arrays.moving, arrays.spacing)
            for u in resized
        ],
    ]
    plane = arrays.planes[0]
    shape, spacing = arrays.fixed.shape, arrays.spacing
    return draw_figure(arrays.heading, [(plane, row) for row in rows], shape, spacing)


def draw_atlas(
    heading: str,
    mean: Array,
    template: Array,
    spacing: list[float],
    labels: Array | None = None,
    probability: Array | None = None,
) -> Figure:
    """Draw the mean image before registration, the template and the fused labels.

    Args:
        heading: Text above everything.
        mean: (*spatial) mean of the unregistered images.
        template: (*spatial), shown in the same display range.
        spacing: Millimeters per voxel.
        labels: (*spatial) majority-vote labels; None: not shown.
        probability: (*spatial) share of the votes for these labels; None: not shown.
    """
    gray = compute_intensity_limits(mean, template)
    shown = [
        views.make_image_view("plain mean", mean, gray),
        views.make_image_view("template", template, gray),
    ]
    if labels is not None and probability is not None:
        draw_share = views.make_image_drawer(probability, (0, 1), "viridis")
        shown += [
            views.make_label_view(labels, template, gray),
            View("share of votes\nof the winning label", draw_share, True),
        ]
    foreground = labels if labels is not None and labels.any() else template - template.min()
    planes = get_orthogonal_planes(find_center_voxel(foreground != 0))
    return draw_figure(heading, arrange_views(planes, shown), mean.shape, spacing)
