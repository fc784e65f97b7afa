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

from regnet_lab.models.classical.base import Array, ClassicalMethod, Masks, limit_levels
from regnet_lab.models.classical.subprocess import run_in_child_process

ParameterMaps = Mapping[str, Mapping[str, Any]]


class Elastix(ClassicalMethod):
    """elastix' default parameter maps in sequence, with some entries changed.

    Args:
        parameter_maps: Changed entries of each map, such as ``affine`` or ``bspline``, by elastix'
            names; lengths are in voxels.
        resolutions: Levels of each map, each half the next; fewer on small grids.
    """

    def __init__(
        self,
        parameter_maps: ParameterMaps,
        resolutions: int = 3,
        seed: int = 0,
        mask_background: bool = True,
    ) -> None:
        super().__init__(mask_background)
        self.parameter_maps, self.resolutions, self.seed = parameter_maps, resolutions, seed

    def register(self, fixed: Array, moving: Array) -> Array:
        common = {"RandomSeed": self.seed, "WriteResultImage": "false"}
        stages = {name: {**common, **changes} for name, changes in self.parameter_maps.items()}
        masks, count = self.make_masks(fixed, moving), limit_levels(fixed.shape, self.resolutions)
        return run_in_child_process(
            "itk-elastix", register_with_elastix, fixed, moving, masks, stages, count
        )


def register_with_elastix(
    fixed: Array, moving: Array, masks: Masks, stages: ParameterMaps, count: int
) -> Array:
    """Return the displacement (D, *spatial) in voxels; runs in the child process.

    ``stages`` are the changed entries of the parameter maps, ``count`` is the levels of each map.
    """
    import itk

    def image(array: NDArray) -> Any:
        return itk.image_from_array(np.ascontiguousarray(array.T))

    parameters = itk.ParameterObject.New()
    for name, changes in stages.items():
        parameter_map = parameters.GetDefaultParameterMap(name, count)
        for key, value in changes.items():
            values = value if isinstance(value, list) else [value]
            parameter_map[key] = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        parameters.AddParameterMap(parameter_map)
    mask_options = dict(zip(("fixed_mask", "moving_mask"), map(image, masks or []), strict=False))
    with TemporaryDirectory() as folder:
        log = {"log_to_file": True, "output_directory": folder, "log_file_name": "log"}
        try:
            _, transform = itk.elastix_registration_method(
                image(fixed), image(moving), parameter_object=parameters, **mask_options, **log
            )
        except RuntimeError as error:
            log_text = (Path(folder) / "log").read_text("utf-8")
            raise RuntimeError(find_failure_reason(log_text)) from error
        field = itk.transformix_deformation_field(image(moving), transform, output_directory=folder)
        return np.array(field).T


def find_failure_reason(log: str) -> str:
    """Return the last error description in a log of elastix."""
    reasons = [line.split(":", 1)[1].strip() for line in log.splitlines() if "Description:" in line]
    return reasons[-1] if reasons else "elastix does not say why"
