"""Figures of DIRV-Net: a registered batch, every unit of every pyramid level, and its training.

A volume is shown in the plane of its first two axes through the middle, axis 0 to the right and
axis 1 up.  Displacements are in voxels of the grid they are defined on.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.ops.pairs import resize_pair
from regnet_lab.types import Pair, PairDataset, Registration
from regnet_lab.visualization import field_of_experts, layout, slices
from regnet_lab.visualization.curves import plot_metrics
from regnet_lab.visualization.layout import ImageRow, compute_symmetric_limits, draw_image_rows
from regnet_lab.visualization.slices import Array

MAX_COLUMNS = 8


def collate_first_pairs(pairs: PairDataset, count: int) -> Pair:
    """Return the first ``count`` pairs of a data set as one batch."""
    first_pairs = [pairs[k] for k in range(min(count, len(pairs)))]
    try:
        return default_collate(first_pairs)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            "The first pairs differ in size or in their annotations and cannot form a batch: "
            "show a single pair with num_cases=1."
        ) from error


def register_without_grad(module: nn.Module, pair: Pair) -> Registration:
    """Register a batch in evaluation mode, then restore the module's mode."""
    training = module.training
    with torch.no_grad():
        registration = module.eval()(pair)
    module.train(training)
    return registration


def group_by_level(pair: Pair, registration: Registration) -> list[tuple[Pair, list[Tensor]]]:
    """Return the batch on every level's grid with the fields of its units, coarse to fine."""
    fields = [u.detach() for u in registration.fields]
    levels = [list(units) for _, units in groupby(fields, lambda u: u.shape[2:])]
    return [(resize_pair(pair, units[0].shape[2:]), units) for units in levels]


def compute_level_errors(pair: Pair, registration: Registration) -> list[dict[str, float]]:
    """Compute the errors after the last unit of every level, a row for each level.

    ``mae`` is mean |fixed - warped|; ``epe_vox``, present where the displacement is known, is in
    voxels of the finest grid.
    """
    rows = []
    finest = pair["fixed"].shape[2]
    for number, (level, units) in enumerate(group_by_level(pair, registration), 1):
        warped = ops.warp(level["moving"], units[-1])
        row = {"level": number, "mae": float((level["fixed"] - warped).abs().mean())}
        if "displacement" in level:
            error = (level["displacement"] - units[-1]).norm(dim=1).mean()
            row["epe_vox"] = float(error) * finest / warped.shape[2]
        rows.append(row)
    return rows


