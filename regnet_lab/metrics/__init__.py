"""How good a registration is: pure functions, and three scorers made of them.

Conventions:
    Arrays carry no batch and no channel: labels and masks are (*spatial), points (N, D) in voxels,
    a displacement u is (D, *spatial) in voxels of the fixed grid, channel k along array axis k,
    and a point moves to x + u(x).  The unit stands in a number's name (``_mm``, ``_vox``,
    ``_percent``).  A number that cannot be known is NaN.

Scorers, ``score(pair, u) -> dict[str, float]``, each for one case:
    ``quick``   cheap enough for every validation during training;
    ``strict``  every number, in millimetres, as a textbook defines it;
    ``l2r``     what the official Learn2Reg evaluator answers, its peculiarities included.

References:
    Learn2Reg: Hering et al., IEEE TMI 2022, and its published evaluator.
    Surface distances of ``l2r``: Nikolov et al., arXiv 1809.04430.
    Non-diffeomorphic volume: Liu et al., IJCV 2024, arXiv 2212.06060.
"""

from regnet_lab.metrics.jacobian import folds_percent, interior_determinant, ndv_percent, sdlogj
from regnet_lab.metrics.landmarks import (
    absolute_errors,
    endpoint_error,
    sample_cubic,
    sample_linear,
    target_registration_error,
)
from regnet_lab.metrics.overlap import dice, presence
from regnet_lab.metrics.scorers import l2r, quick, strict
from regnet_lab.metrics.surface_distance import (
    average_surface_distance,
    hausdorff95,
    hausdorff95_l2r,
    surface_distances,
)

__all__ = [
    "absolute_errors",
    "average_surface_distance",
    "dice",
    "endpoint_error",
    "folds_percent",
    "hausdorff95",
    "hausdorff95_l2r",
    "interior_determinant",
    "l2r",
    "ndv_percent",
    "presence",
    "quick",
    "sample_cubic",
    "sample_linear",
    "sdlogj",
    "strict",
    "surface_distances",
    "target_registration_error",
]
