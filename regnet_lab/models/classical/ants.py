"""ANTs' symmetric normalisation, by antspyx.

Avants, Epstein, Grossman, Gee: Symmetric diffeomorphic image registration with
cross-correlation, Medical Image Analysis 12 (2008).
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_lab.models.classical.base import Array, Classical
from regnet_lab.models.classical.subprocess import apart


class ANTs(Classical):
    """``ants.registration`` of one type with some of its options changed.

    Args:
        kind: ``type_of_transform``; ``SyN`` is an affine map by mutual information, then the
            symmetric normalisation.
        options: By their names there, such as ``reg_iterations``, steps at each level of the
            normalisation, the last at full resolution.
        seed: Of the voxels it looks at.
        masked: Look only at what is brighter than the darkest voxel of each image.
    """

    def __init__(
        self, kind: str, options: Mapping[str, Any], seed: int = 0, masked: bool = True
    ) -> None:
        super().__init__(masked)
        self.kind, self.options, self.seed = kind, options, seed

    def register(self, fixed: Array, moving: Array) -> Array:
        options = {"type_of_transform": self.kind, "random_seed": self.seed + 1} | {**self.options}
        return apart("antspyx", ants, fixed, moving, self.masks(fixed, moving), options)


def ants(
    fixed: Array,
    moving: Array,
    masks: list[NDArray[np.uint8]] | None,
    options: Mapping[str, Any],
) -> Array:
    """Displacement (D, *spatial) in voxels."""
    import ants

    a, b, *m = (ants.from_numpy(x.astype(np.float32)) for x in (fixed, moving, *(masks or [])))
    within = dict(zip(("mask", "moving_mask"), m, strict=False))
    with TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "ants")
        found = ants.registration(a, b, outprefix=prefix, mask_all_stages=True, **within, **options)
        whole = ants.apply_transforms(a, b, found["fwdtransforms"], compose=prefix)
        return np.moveaxis(ants.image_read(whole).numpy(), -1, 0)
