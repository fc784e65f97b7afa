"""Two images of the user's, on any grids of the world, registered by any model and refinement."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.data.io.cases import Scan
from regnet_lab.data.preprocessing.functional import percentile_range, resample, resample_nearest
from regnet_lab.data.preprocessing.padding import continued, seen
from regnet_lab.errors import UserError
from regnet_lab.ops.pairs import registered
from regnet_lab.registration.inference_grid import ModelGrid
from regnet_lab.spatial import Deformation, coordinates
from regnet_lab.spatial.image_grid import Frame
from regnet_lab.spatial.linear_alignment import Sides
from regnet_lab.types import Pair

SLAB = 2**22  # voxels resampled at a time

Align = Callable[[Sides], coordinates.Matrix]
Refine = Callable[[Pair, nn.Module], Tensor]


@dataclass(frozen=True)
class Answer:
    """What was found, and what it was found with.

    Args:
        deformation: Fixed to moving world, and back.
        pair: The pair on the model's grid, the moving image already aligned.
        displacement: (1, D, *grid) on that grid.
        seconds: Wall-clock time by stage.
    """

    deformation: Deformation
    pair: Pair
    displacement: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


def check(name: str, scan: Scan, other: Scan) -> None:
    """Raises UserError for an image that cannot be registered to the other."""
    if scan.image.ndim != other.image.ndim:
        raise UserError(
            f"{name} has {scan.image.ndim} axes and its partner {other.image.ndim}: both must be "
            "2D or both 3D."
        )
    if np.ptp(scan.image) == 0:
        raise UserError(f"{name} is {scan.image.flat[0]:g} everywhere: there is nothing to match.")
    if scan.mask is not None and not scan.mask.any():
        raise UserError(f"The mask of {name} is 0 everywhere; it must leave some voxels.")


def _image(array: NDArray, scan: Scan) -> sitk.Image:
    return coordinates.to_image(array, scan.affine)


def _mask(scan: Scan, known: NDArray[np.bool_]) -> sitk.Image | None:
    """The mask, or else what is no padding, or the box outside which there is only one value."""
    if scan.mask is not None:
        return _image((scan.mask > 0).astype(np.float32), scan)
    if not known.all():
        return _image(known.astype(np.float32), scan)
    different = scan.image != scan.image.flat[0]
    inside = np.zeros(scan.image.shape, np.float32)
    box = []
    for axis in range(scan.image.ndim):
        others = tuple(a for a in range(scan.image.ndim) if a != axis)
        found = np.flatnonzero(different.any(others))
        box.append(slice(found[0], found[-1] + 1))
    inside[tuple(box)] = 1
    return None if inside.all() else _image(inside, scan)


class Registrar:
    """Register any two images.

    Args:
        model: ``model(fixed, moving)`` gives displacement fields, coarse to fine.
        align: Finds a linear map of the fixed to the moving world first.
        refine: Fits the model's answer to the pair; null: the answer as it is.
        grid: Where the model works.
        intensity: Maps values of an image to about [0, 1].
        shared_range: Give it the fixed image as ``like``, for both images.
        device: Where the model works.
    """

    def __init__(
        self,
        model: nn.Module,
        align: Align,
        refine: Refine | None = None,
        grid: ModelGrid | None = None,
        intensity: Callable[..., NDArray[np.float32]] = percentile_range,
        shared_range: bool = False,
        device: str = "cpu",
    ) -> None:
        self.model, self.align, self.refine = model.to(device).eval(), align, refine
        self.grid, self.intensity = grid or ModelGrid(), intensity
        self.shared_range, self.device = shared_range, device

    def __call__(self, fixed: Scan, moving: Scan, name: str = "pair") -> Answer:
        """Raises UserError if the images are of no use, or lie where they cannot meet."""
        check("The fixed image", fixed, moving)
        check("The moving image", moving, fixed)
        clock = [time.perf_counter()]
        known = seen(fixed.image), seen(moving.image)
        masks = [_mask(scan, inside) for scan, inside in zip((fixed, moving), known, strict=True)]
        fixed, moving = self.normalised(fixed, moving, *known)
        images = _image(fixed.image, fixed), _image(moving.image, moving)
        matrix = self.align(Sides(*images, *masks))
        clock.append(time.perf_counter())
        grid = self.grid.place(fixed, known[0])
        aligned = replace(moving, affine=np.linalg.inv(matrix) @ moving.affine)
        pair = self.paired(fixed, aligned, grid, name)
        u = self.answer(pair)
        clock.append(time.perf_counter())
        found = Deformation(
            Frame(fixed.image.shape, fixed.affine),
            Frame(moving.image.shape, moving.affine),
            matrix,
            carried(u.cpu(), grid, Frame(fixed.image.shape, fixed.affine)),
        )
        clock.append(time.perf_counter())
        stages = ("align", "deform", "carry")
        return Answer(found, pair, u, dict(zip(stages, np.diff(clock).tolist(), strict=True)))

    def normalised(
        self, fixed: Scan, moving: Scan, fixed_known: NDArray, moving_known: NDArray
    ) -> tuple[Scan, Scan]:
        """Both by the intensity rule, continued into their padding; their masks say where they
        count: the fixed one in its own mask, both where they were seen.
        """

        def rule(scan: Scan, known: NDArray) -> NDArray:
            like = fixed.image[fixed_known] if self.shared_range else scan.image[known]
            whole = known.all() and not self.shared_range
            array = self.intensity(scan.image, **({} if whole else {"like": like}))
            return continued(array, known)

        counts = fixed_known if fixed.mask is None else fixed_known & (fixed.mask > 0)
        return (
            replace(fixed, image=rule(fixed, fixed_known), mask=counts.astype(np.int16)),
            replace(moving, image=rule(moving, moving_known), mask=moving_known.astype(np.int16)),
        )

    def answer(self, pair: Pair) -> Tensor:
        """The model's field, refined if wanted, on its own grid.

        Raises:
            UserError: The model does not take such images.
        """
        try:
            if self.refine:
                return self.refine(pair, self.model)
            with torch.no_grad():
                return registered(pair, self.model(pair["fixed"], pair["moving"])).displacement
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"The model cannot register images of {pair['fixed'].ndim - 2} axes on "
                f"{tuple(pair['fixed'].shape[2:])} voxels: {reason}"
            ) from error

    def paired(self, fixed: Scan, moving: Scan, grid: Frame, name: str) -> Pair:
        """Both images on the model's grid, through the world, with all that belongs to them."""
        pair: dict = {
            "name": [name],
            "spacing": torch.tensor(coordinates.spacing(grid.affine, grid.ndim)[None]).float(),
        }
        for side, scan in (("fixed", fixed), ("moving", moving)):
            matrix = coordinates.voxel_to_voxel(grid.affine, scan.affine, grid.ndim)
            arrays = {side: resample(scan.image, matrix, grid.shape, "border")}
            for part, array in (("labels", scan.labels), ("mask", scan.mask)):
                if array is not None:
                    arrays[f"{side}_{part}"] = resample_nearest(array, matrix, grid.shape)
            pair |= {key: torch.from_numpy(np.array(a))[None, None] for key, a in arrays.items()}
            if scan.points is not None:
                points = coordinates.transform(np.linalg.inv(matrix), scan.points)
                pair[f"{side}_points"] = torch.from_numpy(points).float()[None]
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in pair.items()}
        return Pair(**moved)  # type: ignore[typeddict-item]


