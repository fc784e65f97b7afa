"""Three scorers: sets of metrics computed for one case.

A metric is left out if the pair lacks the data it needs.  A per-label metric is returned as the
mean over the labels that both images have (``dice``) and by label (``dice/3``, NaN if only one
image has it).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from regnet_lab import ops
from regnet_lab.metrics import jacobian, landmarks, overlap, surface_distance
from regnet_lab.types import Pair

Scores = dict[str, float]
CaseArrays = dict[str, NDArray]
LabelValues = dict[int, float]
LabelMeasure = Callable[[NDArray, NDArray, NDArray], dict[str, LabelValues]]
Statistics = dict[str, Callable[[NDArray], float]]

JACOBIAN_STATISTICS: Statistics = {
    "sdlogj": jacobian.sdlogj,
    "folds_percent": jacobian.folds_percent,
}
EXTRA_JACOBIAN_STATISTICS: Statistics = {"sdlogj_plain": partial(jacobian.sdlogj, offset=0.0)}
SURFACE_MEASURES = {
    "hd95_mm": surface_distance.hausdorff95,
    "asd_mm": surface_distance.average_surface_distance,
}


def _to_arrays(pair: Pair, u: Tensor) -> CaseArrays:
    """Return all tensors of a pair of batch size one, and u, as float64 or int64 arrays."""
    arrays: CaseArrays = {}
    for key, tensor in {**pair, "u": u}.items():
        if isinstance(tensor, Tensor):
            (case,) = tensor.detach().cpu()
            arrays[key] = (case.double() if case.is_floating_point() else case.long()).numpy()
    return arrays


def _get_mask(case: CaseArrays) -> NDArray[np.bool_] | None:
    return case["fixed_mask"][0] > 0 if "fixed_mask" in case else None


def _compute_or_nan(statistic: Callable[[NDArray], Any], values: NDArray) -> float:
    """Compute a statistic of some numbers, NaN if there are none."""
    return float(statistic(values)) if values.size else np.nan


def _warp_volume(volume: NDArray, u: NDArray, mode: str, padding: str) -> NDArray:
    """Warp a volume (1, *spatial) by u (D, *spatial)."""
    moving, field = torch.from_numpy(volume)[None], torch.from_numpy(u)[None]
    return ops.warp(moving, field, mode, padding)[0].numpy()


def _warp_labels(labels: NDArray, u: NDArray) -> NDArray:
    """Warp labels by nearest neighbour, background outside the image."""
    return _warp_volume(labels[None], u, "nearest", "zeros")[0]


def _warp_labels_learn2reg(labels: NDArray, u: NDArray) -> NDArray:
    """Warp labels by scipy, which treats the outer half of a border voxel as outside."""
    return map_coordinates(labels, np.indices(labels.shape) + u, order=0)


def _measure_overlap(fixed: NDArray, moving: NDArray, warped: NDArray) -> dict[str, LabelValues]:
    return {"dice": overlap.dice(fixed, moving, warped)}


def _crop_labels(
    fixed: NDArray, moving: NDArray, warped: NDArray
) -> Iterator[tuple[int, tuple[NDArray, NDArray] | None]]:
    """Yield the fixed and the warped mask of every label, None unless both images have it."""
    in_both = overlap.find_labels(fixed, moving)
    for label, box in surface_distance.find_label_boxes(fixed, warped, in_both).items():
        yield label, (fixed[box] == label, warped[box] == label) if in_both[label] else None


def _measure_surface_distances(
    fixed: NDArray, moving: NDArray, warped: NDArray, spacing: NDArray
) -> dict[str, LabelValues]:
    undefined = np.array([np.nan])
    distances = {
        label: surface_distance.surface_distances(*masks, spacing)
        if masks
        else (undefined, undefined)
        for label, masks in _crop_labels(fixed, moving, warped)
    }
    return {
        name: {label: measure(*directed) for label, directed in distances.items()}
        for name, measure in SURFACE_MEASURES.items()
    }


def _measure_surface_distances_learn2reg(
    fixed: NDArray, moving: NDArray, warped: NDArray
) -> dict[str, LabelValues]:
    return {
        "hd95_vox": {
            label: surface_distance.hausdorff95_learn2reg(*masks) if masks else np.nan
            for label, masks in _crop_labels(fixed, moving, warped)
        }
    }


def add_label_mean(name: str, by_label: LabelValues) -> Scores:
    """Return the mean over labels that are not NaN, then the value of every label."""
    values = np.array(list(by_label.values()))
    mean = _compute_or_nan(np.mean, values[~np.isnan(values)])
    return {name: mean} | {f"{name}/{label}": value for label, value in by_label.items()}


def _score_labels(
    case: CaseArrays, warp: Callable[[NDArray, NDArray], NDArray], measures: Iterable[LabelMeasure]
) -> Scores:
    if not {"fixed_labels", "moving_labels"} <= case.keys():
        return {}
    fixed, moving = case["fixed_labels"][0], case["moving_labels"][0]
    warped = warp(moving, case["u"])
    scores: Scores = {}
    for measure in measures:
        for name, by_label in measure(fixed, moving, warped).items():
            scores |= add_label_mean(name, by_label)
    return scores


def _score_landmarks(case: CaseArrays, sample: Callable[[NDArray, NDArray], NDArray]) -> Scores:
    """Compute the mean and the 70th percentile (Learn2Reg's TRE30) over the landmarks."""
    if not {"fixed_points", "moving_points"} <= case.keys():
        return {}
    fixed, moving = case["fixed_points"], case["moving_points"]
    u = sample(case["u"], fixed)
    errors = landmarks.target_registration_error(fixed, moving, u, case["spacing"])
    return {
        "tre_mm": _compute_or_nan(np.mean, errors),
        "tre30_mm": _compute_or_nan(partial(np.quantile, q=0.7), errors),
    }


def _score_endpoint_error(case: CaseArrays) -> Scores:
    if "displacement" not in case:
        return {}
    errors, mask = landmarks.endpoint_error(case["u"], case["displacement"]), _get_mask(case)
    return {"epe_vox": _compute_or_nan(np.mean, errors if mask is None else errors[mask])}


def _score_errors_by_class(case: CaseArrays, thresholds: Sequence[float]) -> Scores:
    if "displacement" not in case:
        return {}
    mask = _get_mask(case)
    inside = slice(None) if mask is None else mask.ravel()
    u, true_u = (case[key].reshape(len(case["u"]), -1)[:, inside] for key in ("u", "displacement"))
    return landmarks.mean_absolute_errors(u, true_u, case["spacing"], thresholds)


def _score_intensities(case: CaseArrays) -> Scores:
    difference = case["fixed"] - _warp_volume(case["moving"], case["u"], "linear", "border")
    return {"rmse": float(np.sqrt(np.mean(difference**2)))}


def _score_jacobian(case: CaseArrays, statistics: Statistics) -> Scores:
    determinant = jacobian.interior_determinant(case["u"], _get_mask(case))
    return {name: statistic(determinant) for name, statistic in statistics.items()}


def score_validation(pair: Pair, u: Tensor) -> Scores:
    """Compute metrics cheap enough for every validation during training.

    Args:
        pair: A batch of one case, on any device.
        u: (1, D, *spatial) displacement on the fixed grid, voxels.

    Returns:
        ``dice``, ``tre_mm``, ``tre30_mm``, ``epe_vox``, ``rmse``, ``sdlogj``, ``folds_percent``.

    Raises:
        ValueError: The batch has more than one case.
    """
    case = _to_arrays(pair, u)
    return (
        _score_labels(case, _warp_labels, [_measure_overlap])
        | _score_landmarks(case, landmarks.sample_linear)
        | _score_endpoint_error(case)
        | _score_intensities(case)
        | _score_jacobian(case, JACOBIAN_STATISTICS)
    )


def score_full(
    pair: Pair, u: Tensor, displacement_thresholds: Sequence[float] = (1.5, 4.0, 8.0)
) -> Scores:
    """Compute all metrics, in millimetres, in their textbook definition.

    Arguments are as in :func:`score_validation`; ``displacement_thresholds`` are the bounds, in mm,
    of the classes of the true displacement's length.

    Returns:
        The metrics of :func:`score_validation`, ``hd95_mm``, ``asd_mm``, ``sdlogj_plain``,
        ``ndv_percent`` and, if the true displacement is given,
        :func:`regnet_lab.metrics.mean_absolute_errors`.
    """
    case = _to_arrays(pair, u)
    measure_surfaces = partial(_measure_surface_distances, spacing=case["spacing"])
    return (
        _score_labels(case, _warp_labels, [_measure_overlap, measure_surfaces])
        | _score_landmarks(case, landmarks.sample_linear)
        | _score_endpoint_error(case)
        | _score_errors_by_class(case, displacement_thresholds)
        | _score_intensities(case)
        | _score_jacobian(case, JACOBIAN_STATISTICS | EXTRA_JACOBIAN_STATISTICS)
        | {"ndv_percent": jacobian.ndv_percent(case["u"], _get_mask(case))}
    )


def score_learn2reg(pair: Pair, u: Tensor) -> Scores:
    """Compute the metrics of the Learn2Reg evaluator; arguments as in :func:`score_validation`.

    Labels are warped and landmarks sampled by scipy with zero outside; HD95 is in voxels and
    weighted by area; ``sdlogj`` adds 3.  Unlike the evaluator, folds are counted, and a structure
    missing in the warped image has the grid's diagonal instead of infinity.

    Returns:
        ``dice``, ``hd95_vox``, ``tre_mm``, ``tre30_mm``, ``sdlogj``, ``folds_percent``.
    """
    case = _to_arrays(pair, u)
    measures = [_measure_overlap, _measure_surface_distances_learn2reg]
    return (
        _score_labels(case, _warp_labels_learn2reg, measures)
        | _score_landmarks(case, landmarks.sample_cubic)
        | _score_jacobian(case, JACOBIAN_STATISTICS)
    )
