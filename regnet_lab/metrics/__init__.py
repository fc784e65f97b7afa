"""Registration metrics: pure functions, and three scorers that combine them.

Conventions:
    Arrays have no batch and no channel axis: labels and masks are (*spatial), points (N, D) in
    voxels, a displacement u is (D, *spatial) in voxels of the fixed grid, channel k along array
    axis k, and a point moves to x + u(x).  A metric's name ends in its unit (``_mm``, ``_vox``,
    ``_percent``).  An undefined value is NaN.

Scorers, ``score(pair, u) -> dict[str, float]``, each for one case:
    ``score_validation``  metrics cheap enough for every validation during training;
    ``score_full``        all metrics, in millimetres, in their textbook definition;
    ``score_learn2reg``   the values of the official Learn2Reg evaluator.

References:
    Learn2Reg: Hering et al., IEEE TMI 2022, and its published evaluator.
    Surface distances of ``score_learn2reg``: Nikolov et al., arXiv 1809.04430.
    Non-diffeomorphic volume: Liu et al., IJCV 2024, arXiv 2212.06060.
"""

from regnet_lab.metrics.jacobian import folds_percent, interior_determinant, ndv_percent, sdlogj
from regnet_lab.metrics.landmarks import (
    endpoint_error,
    mean_absolute_errors,
    sample_cubic,
    sample_linear,
    target_registration_error,
)
from regnet_lab.metrics.overlap import dice, find_labels
from regnet_lab.metrics.scorers import score_full, score_learn2reg, score_validation
from regnet_lab.metrics.surface_distance import (
    average_surface_distance,
    hausdorff95,
    hausdorff95_learn2reg,
    surface_distances,
)

__all__ = [
    "average_surface_distance",
    "dice",
    "endpoint_error",
    "find_labels",
    "folds_percent",
    "hausdorff95",
    "hausdorff95_learn2reg",
    "interior_determinant",
    "mean_absolute_errors",
    "ndv_percent",
    "sample_cubic",
    "sample_linear",
    "score_full",
    "score_learn2reg",
    "score_validation",
    "sdlogj",
    "surface_distances",
    "target_registration_error",
]
