"""Figures of one registration, for TensorBoard and for files, and of an atlas.

Axes are shown as stored (see :mod:`regnet_lab.visualization.slices`) and scaled to millimeters by
the spacing; displacements are in voxels.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from regnet_lab import ops
from regnet_lab.types import Pair, Registration
from regnet_lab.visualization import layout, slices, views
from regnet_lab.visualization.layout import Row, View, arrange_views
from regnet_lab.visualization.slices import Array

MAX_FIELDS = 9


def _to_array(tensor: Tensor) -> Array:
    """Return the first case of a batch (B, C, *spatial) as a NumPy array (C, *spatial)."""
    first = tensor[0].detach().cpu()
    return (first.float() if first.is_floating_point() else first).numpy()


class PairArrays:
    """The first pair of a batch as NumPy arrays (*spatial), and the planes to show.

    They pass the center of its fixed labels, or of the fixed image if it has none.
    """

    def __init__(self, pair: Pair) -> None:
        self.name, self.spacing = pair["name"][0], pair["spacing"][0].tolist()  # mm
        self.fixed, self.moving = (_to_array(image)[0] for image in (pair["fixed"], pair["moving"]))
        labels = _to_array(pair["fixed_labels"])[0] if "fixed_labels" in pair else np.zeros(1)
        weight = labels != 0 if labels.any() else self.fixed - np.nanmin(self.fixed)
        self.planes = slices.get_orthogonal_planes(slices.find_center_voxel(weight))

    def draw(self, rows: Sequence[Row]) -> Figure:
        """Draw rows of views below a heading with name, size and spacing."""
        voxels = " x ".join(map(str, self.fixed.shape))
        spacing = " x ".join(f"{mm:.3g}" for mm in self.spacing)
        heading = f"{self.name}\n{voxels} voxels of {spacing} mm"
        return layout.draw_figure(heading, rows, self.fixed.shape, self.spacing)


def draw_registration(pair: Pair, registration: Registration) -> Figure:
    """Draw an overview of the first pair of a batch.

    It shows the fixed, moving and warped image, differences on one scale, the deformed grid, |u|,
    log det J with folds in red and, where the pair has labels, their outlines: two rows of views
    in 2D, one row for each of three orthogonal planes in 3D.
    """
    arrays = PairArrays(pair)
    u, warped = _to_array(registration.displacement), _to_array(registration.warped)[0]
    before, after = arrays.fixed - arrays.moving, arrays.fixed - warped
    gray = layout.compute_intensity_limits(arrays.moving)
    scale = layout.compute_symmetric_limits(before, after)
    shown = [
        views.make_image_view("fixed", arrays.fixed, layout.compute_intensity_limits(arrays.fixed)),
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
    return arrays.draw(arrange_views(arrays.planes, shown))


def draw_iterations(pair: Pair, registration: Registration) -> Figure:
    """Draw the first pair after each iteration: one column per field, coarse to fine.

    Fields are resized to the fixed grid.  Rows are the warped image, its difference to the fixed
    image and the deformed grid, in the plane of the first two axes.  Of more than nine fields,
    nine are shown, including the first and the last.
    """
    arrays, fields = PairArrays(pair), registration.fields
    chosen = slices.space_evenly(len(fields), MAX_FIELDS)
    resized = [ops.resize_field(fields[k][:1].detach(), arrays.fixed.shape) for k in chosen]
    warped = [_to_array(ops.warp(pair["moving"][:1], u))[0] for u in resized]
    gray = layout.compute_intensity_limits(arrays.moving)
    scale = layout.compute_symmetric_limits(*(arrays.fixed - image for image in warped))
    columns = []
    for k, u, image in zip(chosen, resized, warped, strict=True):
        title = f"field {k + 1} of {len(fields)}\n{' x '.join(map(str, fields[k].shape[2:]))}"
        shown = [
            View(title, views.make_image_drawer(image, gray)),
            views.make_difference_view("fixed - warped", arrays.fixed - image, scale),
            views.make_deformed_grid_view(_to_array(u), arrays.moving, arrays.spacing),
        ]
        columns.append([(arrays.planes[0], view) for view in shown])
    return arrays.draw(list(zip(*columns, strict=True)))


def draw_atlas(
    heading: str,
    mean: Array,
    template: Array,
    spacing: list[float],
    labels: Array | None = None,
    probability: Array | None = None,
) -> Figure:
    """Draw the mean image before registration, the template and the fused labels.

    All are (*spatial) and ``spacing`` is in millimeters per voxel.  ``probability`` is the share of
    the votes for ``labels``, those of the majority; without both, only the images are shown.
    """
    gray = layout.compute_intensity_limits(mean, template)
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
    planes = slices.get_orthogonal_planes(slices.find_center_voxel(foreground != 0))
    return layout.draw_figure(heading, arrange_views(planes, shown), mean.shape, spacing)
