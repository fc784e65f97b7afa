"""The quality sheet of one registration: numbers before and after, and a picture.

``headers`` is what the images' own coordinates say, ``aligned`` the linear map, ``registered`` the
whole.  Lengths are in mm of the moving world, volumes counted on the fixed grid.
"""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet_lab import metrics, ops
from regnet_lab.data.io.cases import Scan
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import registered, resized
from regnet_lab.registration.instance_optimization import level_shapes
from regnet_lab.registration.pipeline import Answer, points_in_moving, undeformed, warped
from regnet_lab.spatial import Deformation, coordinates
from regnet_lab.visualization.panels import panel

VOXELS = 300_000  # on which likeness is measured

Score = dict[str, Any]


def likeness(answer: Answer) -> Score:
    """Correlation, its mean over windows of 7 and mutual information (nats), aligned and
    registered, on a grid of at most 300,000 voxels where no image had to be continued.
    """
    shape = answer.pair["fixed"].shape[2:]
    spacing = answer.pair["spacing"][0].tolist()
    (size,) = level_shapes(shape, spacing, 1, VOXELS)
    pair = resized(answer.pair, size)
    f, m = pair["fixed"].cpu(), pair["moving"].cpu()
    w = ops.warp(m, ops.resize_field(answer.displacement.cpu(), size))
    return {
        stage: {
            "ncc": float(np.corrcoef(f.flatten().numpy(), image.flatten().numpy())[0, 1]),
            "lncc": 1 - float(similarity.local_ncc(f, image, window=7, padding="replicate")),
            "mi": -float(similarity.mutual_information(f, image)),
        }
        for stage, image in (("aligned", m), ("registered", w))
    }


def regularity(found: Deformation, mask: NDArray | None) -> Score:
    """Folds and spread of the logarithmic volume change, everywhere and within the mask."""
    whole = metrics.interior_determinant(found.u)
    length = np.linalg.norm(np.tensordot(found.fixed.lps[:-1, :-1], found.u, 1), axis=0)
    score = {
        "folds_percent": metrics.folds_percent(whole),
        "sdlogj": metrics.sdlogj(whole),
        "displacement_mean_mm": float(length.mean()),
        "displacement_max_mm": float(length.max()),
    }
    if mask is not None:
        inside = metrics.interior_determinant(found.u, mask > 0)
        score["folds_in_mask_percent"] = metrics.folds_percent(inside)
    return score


def inverse_error(found: Deformation) -> Score:
    """By how many mm the way there and back misses, over voxels whose way stays on the grid."""
    missed = found.residual[np.isfinite(found.residual)]
    if not missed.size:
        return {}
    return {
        "inverse_error_mean_mm": float(missed.mean()),
        "inverse_error_p99_mm": float(np.percentile(missed, 99)),
        "inverse_error_max_mm": float(missed.max()),
    }


def stages(found: Deformation) -> dict[str, Deformation]:
    """What the headers say, the linear map, and the whole."""
    return {
        "headers": undeformed(found, aligned=False),
        "aligned": undeformed(found, aligned=True),
        "registered": found,
    }


def overlap(found: Deformation, fixed: Scan, moving: Scan) -> Score:
    """Dice of every label, on the fixed grid, at every stage."""
    if fixed.labels is None or moving.labels is None:
        return {}
    score = {}
    for stage, at in stages(found).items():
        there = warped(moving.labels, at, linear=False)
        by_label = metrics.dice(fixed.labels, moving.labels, there)
        known = [value for value in by_label.values() if not math.isnan(value)]
        score[stage] = {"mean": float(np.mean(known)) if known else math.nan} | by_label
    return {"dice": score}


def landmarks(found: Deformation, fixed: Scan, moving: Scan) -> Score:
    """Distance of landmarks in the moving world, mm: mean and each, at every stage."""
    if fixed.points is None or moving.points is None:
        return {}
    score = {}
    goal = coordinates.voxel_to_world(moving.affine, moving.points)
    for stage, at in stages(found).items():
        there = coordinates.voxel_to_world(moving.affine, points_in_moving(at, fixed.points))
        distance = np.linalg.norm(there - goal, axis=1)
        score[stage] = {"mean": float(distance.mean()), "each": distance.round(4).tolist()}
    return {"tre_mm": score}


def quality(answer: Answer, fixed: Scan, moving: Scan) -> Score:
    """Everything that can be said about a registration; labels and landmarks where given."""
    found = answer.deformation
    return {
        "similarity": likeness(answer),
        **overlap(found, fixed, moving),
        **landmarks(found, fixed, moving),
        **regularity(found, fixed.mask),
        **inverse_error(found),
        "matrix": found.matrix.tolist(),
        "seconds": answer.seconds,
    }


def picture(answer: Answer) -> Figure:
    """The panel of the pair on the model's grid, the moving image already aligned."""
    pair = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in answer.pair.items()}
    return panel(pair, registered(pair, [answer.displacement.cpu()]))  # type: ignore[arg-type]
