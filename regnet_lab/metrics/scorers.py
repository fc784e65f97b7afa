"""The three scorers: what ``regnet_lab.metrics`` measures, put together for one case.

A number is left out if the pair lacks what it needs.  One that exists for every label comes as the
mean over the labels that can be compared (``dice``) and by label (``dice/3``, NaN if it cannot).
"""

from collections.abc import Callable, Iterable, Sequence
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

Score = dict[str, float]
Case = dict[str, NDArray]
Table = dict[int, float]
Statistics = dict[str, Callable[[NDArray], float]]

REGULARITY: Statistics = {"sdlogj": jacobian.sdlogj, "folds_percent": jacobian.folds_percent}
PLAIN_REGULARITY: Statistics = {"sdlogj_plain": partial(jacobian.sdlogj, offset=0.0)}


def _array(tensor: Tensor) -> NDArray:
    """The one case of a batch, in float64 or int64."""
    (one,) = tensor.detach().cpu()
    return (one.double() if one.is_floating_point() else one.long()).numpy()


def _case(pair: Pair, u: Tensor) -> Case:
    tensors = {key: value for key, value in pair.items() if isinstance(value, Tensor)}
    return {key: _array(value) for key, value in (tensors | {"u": u}).items()}


def _mask(case: Case) -> NDArray[np.bool_] | None:
    return case["fixed_mask"][0] > 0 if "fixed_mask" in case else None


def _or_nan(statistic: Callable[[NDArray], Any], values: NDArray) -> float:
    """A statistic of some numbers, NaN if there are none."""
    return float(statistic(values)) if values.size else np.nan


def _warp(volume: NDArray, u: NDArray, mode: str, padding: str) -> NDArray:
    """A volume (1, *spatial) seen through u (D, *spatial), on its grid."""
    moving, field = torch.from_numpy(volume)[None], torch.from_numpy(u)[None]
    return ops.warp(moving, field, mode, padding)[0].numpy()


def _warp_labels(labels: NDArray, u: NDArray) -> NDArray:
    """Labels of the cells that x + u(x) falls in, background outside the image."""
    return _warp(labels[None], u, "nearest", "zeros")[0]


def _warp_labels_l2r(labels: NDArray, u: NDArray) -> NDArray:
    """The same by scipy, to which the outer half of a border voxel is outside."""
    return map_coordinates(labels, np.indices(labels.shape) + u, order=0)


def _overlap(fixed: NDArray, moving: NDArray, warped: NDArray) -> dict[str, Table]:
    return {"dice": overlap.dice(fixed, moving, warped)}


def _surface(
    fixed: NDArray, moving: NDArray, warped: NDArray, spacing: NDArray
) -> dict[str, Table]:
    unknown, known = np.array([np.nan]), overlap.presence(fixed, moving)
    distances = {
        label: surface_distance.surface_distances(
            fixed[box] == label, warped[box] == label, spacing
        )
        if known[label]
        else (unknown, unknown)
        for label, box in surface_distance.boxes(fixed, warped, known).items()
    }
    measures = {
        "hd95_mm": surface_distance.hausdorff95,
        "asd_mm": surface_distance.average_surface_distance,
    }
    return {
        name: {label: measure(*both_ways) for label, both_ways in distances.items()}
        for name, measure in measures.items()
    }


def _surface_l2r(fixed: NDArray, moving: NDArray, warped: NDArray) -> dict[str, Table]:
    known = overlap.presence(fixed, moving)
    return {
        "hd95_vox": {
            label: surface_distance.hausdorff95_l2r(fixed[box] == label, warped[box] == label)
            if known[label]
            else np.nan
            for label, box in surface_distance.boxes(fixed, warped, known).items()
        }
    }


def _spread(name: str, by_label: Table) -> Score:
    """The mean over labels that can be compared, then every label."""
    values = np.array(list(by_label.values()))
    mean = _or_nan(np.mean, values[~np.isnan(values)])
    return {name: mean} | {f"{name}/{label}": value for label, value in by_label.items()}


def _labels(
    case: Case,
    warp: Callable[[NDArray, NDArray], NDArray],
    measures: Iterable[Callable[[NDArray, NDArray, NDArray], dict[str, Table]]],
) -> Score:
    if not {"fixed_labels", "moving_labels"} <= case.keys():
        return {}
    fixed, moving = case["fixed_labels"][0], case["moving_labels"][0]
    warped = warp(moving, case["u"])
    score: Score = {}
    for measure in measures:
        for name, by_label in measure(fixed, moving, warped).items():
            score |= _spread(name, by_label)
    return score


