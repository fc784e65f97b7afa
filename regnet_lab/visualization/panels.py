"""Pictures of one registration, for TensorBoard and for files.

Axes are shown as stored (see :mod:`regnet_lab.visualization.slices`), stretched to millimetres by the
spacing; displacements are in voxels.  Figures are made without pyplot and touch no global state.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from regnet_lab import ops
from regnet_lab.types import Pair, Registration
from regnet_lab.visualization import views
from regnet_lab.visualization.layout import View, arranged, figure_of, symmetric, window
from regnet_lab.visualization.slices import Array, Plane, centre, planes

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


def _views(pair: Pair, registration: Registration, case: Case) -> list[View]:
    """Everything the panel shows, left to right."""
    u, warped = _array(registration.displacement), _array(registration.warped)[0]
    before, after = case.fixed - case.moving, case.fixed - warped
    grey, scale = window(case.moving), symmetric(before, after)
    shown = [
        views.grey("fixed", case.fixed, window(case.fixed)),
        views.grey("moving", case.moving, grey),
        views.grey("warped moving", warped, grey),
        views.difference("fixed - moving", before, scale),
        views.difference("fixed - warped", after, scale),
        views.deformed_grid(u, case.moving, case.spacing),
        views.magnitude(u),
        views.jacobian(u),
    ]
    if "fixed_labels" in pair and "moving_labels" in pair:
        labels = ops.warp(pair["moving_labels"][:1], registration.displacement[:1], "nearest")
        shown.append(views.outlines(_array(pair["fixed_labels"])[0], _array(labels)[0], case.fixed))
    return shown


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
    laid = arranged(case.planes, _views(pair, registration, case))
    return figure_of(case.heading, laid, case.fixed.shape, case.spacing)


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
        [
            View(name, views.image_of(image, grey))
            for name, image in zip(titles, warped, strict=True)
        ],
        [views.difference("fixed - warped", case.fixed - image, scale) for image in warped],
        [views.deformed_grid(_array(u), case.moving, case.spacing) for u in carried],
    ]
    laid = [(case.planes[0], row) for row in rows]
    return figure_of(case.heading, laid, case.fixed.shape, case.spacing)


def atlas(
    heading: str,
    mean: Array,
    template: Array,
    spacing: list[float],
    labels: Array | None = None,
    probability: Array | None = None,
) -> Figure:
    """The plain mean and the template on one scale of grey, and what the labels' vote gave.

    Args:
        heading: Above everything.
        mean: (*spatial) mean of the images as they are.
        template: (*spatial).
        spacing: Millimetres per voxel.
        labels: (*spatial) winning labels; none where the subjects have none.
        probability: (*spatial) their share of the votes.
    """
    grey = window(mean, template)
    shown = [views.grey("plain mean", mean, grey), views.grey("template", template, grey)]
    if labels is not None and probability is not None:
        share = views.image_of(probability, (0, 1), "viridis")
        shown += [
            views.regions(labels, template, grey),
            View("share of votes\nof the winning label", share, True),
        ]
    regions = labels if labels is not None and labels.any() else template - template.min()
    return figure_of(heading, arranged(planes(centre(regions != 0)), shown), mean.shape, spacing)
