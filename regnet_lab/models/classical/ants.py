"""ANTs' symmetric normalisation (SyN), by antspyx.

Avants, Epstein, Grossman, Gee: Symmetric diffeomorphic image registration with
cross-correlation, Medical Image Analysis 12 (2008).
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from regnet_lab.models.classical.base import Array, ClassicalMethod, Masks
from regnet_lab.models.classical.subprocess import run_in_child_process


class ANTs(ClassicalMethod):
    """``ants.registration`` with some options changed.

    Args:
        type_of_transform: ``type_of_transform``; ``SyN`` is an affine alignment by mutual
            information, then the symmetric normalisation.
        options: Options of ``ants.registration``, such as ``reg_iterations``, the iterations at
            each level of the normalisation, the last at full resolution.
    """

    def __init__(
        self,
        type_of_transform: str,
        options: Mapping[str, Any],
        seed: int = 0,
        mask_background: bool = True,
    ) -> None:
        super().__init__(mask_background)
        self.type_of_transform, self.options, self.seed = type_of_transform, options, seed

    def register(self, fixed: Array, moving: Array) -> Array:
        options = {"type_of_transform": self.type_of_transform, "random_seed": self.seed + 1}
        masks, options = self.make_masks(fixed, moving), options | {**self.options}
        return run_in_child_process("antspyx", register_with_ants, fixed, moving, masks, options)


def register_with_ants(
    fixed: Array, moving: Array, masks: Masks, options: Mapping[str, Any]
) -> Array:
    """Return the displacement (D, *spatial) in voxels; runs in the child process."""
    import ants

    a, b, *m = (ants.from_numpy(x.astype(np.float32)) for x in (fixed, moving, *(masks or [])))
    mask_options = dict(zip(("mask", "moving_mask"), m, strict=False))
    with TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "ants")
        result = ants.registration(
            a, b, outprefix=prefix, mask_all_stages=True, **mask_options, **options
        )
        composite = ants.apply_transforms(a, b, result["fwdtransforms"], compose=prefix)
        return np.moveaxis(ants.image_read(composite).numpy(), -1, 0)