def _landmarks(case: Case, sample: Callable[[NDArray, NDArray], NDArray]) -> Score:
    """Mean and 70th percentile over the landmarks; the latter, which the 30 percent worst exceed,
    is Learn2Reg's TRE30.
    """
    if not {"fixed_points", "moving_points"} <= case.keys():
        return {}
    start, end = case["fixed_points"], case["moving_points"]
    errors = landmarks.target_registration_error(
        start, end, sample(case["u"], start), case["spacing"]
    )
    return {
        "tre_mm": _or_nan(np.mean, errors),
        "tre30_mm": _or_nan(partial(np.quantile, q=0.7), errors),
    }


def _known_answer(case: Case) -> Score:
    if "displacement" not in case:
        return {}
    errors, mask = landmarks.endpoint_error(case["u"], case["displacement"]), _mask(case)
    return {"epe_vox": _or_nan(np.mean, errors if mask is None else errors[mask])}


def _errors_by_class(case: Case, thresholds: Sequence[float]) -> Score:
    if "displacement" not in case:
        return {}
    mask = _mask(case)
    inside = slice(None) if mask is None else mask.ravel()
    u, known = (case[key].reshape(len(case["u"]), -1)[:, inside] for key in ("u", "displacement"))
    return landmarks.absolute_errors(u, known, case["spacing"], thresholds)


def _image(case: Case) -> Score:
    difference = case["fixed"] - _warp(case["moving"], case["u"], "linear", "border")
    return {"rmse": float(np.sqrt(np.mean(difference**2)))}


def _regularity(case: Case, statistics: Statistics) -> Score:
    determinant = jacobian.interior_determinant(case["u"], _mask(case))
    return {name: statistic(determinant) for name, statistic in statistics.items()}


def quick(pair: Pair, u: Tensor) -> Score:
    """What is cheap enough for every validation: overlap, landmarks, known answer, image, folds.

    Args:
        pair: A batch of one case, on any device.
        u: (1, D, *spatial) displacement on the fixed grid, voxels.

    Returns:
        ``dice``, ``tre_mm``, ``tre30_mm``, ``epe_vox``, ``rmse``, ``sdlogj``, ``folds_percent``.

    Raises:
        ValueError: The batch holds more than one case.
    """
    case = _case(pair, u)
    return (
        _labels(case, _warp_labels, [_overlap])
        | _landmarks(case, landmarks.sample_linear)
        | _known_answer(case)
        | _image(case)
        | _regularity(case, REGULARITY)
    )


def strict(pair: Pair, u: Tensor, thresholds: Sequence[float] = (1.5, 4.0, 8.0)) -> Score:
    """Everything, in millimetres, as a textbook defines it; arguments as in :func:`quick`.

    Args:
        pair: See there.
        u: See there.
        thresholds: Of the classes of a known displacement's length, mm.

    Returns:
        The numbers of :func:`quick` and ``hd95_mm``, ``asd_mm``, ``sdlogj_plain``, ``ndv_percent``,
        and where the displacement is known :func:`regnet_lab.metrics.absolute_errors`.
    """
    case = _case(pair, u)
    return (
        _labels(case, _warp_labels, [_overlap, partial(_surface, spacing=case["spacing"])])
        | _landmarks(case, landmarks.sample_linear)
        | _known_answer(case)
        | _errors_by_class(case, thresholds)
        | _image(case)
        | _regularity(case, REGULARITY | PLAIN_REGULARITY)
        | {"ndv_percent": jacobian.ndv_percent(case["u"], _mask(case))}
    )


def l2r(pair: Pair, u: Tensor) -> Score:
    """What Learn2Reg's evaluator answers, but that folds are counted and a structure lost in the
    warped image costs the grid's diagonal, not infinity; arguments as in :func:`quick`.

    Labels are warped and landmarks sampled by scipy with zero outside, HD95 is in voxels and
    weighted by area, ``sdlogj`` has its 3 added.

    Returns:
        ``dice``, ``hd95_vox``, ``tre_mm``, ``tre30_mm``, ``sdlogj``, ``folds_percent``.
    """
    case = _case(pair, u)
    return (
        _labels(case, _warp_labels_l2r, [_overlap, _surface_l2r])
        | _landmarks(case, landmarks.sample_cubic)
        | _regularity(case, REGULARITY)
    )
