"""elastix, by itk-elastix.

Klein, Staring, Murphy, Viergever, Pluim: elastix: a toolbox for intensity-based medical image
registration, IEEE Transactions on Medical Imaging 29 (2010).
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_lab.models.classical.base import Array, Classical, levels
from regnet_lab.models.classical.subprocess import apart

Stages = Mapping[str, Mapping[str, Any]]


class Elastix(Classical):
    """elastix' own default parameter maps, one after the other, with some entries changed.

    Args:
        stages: For each map, such as ``affine`` or ``bspline``, the entries that differ, by
            elastix' names; lengths are in voxels.
        resolutions: Levels of each map, each half the next; fewer on small grids.
        seed: Of the voxels it looks at.
        masked: Look only at what is brighter than the darkest voxel of each image.
    """

    def __init__(
        self, stages: Stages, resolutions: int = 3, seed: int = 0, masked: bool = True
    ) -> None:
        super().__init__(masked)
        self.stages, self.resolutions, self.seed = stages, resolutions, seed

    def register(self, fixed: Array, moving: Array) -> Array:
        common = {"RandomSeed": self.seed, "WriteResultImage": "false"}
        stages = {name: {**common, **changes} for name, changes in self.stages.items()}
        masks, count = self.masks(fixed, moving), levels(fixed.shape, self.resolutions)
        return apart("itk-elastix", elastix, fixed, moving, masks, stages, count)


def text(value: object) -> str:
    """A number or a word as elastix writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def elastix(
    fixed: Array, moving: Array, masks: list[NDArray[np.uint8]] | None, stages: Stages, count: int
) -> Array:
    """Displacement (D, *spatial) in voxels by so many resolutions of each of the stages."""
    import itk

    def image(array: NDArray) -> Any:
        return itk.image_from_array(np.ascontiguousarray(array.T))

    wanted = itk.ParameterObject.New()
    for name, changes in stages.items():
        chosen = wanted.GetDefaultParameterMap(name, count)
        for key, value in changes.items():
            values = value if isinstance(value, list) else [value]
            chosen[key] = [text(one) for one in values]
        wanted.AddParameterMap(chosen)
    within = dict(zip(("fixed_mask", "moving_mask"), map(image, masks or []), strict=False))
    with TemporaryDirectory() as folder:
        log = {"log_to_file": True, "output_directory": folder, "log_file_name": "log"}
        try:
            _, found = itk.elastix_registration_method(
                image(fixed), image(moving), parameter_object=wanted, **within, **log
            )
        except RuntimeError as error:
            raise RuntimeError(reason((Path(folder) / "log").read_text("utf-8"))) from error
        field = itk.transformix_deformation_field(image(moving), found, output_directory=folder)
        return np.array(field).T


def reason(log: str) -> str:
    """Why elastix failed, by its log."""
    told = [line.split(":", 1)[1].strip() for line in log.splitlines() if "Description:" in line]
    return told[-1] if told else "elastix does not say why"
