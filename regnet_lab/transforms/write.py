"""Transforms out: a deformation and its inverse in the files of other programs."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from regnet_lab import world
from regnet_lab.errors import UserError
from regnet_lab.transforms import fsl, l2r
from regnet_lab.transforms.deformation import Deformation
from regnet_lab.transforms.frame import Frame, components, flatten, matrix_transform


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
    image = world.to_nifti(flat.astype(np.float32), frame.affine)
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
        l2r.write(folder / f"l2r_displacement{suffix}", there, found.moving)
        l2r.write(folder / f"l2r_inverse_displacement{suffix}", back, found.fixed)


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