def extract_middle_slice(image: Tensor) -> Array:
    """Return the middle plane of (B, C, *spatial) as (B, C, right, up)."""
    middle = slices.get_orthogonal_planes([n // 2 for n in image.shape[2:]])[0]
    return slices.extract_slice(image.detach().float().cpu().numpy(), middle)


def get_short_names(pair: Pair) -> list[str]:
    """Return the ends of the names of the pairs that fit into a figure."""
    return [name[-18:] for name in pair["name"][:MAX_COLUMNS]]


def draw_images(pair: Pair, registration: Registration) -> Figure:
    """Draw fixed, moving and warped images and their differences, a column for each pair."""
    fixed, moving, warped = (
        extract_middle_slice(image[:MAX_COLUMNS])[:, 0]
        for image in (pair["fixed"], pair["moving"], registration.warped)
    )
    before, after, names = fixed - moving, fixed - warped, get_short_names(pair)
    gray = layout.compute_intensity_limits(fixed, moving)
    scale = compute_symmetric_limits(before, after)
    rows = [
        ImageRow("fixed", fixed, gray, names),
        ImageRow("moving", moving, gray),
        ImageRow("warped", warped, gray),
        ImageRow("fixed - moving", before, scale, colormap="bwr", annotated=True),
        ImageRow("fixed - warped", after, scale, colormap="bwr", annotated=True),
    ]
    return draw_image_rows("Images", rows)


def draw_displacements(pair: Pair, registration: Registration) -> dict[str, Figure]:
    """Draw displacements by component and as arrows in the plane, a column for each pair.

    Where the displacement is known, it and the error are drawn too, on the same scale.
    """
    fields, names = {"predicted": registration.displacement}, get_short_names(pair)
    if "displacement" in pair:
        truth = pair["displacement"]
        fields = {"truth": truth, **fields, "truth - predicted": truth - registration.displacement}
    shown = {label: extract_middle_slice(u[:MAX_COLUMNS]) for label, u in fields.items()}
    limits = compute_symmetric_limits(*shown.values())
    components = [
        ImageRow(f"{label}\naxis {k}", u[:, k], limits, names, "bwr", annotated=True)
        for k in range(registration.displacement.shape[1])
        for label, u in shown.items()
    ]
    longest = max(float(np.linalg.norm(u[:, :2], axis=1).max()) for u in shown.values())
    arrows = [ImageRow(k, u[:, :2], (0, longest), names, colorbar=False) for k, u in shown.items()]
    heading = f"Displacements in the plane, up to {longest:.3g} voxels"
    return {
        "displacements": draw_image_rows("Displacements (voxels)", components),
        "vectors": draw_image_rows(heading, arrows, cell=1.5 * layout.CELL_INCHES),
    }


def draw_units(pair: Pair, registration: Registration) -> dict[str, Figure]:
    """Draw the first pair's warped image and displacement after up to 8 units of every level.

    A row is a level, and an axis of the displacement.  The fixed image is last.  Where the
    displacement is known, it, the image warped by it and the error of the last unit follow.
    """
    image_rows, field_rows = [], []
    for number, (level, units) in enumerate(group_by_level(pair, registration), 1):
        name, size = f"level {number}", " x ".join(map(str, units[0].shape[2:]))
        chosen = slices.space_evenly(len(units), MAX_COLUMNS)
        titles = [f"{name}, unit {k + 1}\n{size}" for k in chosen]
        fields = [units[k][:1] for k in chosen]
        truth = [level["displacement"][:1]] if "displacement" in level else []

        warped = [ops.warp(level["moving"][:1], u) for u in fields + truth]
        images = [extract_middle_slice(x)[0, 0] for x in (*warped, level["fixed"][:1])]
        limits = layout.compute_intensity_limits(*images)
        captions = [*titles, *["warped by truth"] * len(truth), "fixed"]
        image_rows.append(ImageRow(name, images, limits, captions))

        errors = [u - fields[-1] for u in truth]
        shown = [extract_middle_slice(u)[0] for u in fields + truth + errors]
        limits = compute_symmetric_limits(*shown)
        captions = titles + ["truth", "truth - predicted"] * len(truth)
        for k, components in enumerate(zip(*shown, strict=True)):
            field_rows.append(ImageRow(f"{name}\naxis {k}", components, limits, captions, "bwr"))
    heading = "Displacement after every unit (voxels of the level)"
    return {
        "unit_images": draw_image_rows("Warped image after every unit", image_rows),
        "unit_displacements": draw_image_rows(heading, field_rows),
    }


def plot_level_errors(history: Sequence[Mapping[str, float]]) -> Figure:
    """Plot the errors of every level over training, and their mean over the levels.

    Args:
        history: Rows of :func:`compute_level_errors` with their training ``step``.
    """
    errors = pd.DataFrame(history)
    mean = errors.groupby("step", as_index=False).mean().assign(level="mean of the levels")
    errors["level"] = "level " + errors["level"].astype(int).astype(str)
    titles = {name: name for name in ("epe_vox", "mae") if name in errors}
    return plot_metrics(pd.concat([errors, mean]), "step", titles, "level")


def draw_figures(
    model: nn.Module,
    pair: Pair,
    registration: Registration,
    gradients: Mapping[str, Tensor],
    history: Sequence[Mapping[str, float]],
) -> dict[str, Figure]:
    """Draw all figures of a registered batch, of what the model learned and of its training.

    Figures of fields of experts, gradients and history are left out where there are none.

    Returns:
        Figures by their tag ``batch/...``, ``model/...`` or ``training/...``.
    """
    batch = {"images": draw_images(pair, registration)}
    batch |= draw_displacements(pair, registration) | draw_units(pair, registration)
    figures = {f"batch/{name}": figure for name, figure in batch.items()}
    learned = field_of_experts.draw_parameters(model)
    figures |= {f"model/{name}": figure for name, figure in learned.items()}
    if gradients:
        figures["training/smallest_gradients"] = field_of_experts.plot_gradients(gradients)
    if history:
        figures["training/level_losses"] = plot_level_errors(history)
    return figures
