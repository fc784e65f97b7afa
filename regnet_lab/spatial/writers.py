"""Transforms out: a deformation and its inverse in the files of other programs."""

import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates, fsl, learn2reg
from regnet_lab.spatial.deformation import Deformation
from regnet_lab.spatial.image_grid import Frame, components, flatten, matrix_transform
from regnet_lab.utils.atomic_io import write_bytes


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing goes to the process's stderr, where HDF5 prints pages about an error that it raises
    as well.
    """
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def write_transform(path: Path, transform: sitk.Transform) -> None:
    """A transform as ITK writes it, by the name; raises RuntimeError if that fails."""
    with quiet():
        sitk.WriteTransform(transform, str(path))


def _itk(folder: Path, found: Deformation) -> None:
    write_transform(folder / "Composite.h5", found.forward)
    write_transform(folder / "InverseComposite.h5", found.backward)
    write_transform(folder / "affine.tfm", matrix_transform(found.matrix, found.fixed.ndim))


def _write_field(path: Path, vectors: sitk.Image) -> None:
    """A field in mm LPS+ as ITK and ANTs want it: 5-D, intent 1007, float32."""
    frame, listed = Frame.of(vectors), np.moveaxis(components(vectors), 0, -1)
    flat = listed.reshape(*frame.shape, *[1] * (4 - frame.ndim), frame.ndim)
    image = coordinates.to_nifti(flat.astype(np.float32), frame.affine)
    image.header.set_intent("vector")
    nibabel.save(image, path)  # which says when the disk is full; ITK's writer does not


def _field(folder: Path, found: Deformation) -> None:
    for name, transform, frame in (
        ("displacement", found.forward, found.fixed),
        ("inverse_displacement", found.backward, found.moving),
    ):
        _write_field(folder / f"{name}.nii.gz", flatten(transform, frame))


def _ants(folder: Path, found: Deformation) -> None:
    for name, u in (("1Warp", found.u), ("1InverseWarp", found.v)):
        _write_field(folder / f"{name}.nii.gz", found.fixed.millimetres(u))
    linear = matrix_transform(found.matrix, found.fixed.ndim)
    write_transform(folder / "0GenericAffine.mat", linear)


def _fsl(folder: Path, found: Deformation) -> None:
    there, back = flatten(found.forward, found.fixed), flatten(found.backward, found.moving)
    fsl.write_warp(folder / "fsl_warp.nii.gz", there, found.moving)
    fsl.write_warp(folder / "fsl_inverse_warp.nii.gz", back, found.fixed)
    frames = (found.fixed, found.moving)
    fsl.write_matrix(folder / "fsl_affine.mat", np.asarray(found.matrix), *frames)


def _l2r(folder: Path, found: Deformation) -> None:
    there, back = flatten(found.forward, found.fixed), flatten(found.backward, found.moving)
    for suffix in (".npz", ".nii.gz"):
        learn2reg.write(folder / f"l2r_displacement{suffix}", there, found.moving)
        learn2reg.write(folder / f"l2r_inverse_displacement{suffix}", back, found.fixed)


FORMATS: dict[str, Callable[[Path, Deformation], None]] = {
    "itk": _itk,
    "field": _field,
    "ants": _ants,
    "fsl": _fsl,
    "l2r": _l2r,
}
DIMENSIONS = {"fsl": (3,)}


def check_formats(formats: Iterable[str], ndim: int) -> None:
    """Raises UserError for a format that is not one of ``FORMATS`` or not for so many axes."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"formats: '{name}' must be one of {', '.join(FORMATS)}.")
        if ndim not in DIMENSIONS.get(name, (2, 3)):
            raise UserError(f"formats: '{name}' is for 3D images only; leave it out.")


def write_transforms(folder: Path, found: Deformation, formats: Iterable[str]) -> None:
    """Write a deformation and its inverse.

    Args:
        folder: Where; it must exist.
        found: The deformation.
        formats: ``itk``: ``Composite.h5`` and ``InverseComposite.h5`` (displacement, then affine,
            and back), and the affine part as ``affine.tfm``.  ``field``: everything in one field
            for each way, 5-D NIfTI with intent 1007, mm LPS+.  ``ants``: ``1Warp.nii.gz`` and
            ``1InverseWarp.nii.gz`` on the fixed grid, without the affine part, and
            ``0GenericAffine.mat``.  ``fsl``: FNIRT's relative warps and FLIRT's matrix.  ``l2r``:
            Learn2Reg's ``.npz`` and ``.nii.gz``.

    Raises:
        UserError: A format is unknown, or cannot hold a transform of 2D images.
    """
    formats = list(formats)
    check_formats(formats, found.fixed.ndim)
    for name in formats:
        FORMATS[name](folder, found)


def write_volume(path: str | Path, array: NDArray, affine: coordinates.Matrix) -> None:
    """Write ``.nii.gz`` as :func:`write_bytes` does.

    Args:
        path: The file.
        array: (x, y), (x, y, z) or (x, y, z, channels); integers keep their type.
        affine: (4, 4) to millimetres, RAS+.
    """
    whole = coordinates.to_nifti(array, affine).to_bytes()
    write_bytes(path, gzip.compress(whole, compresslevel=6, mtime=0))


def displacement_image(u: Tensor, affine: coordinates.Matrix) -> sitk.Image:
    """A displacement (1, D, *shape) in voxels as ITK's in mm, LPS: direction spacing u."""
    ndim = u.shape[1]
    linear = (coordinates.RAS_TO_LPS @ affine)[:ndim, :ndim]
    millimetres = np.einsum("ij,j...->...i", linear, u[0].double().numpy()).astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(millimetres.swapaxes(0, ndim - 1)), True)
    image.CopyInformation(coordinates.to_image(np.zeros(u.shape[2:], np.uint8), affine))
    return image


def write_atomically(path: Path, image: sitk.Image) -> None:
    """Write beside the path, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"part-{path.name}")
    sitk.WriteImage(image, str(aside), True)
    os.replace(aside, path)
