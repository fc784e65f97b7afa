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

from regnet_lab.metrics.jacobian import folds_percent as folds_percent
from regnet_lab.metrics.jacobian import interior_determinant as interior_determinant
from regnet_lab.metrics.jacobian import ndv_percent as ndv_percent
from regnet_lab.metrics.jacobian import sdlogj as sdlogj
from regnet_lab.metrics.landmarks import endpoint_error as endpoint_error
from regnet_lab.metrics.landmarks import mean_absolute_errors as mean_absolute_errors
from regnet_lab.metrics.landmarks import sample_cubic as sample_cubic
from regnet_lab.metrics.landmarks import sample_linear as sample_linear
from regnet_lab.metrics.landmarks import target_registration_error as target_registration_error
from regnet_lab.metrics.overlap import dice as dice
from regnet_lab.metrics.overlap import find_labels as find_labels
from regnet_lab.metrics.scorers import score_full as score_full
from regnet_lab.metrics.scorers import score_learn2reg as score_learn2reg
from regnet_lab.metrics.scorers import score_validation as score_validation
from regnet_lab.metrics.surface_distance import average_surface_distance as average_surface_distance
from regnet_lab.metrics.surface_distance import hausdorff95 as hausdorff95
from regnet_lab.metrics.surface_distance import hausdorff95_learn2reg as hausdorff95_learn2reg
from regnet_lab.metrics.surface_distance import surface_distances as surface_distances
