"""The quality report of a registration: numbers before and after, and a figure.

Stages: ``headers`` (the images as their headers place them), ``aligned`` (linear map only) and
``registered`` (linear map and displacement).  Lengths are in mm in the world of the moving image;
volumes are counted on the fixed grid.
"""

import math
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet_lab import metrics, ops
from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement, resize_pair
from regnet_lab.registration.instance_optimization import compute_level_shapes
from regnet_lab.registration.mapping import map_points_to_moving, remove_displacement, warp_array
from regnet_lab.registration.pipeline import RegistrationResult
from regnet_lab.spatial import Deformation, coordinates
from regnet_lab.types import Pair
from regnet_lab.visualization.panels import draw_registration

SIMILARITY_VOXELS = 300_000  # of the grid on which similarity is measured

QualityReport = dict[str, Any]


def measure_similarity(result: RegistrationResult) -> QualityReport:
    """Compute correlation, local correlation (window 7) and mutual information (nats).

    Before and after the displacement, on a grid of at most ``SIMILARITY_VOXELS`` voxels.
    """
    shape = result.pair["fixed"].shape[2:]
    spacing = result.pair["spacing"][0].tolist()
    (size,) = compute_level_shapes(shape, spacing, 1, SIMILARITY_VOXELS)
    pair = resize_pair(result.pair, size)
    fixed, moving = pair["fixed"].cpu(), pair["moving"].cpu()
    warped = ops.warp(moving, ops.resize_field(result.displacement.cpu(), size))
    return {
        stage: {
            "ncc": float(np.corrcoef(fixed.flatten().numpy(), image.flatten().numpy())[0, 1]),
            "lncc": 1 - float(similarity.local_ncc(fixed, image, window=7, padding="replicate")),
            "mi": -float(similarity.mutual_information(fixed, image)),
        }
        for stage, image in (("aligned", moving), ("registered", warped))
    }


def measure_regularity(deformation: Deformation, mask: NDArray | None) -> QualityReport:
    """Compute the percentage of folded voxels, SDlogJ and the length of the displacement."""
    u = deformation.u
    determinant = metrics.interior_determinant(u)
    length = np.linalg.norm(np.tensordot(deformation.fixed.voxel_to_lps[:-1, :-1], u, 1), axis=0)
    report = {
        "folds_percent": metrics.folds_percent(determinant),
        "sdlogj": metrics.sdlogj(determinant),
        "displacement_mean_mm": float(length.mean()),
        "displacement_max_mm": float(length.max()),
    }
    if mask is not None:
        inside = metrics.interior_determinant(u, mask > 0)
        report["folds_in_mask_percent"] = metrics.folds_percent(inside)
    return report


def measure_inverse_error(deformation: Deformation) -> QualityReport:
    """Summarize the error of the inverse in mm, over voxels that map into the fixed grid."""
    error = deformation.inverse_error[np.isfinite(deformation.inverse_error)]
    if not error.size:
        return {}
    return {
        "inverse_error_mean_mm": float(error.mean()),
        "inverse_error_p99_mm": float(np.percentile(error, 99)),
        "inverse_error_max_mm": float(error.max()),
    }


def build_stages(deformation: Deformation) -> dict[str, Deformation]:
    """Return the deformation of every stage by name."""
    return {
        "headers": remove_displacement(deformation, aligned=False),
        "aligned": remove_displacement(deformation),
        "registered": deformation,
    }


def measure_overlap(
    deformation: Deformation, fixed: LoadedCase, moving: LoadedCase
) -> QualityReport:
    """Compute the Dice of every label and its mean at every stage, if both images have labels."""
    if fixed.labels is None or moving.labels is None:
        return {}
    report = {}
    for stage, stage_deformation in build_stages(deformation).items():
        warped = warp_array(moving.labels, stage_deformation, linear=False)
        by_label = metrics.dice(fixed.labels, moving.labels, warped)
        defined = [value for value in by_label.values() if not math.isnan(value)]
        report[stage] = {"mean": float(np.mean(defined)) if defined else math.nan} | by_label
    return {"dice": report}


def measure_landmark_error(
    deformation: Deformation, fixed: LoadedCase, moving: LoadedCase
) -> QualityReport:
    """Compute the distance of every landmark and their mean at every stage, if there are any."""
    if fixed.points is None or moving.points is None:
        return {}
    report = {}
    target = coordinates.voxel_to_world(moving.affine, moving.points)
    for stage, stage_deformation in build_stages(deformation).items():
        voxels = map_points_to_moving(stage_deformation, fixed.points)
        mapped = coordinates.voxel_to_world(moving.affine, voxels)
        distance = np.linalg.norm(mapped - target, axis=1)
        report[stage] = {"mean": float(distance.mean()), "each": distance.round(4).tolist()}
    return {"tre_mm": report}


def assess_quality(
    result: RegistrationResult, fixed: LoadedCase, moving: LoadedCase
) -> QualityReport:
    """Compute the quality report of a registration, as written to ``quality.json``."""
    deformation = result.deformation
    return {
        "similarity": measure_similarity(result),
        **measure_overlap(deformation, fixed, moving),
        **measure_landmark_error(deformation, fixed, moving),
        **measure_regularity(deformation, fixed.mask),
        **measure_inverse_error(deformation),
        "matrix": deformation.matrix.tolist(),
        "seconds": result.seconds,
    }


def draw_result(result: RegistrationResult) -> Figure:
    """Draw the overview of the pair on the grid of the model, after linear alignment."""
    tensors = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in result.pair.items()}
    pair = cast(Pair, tensors)
    return draw_registration(pair, apply_displacement(pair, [result.displacement.cpu()]))
