"""The registration pipeline: linear alignment, model, instance optimization, result in the world.

The two images may lie on any grids.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.data.preprocessing.functional import (
    normalize_percentiles,
    resample_image,
    resample_labels,
)
from regnet_lab.data.preprocessing.intensity_range import has_few_levels
from regnet_lab.data.preprocessing.padding import (
    extend_valid_region,
    find_padding,
    find_padding_value,
    find_valid_region,
)
from regnet_lab.errors import UserError
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.registration.inference_grid import InferenceGrid, get_grid
from regnet_lab.registration.mapping import resample_displacement
from regnet_lab.spatial import Deformation, coordinates
from regnet_lab.spatial.image_grid import ImageGrid, warn_about_units
from regnet_lab.spatial.linear_alignment import ImagePair
from regnet_lab.spatial.whole_voxels import match_exactly
from regnet_lab.types import Pair

log = logging.getLogger(__name__)

Alignment = Callable[[ImagePair], coordinates.Matrix]
Optimizer = Callable[[Pair, nn.Module], Tensor]


@dataclass(frozen=True)
class RegistrationResult:
    """The result of a registration and the pair it was computed from.

    Args:
        deformation: Map between the worlds of both images, and its inverse.
        pair: The pair on the grid of the model, the moving image linearly aligned.
        displacement: (1, D, *grid) on that grid.
        seconds: Wall-clock time by stage.
    """

    deformation: Deformation
    pair: Pair
    displacement: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


def check_image(name: str, case: LoadedCase, other: LoadedCase) -> None:
    """Raise UserError for an image that cannot be registered to ``other``."""
    if case.image.ndim != other.image.ndim:
        raise UserError(
            f"{name} has {case.image.ndim} axes and the other image {other.image.ndim}: both must "
            "be 2D or both 3D."
        )
    if np.ptp(case.image) == 0:
        raise UserError(f"{name} is {case.image.flat[0]:g} everywhere: there is nothing to match.")
    if case.mask is not None and not case.mask.any():
        raise UserError(f"{name} has a mask that is 0 everywhere; it must contain some voxels.")


def _compute_alignment_mask(case: LoadedCase, valid: NDArray[np.bool_]) -> sitk.Image | None:
    """Return the mask for linear alignment; None if it would be 1 everywhere.

    It is the mask of the image, or else its valid voxels, or else the box outside which the image
    is constant, unless it is constant inside too.
    """
    inside = valid if case.mask is None else case.mask > 0
    if case.mask is None and valid.all():
        inside = np.zeros(valid.shape, bool)
        (box,) = ndimage.find_objects((case.image != case.image.flat[0]).astype(np.uint8))
        inside[box] = True
        if inside.all() or np.ptp(case.image[box]) == 0:
            return None
    return coordinates.array_to_sitk(inside.astype(np.float32), case.affine)


def darken_padding(array: NDArray[np.float32], image: NDArray) -> NDArray[np.float32]:
    """Set the padding of a volume to 0 in its normalized array.

    Padding of any other value, such as 0 or 32767 around the field of view of a CT, would be an
    edge that does not move with the anatomy.  Images of few levels and 2D images, whose bright
    background is often the slide or the page, are returned as they are.
    """
    value = find_padding_value(image) if image.ndim == 3 else None
    if value is None or not array[image == value].any():
        return array
    padding = find_padding(image)
    if padding.all() or has_few_levels(image[~padding]):
        return array
    return np.where(padding, np.float32(0), array)


class RegistrationPipeline:
    """Registration of any two images.

    Args:
        model: ``model(fixed, moving)`` returns displacement fields, coarse to fine.
        alignment: Computes the linear map from fixed to moving world first.
        optimizer: Instance optimization of the model's field; None: no optimization.
        grid: Rule for the grid on which the model works.
        intensity: Maps the values of an image to about [0, 1].
        shared_range: Pass it the fixed image as ``like`` for both images.
    """

    def __init__(
        self,
        model: nn.Module,
        alignment: Alignment,
        optimizer: Optimizer | None = None,
        grid: InferenceGrid | None = None,
        intensity: Callable[..., NDArray[np.float32]] = normalize_percentiles,
        shared_range: bool = False,
        device: str = "cpu",
    ) -> None:
        self.model, self.alignment = model.to(device).eval(), alignment
        self.optimizer, self.grid = optimizer, grid or InferenceGrid()
        self.intensity, self.shared_range, self.device = intensity, shared_range, device

    def __call__(
        self, fixed: LoadedCase, moving: LoadedCase, name: str = "pair"
    ) -> RegistrationResult:
        """Register two images; raise UserError if they are unsuitable or do not overlap."""
        check_image("The fixed image", fixed, moving)
        check_image("The moving image", moving, fixed)
        warn_about_units(get_grid(fixed), get_grid(moving))
        clock = [time.perf_counter()]
        valid = find_valid_region(fixed.image), find_valid_region(moving.image)
        cases = zip((fixed, moving), valid, strict=True)
        masks = [_compute_alignment_mask(case, inside) for case, inside in cases]
        originals = [coordinates.array_to_sitk(c.image, c.affine) for c in (fixed, moving)]
        fixed, moving = self.normalize_intensities(fixed, moving, *valid)
        images = [coordinates.array_to_sitk(case.image, case.affine) for case in (fixed, moving)]
        matrix = self.alignment(ImagePair(*images, *masks))
        exact = match_exactly(originals[0], originals[1], matrix)
        matrix = matrix if exact is None else exact
        clock.append(time.perf_counter())
        grid = self.grid.compute_grid(fixed, valid[0])
        aligned = replace(moving, affine=np.linalg.inv(matrix) @ moving.affine)
        pair = self.build_pair(fixed, aligned, grid, name)
        if exact is None:
            u = self.compute_displacement(pair)
        else:
            log.info("%s: the images are equal after linear alignment; no deformation.", name)
            u = torch.zeros(1, fixed.image.ndim, *pair["fixed"].shape[2:])
        if not torch.isfinite(u).all():
            raise UserError(f"{name}: the displacement of the model is not finite; use another.")
        clock.append(time.perf_counter())
        fixed_grid, moving_grid = get_grid(fixed), get_grid(moving)
        u_fixed = resample_displacement(u.cpu(), grid, fixed_grid)
        deformation = Deformation(fixed_grid, moving_grid, matrix, u_fixed)
        clock.append(time.perf_counter())
        stages = ("align", "deform", "resample")
        seconds = dict(zip(stages, np.diff(clock).tolist(), strict=True))
        return RegistrationResult(deformation, pair, u, seconds)

    def normalize_intensities(
        self, fixed: LoadedCase, moving: LoadedCase, fixed_valid: NDArray, moving_valid: NDArray
    ) -> tuple[LoadedCase, LoadedCase]:
        """Map both images to about [0, 1] and extrapolate them into their padding.

        Their masks then contain the valid voxels; that of the fixed image only within its own mask.
        """

        def normalize(case: LoadedCase, valid: NDArray) -> NDArray:
            source, inside = (fixed, fixed_valid) if self.shared_range else (case, valid)
            whole = inside.all() and source is case
            like = {} if whole else {"like": np.where(inside, source.image, np.nan)}
            array = darken_padding(self.intensity(case.image, **like), case.image)
            return extend_valid_region(array, valid)

        mask = fixed_valid if fixed.mask is None else fixed_valid & (fixed.mask > 0)
        images = normalize(fixed, fixed_valid), normalize(moving, moving_valid)
        return (
            replace(fixed, image=images[0], mask=mask.astype(np.int16)),
            replace(moving, image=images[1], mask=moving_valid.astype(np.int16)),
        )

    def compute_displacement(self, pair: Pair) -> Tensor:
        """Compute the field of the model, optimized if required, on its own grid."""
        try:
            if self.optimizer:
                return self.optimizer(pair, self.model)
            with torch.no_grad():
                fields = self.model(pair["fixed"], pair["moving"])
                return apply_displacement(pair, fields).displacement
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"The model cannot register images of {pair['fixed'].ndim - 2} axes on "
                f"{tuple(pair['fixed'].shape[2:])} voxels: {reason}"
            ) from error

    def build_pair(self, fixed: LoadedCase, moving: LoadedCase, grid: ImageGrid, name: str) -> Pair:
        """Resample both images, labels, masks and landmarks to the grid of the model."""
        parts: dict[str, Tensor] = {"spacing": torch.tensor(grid.spacing[None]).float()}
        for side, case in (("fixed", fixed), ("moving", moving)):
            matrix = coordinates.voxel_to_voxel_matrix(grid.affine, case.affine, grid.ndim)
            arrays = {side: resample_image(case.image, matrix, grid.shape, "border")}
            for part, array in (("labels", case.labels), ("mask", case.mask)):
                if array is not None:
                    arrays[f"{side}_{part}"] = resample_labels(array, matrix, grid.shape)
            parts |= {key: torch.from_numpy(np.array(a))[None, None] for key, a in arrays.items()}
            if case.points is not None:
                points = coordinates.apply_affine(np.linalg.inv(matrix), case.points)
                parts[f"{side}_points"] = torch.from_numpy(points).float()[None]
        tensors = {key: part.to(self.device) for key, part in parts.items()}
        return cast(Pair, {"name": [name], **tensors})
