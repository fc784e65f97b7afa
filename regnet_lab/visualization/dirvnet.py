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
from regnet_lab.visualization import field_of_experts, layout
from regnet_lab.visualization.curves import plot_metrics
from regnet_lab.visualization.layout import ImageRow, compute_symmetric_limits, draw_image_rows
from regnet_lab.visualization.slices import Array, extract_slice, get_orthogonal_planes

MAX_COLUMNS = 8


def collate_first_pairs(pairs: PairDataset, count: int) -> Pair:
    """Return the first ``count`` pairs of a data set as one batch.

    Raises:
        UserError: The pairs differ in size or in their annotations.
    """
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
    module.eval()
    with torch.no_grad():
        registration = module(pair)
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
    middle = get_orthogonal_planes([n // 2 for n in image.shape[2:]])[0]
    return extract_slice(image.detach().float().cpu().numpy(), middle)


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
        ImageRow("fixed", [*fixed], names, gray),
        ImageRow("moving", [*moving], [], gray),
        ImageRow("warped", [*warped], [], gray),
        ImageRow("fixed - moving", [*before], [], scale, "bwr", annotated=True),
        ImageRow("fixed - warped", [*after], [], scale, "bwr", annotated=True),
    ]
    return draw_image_rows("Images", rows)


def slice_displacements(pair: Pair, registration: Registration) -> dict[str, Array]:
    """Return slices (B, D, right, up) of the prediction and, where known, of truth and error."""
    fields = {"predicted": registration.displacement}
    if "displacement" in pair:
        truth = pair["displacement"]
        fields = {"truth": truth, **fields, "truth - predicted": truth - registration.displacement}
    return {name: extract_middle_slice(u[:MAX_COLUMNS]) for name, u in fields.items()}


def draw_displacements(pair: Pair, registration: Registration) -> Figure:
    """Draw every component of the displacements on one scale, a column for each pair."""
    fields, names = slice_displacements(pair, registration), get_short_names(pair)
    limits = compute_symmetric_limits(*fields.values())
    rows = [
        ImageRow(f"{label}\naxis {k}", [*u[:, k]], names, limits, "bwr", annotated=True)
        for k in range(registration.displacement.shape[1])
        for label, u in fields.items()
    ]
    return draw_image_rows("Displacements (voxels)", rows)


def draw_vectors(pair: Pair, registration: Registration) -> Figure:
    """Draw in-plane displacements as arrows, a column for each pair."""
    fields, names = slice_displacements(pair, registration), get_short_names(pair)
    max_length = max(float(np.linalg.norm(u[:, :2], axis=1).max()) for u in fields.values())
    rows = [
        ImageRow(label, [*u[:, :2]], names, (0, max_length), colorbar=False)
        for label, u in fields.items()
    ]
    heading = f"Displacements in the plane, up to {max_length:.3g} voxels"
    return draw_image_rows(heading, rows, cell=1.5 * layout.CELL_INCHES)


def _select_units(level: int, units: list[Tensor]) -> tuple[list[Tensor], list[str]]:
    """Return the first case's field after up to 8 units of a level, and their titles."""
    count, size = len(units), " x ".join(map(str, units[0].shape[2:]))
    chosen = np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int).tolist()
    titles = [f"level {level}, unit {k + 1}\n{size}" for k in chosen]
    return [units[k][:1] for k in chosen], titles


def draw_unit_images(pair: Pair, registration: Registration) -> Figure:
    """Draw the first pair's warped image after every unit, a row for each level.

    The fixed image is last; the image warped by the known displacement, if any, is before it.
    """
    rows = []
    for number, (level, units) in enumerate(group_by_level(pair, registration), 1):
        fields, titles = _select_units(number, units)
        if "displacement" in level:
            fields, titles = [*fields, level["displacement"][:1]], [*titles, "warped by truth"]
        warped = [ops.warp(level["moving"][:1], u) for u in fields]
        images = [extract_middle_slice(x)[0, 0] for x in (*warped, level["fixed"][:1])]
        limits = layout.compute_intensity_limits(*images)
        rows.append(ImageRow(f"level {number}", images, [*titles, "fixed"], limits))
    return draw_image_rows("Warped image after every unit", rows)


def draw_unit_displacements(pair: Pair, registration: Registration) -> Figure:
    """Draw the first pair's displacement after every unit, a row for each level and axis.

    Where the displacement is known, it and the error of the last unit follow.
    """
    rows = []
    for number, (level, units) in enumerate(group_by_level(pair, registration), 1):
        fields, titles = _select_units(number, units)
        if "displacement" in level:
            truth = level["displacement"][:1]
            fields = [*fields, truth, truth - units[-1][:1]]
            titles = [*titles, "truth", "truth - predicted"]
        slices = [extract_middle_slice(u)[0] for u in fields]
        limits = compute_symmetric_limits(*slices)
        for k, images in enumerate(zip(*slices, strict=True)):
            rows.append(ImageRow(f"level {number}\naxis {k}", images, titles, limits, "bwr"))
    return draw_image_rows("Displacement after every unit (voxels of the level)", rows)


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
    figures = {
        "batch/images": draw_images(pair, registration),
        "batch/displacements": draw_displacements(pair, registration),
        "batch/vectors": draw_vectors(pair, registration),
        "batch/unit_images": draw_unit_images(pair, registration),
        "batch/unit_displacements": draw_unit_displacements(pair, registration),
    }
    for name, figure in field_of_experts.draw_parameters(model).items():
        figures[f"model/{name}"] = figure
    if gradients:
        figures["training/smallest_gradients"] = field_of_experts.plot_gradients(gradients)
    if history:
        figures["training/level_losses"] = plot_level_errors(history)
    return figures
