"""Writing of images, displacement fields and transforms in the formats of other programs."""

import gzip
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates, fsl, learn2reg, nifti
from regnet_lab.spatial.deformation import Deformation
from regnet_lab.spatial.image_grid import (
    ImageGrid,
    matrix_to_transform,
    transform_to_field,
    vectors_from_image,
)
from regnet_lab.utils.atomic_io import write_bytes


@contextmanager
def raise_itk_errors_as_oserror() -> Iterator[None]:
    """Raise SimpleITK's RuntimeError as OSError with its last line.

    Standard error of the process is silenced, because HDF5 also prints its errors there.
    """
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OSError(re.sub(r"^ITK ERROR: |\(0x[0-9a-f]+\)", "", reason)) from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def write_itk_transform(path: Path, transform: sitk.Transform) -> None:
    """Write a transform in ITK's format for the file name; raise OSError if that fails."""
    with raise_itk_errors_as_oserror():
        sitk.WriteTransform(transform, str(path))


def write_image(path: Path, array: NDArray, affine: coordinates.Matrix) -> None:
    """Write an image of any dtype in the format of the file name; raise OSError if that fails."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(coordinates.array_to_nifti(array, affine), path)
    else:
        with raise_itk_errors_as_oserror():
            sitk.WriteImage(coordinates.array_to_sitk(array, affine), str(path), True)


def _compute_fields(deformation: Deformation) -> tuple[sitk.Image, sitk.Image]:
    """Compute the forward field on the fixed grid and the backward field on the moving grid."""
    return (
        transform_to_field(deformation.forward, deformation.fixed),
        transform_to_field(deformation.backward, deformation.moving),
    )


def _write_itk(folder: Path, deformation: Deformation) -> None:
    """Write ITK composites, displacement then affine, and the affine part alone."""
    write_itk_transform(folder / "Composite.h5", deformation.forward)
    write_itk_transform(folder / "InverseComposite.h5", deformation.backward)
    affine = matrix_to_transform(deformation.matrix, deformation.fixed.ndim)
    write_itk_transform(folder / "affine.tfm", affine)


def _write_field(path: Path, vectors: sitk.Image) -> None:
    """Write a field in LPS+ mm as ITK and ANTs do: 5D NIfTI, intent 1007, float32."""
    grid, array = ImageGrid.from_sitk(vectors), np.moveaxis(vectors_from_image(vectors), 0, -1)
    array = array.reshape(*grid.shape, *[1] * (4 - grid.ndim), grid.ndim)
    image = coordinates.array_to_nifti(array.astype(np.float32), grid.affine)
    image.header.set_intent("vector")
    nibabel.save(image, path)  # raises on a full disk, which ITK's writer does not


def _write_fields(folder: Path, deformation: Deformation) -> None:
    """Write the whole map in one field for each direction."""
    forward, backward = _compute_fields(deformation)
    _write_field(folder / "displacement.nii.gz", forward)
    _write_field(folder / "inverse_displacement.nii.gz", backward)


def _write_ants(folder: Path, deformation: Deformation) -> None:
    """Write the warps of ANTs without the affine part, and the affine part."""
    for name, u in (("1Warp", deformation.u), ("1InverseWarp", deformation.inverse_u)):
        _write_field(folder / f"{name}.nii.gz", deformation.fixed.displacement_to_mm(u))
    affine = matrix_to_transform(deformation.matrix, deformation.fixed.ndim)
    write_itk_transform(folder / "0GenericAffine.mat", affine)


def _write_fsl(folder: Path, deformation: Deformation) -> None:
    """Write FNIRT's relative warps and FLIRT's matrix."""
    forward, backward = _compute_fields(deformation)
    fixed, moving = deformation.fixed, deformation.moving
    fsl.write_warp(folder / "fsl_warp.nii.gz", forward, fixed, moving)
    fsl.write_warp(folder / "fsl_inverse_warp.nii.gz", backward, moving, fixed)
    fsl.write_matrix(folder / "fsl_affine.mat", np.asarray(deformation.matrix), fixed, moving)


def _write_learn2reg(folder: Path, deformation: Deformation) -> None:
    """Write the displacements of Learn2Reg."""
    forward, backward = _compute_fields(deformation)
    fixed, moving = deformation.fixed, deformation.moving
    for suffix in (".npz", ".nii.gz"):
        learn2reg.write_displacement(folder / f"l2r_displacement{suffix}", forward, moving)
        learn2reg.write_displacement(folder / f"l2r_inverse_displacement{suffix}", backward, fixed)


TRANSFORM_WRITERS: dict[str, Callable[[Path, Deformation], None]] = {
    "itk": _write_itk,
    "field": _write_fields,
    "ants": _write_ants,
    "fsl": _write_fsl,
    "learn2reg": _write_learn2reg,
}
ORTHOGONAL_FORMATS = ("field", "ants")  # NIfTI, which ITK reads with perpendicular axes only


def _check_format(name: str, side: str, grid: ImageGrid) -> None:
    """Raise UserError if a transform format cannot describe an image."""
    if name == "fsl" and grid.ndim != 3:
        raise UserError(f"transform_formats: '{name}' is for 3D images only; remove it.")
    if name == "fsl" and grid.header is not None and nifti.is_mirrored(grid.header):
        raise UserError(
            f"transform_formats: FSL cannot read the {side} image, because its qform and sform "
            "mirror each other; repair its header or remove 'fsl'."
        )
    if name in ORTHOGONAL_FORMATS and not coordinates.is_orthogonal(grid.affine, grid.ndim):
        raise UserError(
            f"transform_formats: '{name}' cannot describe the {side} image, whose axes are not "
            "perpendicular; remove it ('itk' can), or resample the image to perpendicular axes."
        )


def check_formats(
    formats: Iterable[str], fixed: ImageGrid | None = None, moving: ImageGrid | None = None
) -> None:
    """Raise UserError for a transform format that is unknown or cannot describe an image."""
    for name in formats:
        if name not in TRANSFORM_WRITERS:
            raise UserError(
                f"transform_formats: '{name}' must be one of {', '.join(TRANSFORM_WRITERS)}."
            )
        for side, grid in (("fixed", fixed), ("moving", moving)):
            if grid is not None:
                _check_format(name, side, grid)


def write_transforms(folder: Path, deformation: Deformation, formats: Iterable[str]) -> None:
    """Write a deformation and its inverse into an existing folder.

    ``itk``: ``Composite.h5`` and ``InverseComposite.h5`` (displacement, then affine, and the
    inverse), and the affine part as ``affine.tfm``.  ``field``: the whole map in one field for each
    direction, 5D NIfTI with intent 1007, LPS+ mm.  ``ants``: ``1Warp.nii.gz`` and
    ``1InverseWarp.nii.gz`` on the fixed grid, without the affine part, and ``0GenericAffine.mat``.
    ``fsl``: FNIRT's relative warps and FLIRT's matrix.  ``learn2reg``: ``.npz`` and ``.nii.gz``.
    """
    formats = list(formats)
    check_formats(formats, deformation.fixed, deformation.moving)
    for name in formats:
        TRANSFORM_WRITERS[name](folder, deformation)


def write_nifti(path: str | Path, array: NDArray, affine: coordinates.Matrix) -> None:
    """Write ``.nii.gz`` atomically, as :func:`write_bytes` does, with reproducible bytes."""
    content = coordinates.array_to_nifti(array, affine).to_bytes()
    write_bytes(path, gzip.compress(content, compresslevel=6, mtime=0))


def displacement_to_sitk(u: Tensor, affine: coordinates.Matrix) -> sitk.Image:
    """Convert a displacement (1, D, *shape) in voxels to a SimpleITK field in LPS+ mm."""
    ndim = u.shape[1]
    linear = (coordinates.RAS_TO_LPS @ affine)[:ndim, :ndim]
    vectors = np.einsum("ij,j...->...i", linear, u[0].double().numpy()).astype(np.float32)
    return ImageGrid(tuple(u.shape[2:]), affine).to_vector_image(np.moveaxis(vectors, -1, 0))


def write_sitk_image(path: Path, image: sitk.Image) -> None:
    """Write a SimpleITK image to a temporary file and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"part-{path.name}")
    sitk.WriteImage(image, str(temporary), True)
    os.replace(temporary, path)