def carried(u: Tensor, grid: Frame, fixed: Frame) -> NDArray[np.float32]:
    """A displacement (1, D, *its grid), in its voxels, on the fixed image's grid in its voxels.

    The field lies over ``grid``'s field of view, however many voxels it has, linear between its
    own and constant beyond the outermost.
    """
    ratio = np.divide(grid.shape, u.shape[2:])
    stretch = np.eye(grid.ndim + 1)
    stretch[:-1, :-1], stretch[:-1, -1] = np.diag(ratio), (ratio - 1) / 2
    affine = grid.affine @ coordinates.embedded(stretch)
    matrix = coordinates.voxel_to_voxel(fixed.affine, affine, grid.ndim)
    back = torch.from_numpy(np.linalg.inv(matrix)[:-1, :-1]).float()
    parts = [
        torch.einsum("ij,bj...->bi...", back, ops.sample(u, points))
        for points in slabs(matrix, fixed.shape)
    ]
    return torch.cat(parts, 2)[0].numpy()


def slabs(
    matrix: coordinates.Matrix, shape: Sequence[int], u: NDArray | None = None
) -> Iterator[Tensor]:
    """Points matrix (x + u(x)) of a grid, (1, D, *slab) at a time along its first axis."""
    thick = max(1, SLAB // math.prod(shape[1:]))
    single = torch.from_numpy(np.asarray(matrix)).float()[None]
    for start in range(0, shape[0], thick):
        stop = min(start + thick, shape[0])
        x = ops.identity_grid((stop - start, *shape[1:]), single)
        x[:, 0] += start
        if u is not None:
            x = x + torch.from_numpy(u[:, start:stop])
        moved = ops.transform_points(single, x.flatten(2).transpose(1, 2))
        yield moved.transpose(1, 2).view(x.shape)


def to_moving(found: Deformation) -> coordinates.Matrix:
    """(D+1, D+1) from voxels x + u(x) of the fixed frame to those of the moving one."""
    seen = np.linalg.inv(found.matrix) @ found.moving.affine
    return coordinates.voxel_to_voxel(found.fixed.affine, seen, found.fixed.ndim)


def warped(array: NDArray, found: Deformation, linear: bool = True) -> NDArray:
    """The moving image, or with ``linear`` false its labels, on the fixed grid in its own dtype.

    Beyond the moving image's field of view lies its smallest value, or background.
    """
    mode = ops.sample if linear else ops.sample_nearest
    source = np.require(array, np.float32 if linear else None, ["C", "W"])
    image = torch.from_numpy(source)[None, None]
    outside = image.min() if linear else torch.zeros((), dtype=image.dtype)
    last = torch.tensor(found.moving.shape).view(1, -1, *[1] * array.ndim) - 0.5
    parts = []
    for points in slabs(to_moving(found), found.fixed.shape, found.u):
        known = ((points >= -0.5) & (points <= last)).all(1, keepdim=True)
        parts.append(torch.where(known, mode(image, points), outside))
    result = torch.cat(parts, 2)[0, 0].numpy()
    return (np.rint(result) if array.dtype.kind in "iu" else result).astype(array.dtype)


def points_in_moving(found: Deformation, points: NDArray) -> NDArray[np.float64]:
    """Fixed voxels (N, D) to moving ones, along the deformation."""
    at = torch.from_numpy(np.asarray(points)).float()[None]
    u = ops.sample_at(torch.from_numpy(found.u)[None], at)[0].numpy()
    return coordinates.transform(to_moving(found), points + u)


def points_in_fixed(found: Deformation, points: NDArray) -> NDArray[np.float64]:
    """Moving voxels (N, D) to fixed ones, along the inverse."""
    back = coordinates.transform(np.linalg.inv(to_moving(found)), points)
    at = torch.from_numpy(back).float()[None]
    return back + ops.sample_at(torch.from_numpy(found.v)[None], at)[0].numpy()


def undeformed(found: Deformation, aligned: bool) -> Deformation:
    """The same images with the linear map alone, or with nothing but their headers."""
    matrix = found.matrix if aligned else np.eye(4)
    return replace(found, matrix=matrix, u=np.zeros_like(found.u))
