"""Artificial deformations on disk, in the folders RegNet's first version reads and writes.

``python -m regnet_lab.data.export <images> --pattern 'ExpLung{}/Result/FixedImageFullRS1.mha' --out
<folder>`` writes, for every image, ``<folder>/Elastix/<name><F or M>/ExpLung<IN>/Dsmooth0/D<d>/``
with ``DeformedImage.mha`` (int16), ``DeformedDVF.mha`` (float32 vectors in mm, x y z to the left,
the back and the head, on the deformed image's grid) and for D2 ``DeformedArea.mha``; d is 0 for
low, 1 for medium and 2 for high frequency.  What is there already is left alone.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from torch import Tensor

from regnet_lab import ops, world
from regnet_lab.data.dvf import HighFrequency, LowFrequency, MediumFrequency, PeakField
from regnet_lab.data.io import Volume, read_volume
from regnet_lab.data.phantom import normal
from regnet_lab.data.subjects import find_subjects
from regnet_lab.errors import UserError

KINDS = {"low": LowFrequency, "medium": MediumFrequency, "high": HighFrequency}


def vector_image(u: Tensor, affine: world.Matrix) -> sitk.Image:
    """A displacement (1, D, *shape) in voxels as ITK's in mm, LPS: direction spacing u."""
    ndim = u.shape[1]
    linear = (world.RAS_TO_LPS @ affine)[:ndim, :ndim]
    millimetres = np.einsum("ij,j...->...i", linear, u[0].double().numpy()).astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(millimetres.swapaxes(0, ndim - 1)), True)
    image.CopyInformation(world.to_image(np.zeros(u.shape[2:], np.uint8), affine))
    return image


def write(path: Path, image: sitk.Image) -> None:
    """Write beside the path, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"part-{path.name}")
    sitk.WriteImage(image, str(aside), True)
    os.replace(aside, path)


def deform(
    volume: Volume, fields: PeakField, rng: np.random.Generator, noise: float
) -> dict[str, sitk.Image]:
    """The published files of one deformation, by name without ending."""
    shape, spacing = volume.array.shape, volume.spacing.tolist()
    peaks = fields.draw(rng, shape, spacing)
    u = fields.field(peaks, shape, spacing)
    image = torch.from_numpy(np.ascontiguousarray(volume.array))[None, None]
    seen = ops.warp(image, u, padding="zeros")[0, 0] + noise * normal(rng, shape)
    array = seen.round().clamp(-32768, 32767).numpy().astype(np.int16)
    files = {
        "DeformedImage": world.to_image(array, volume.affine),
        "DeformedDVF": vector_image(u, volume.affine),
    }
    if isinstance(fields, HighFrequency):
        area = fields.deformed_area(peaks, shape, spacing)[0].numpy().astype(np.uint8)
        files["DeformedArea"] = world.to_image(area, volume.affine)
    return files


def parser() -> argparse.ArgumentParser:
    """Every setting of the first version, by its published default."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("images", type=Path, help="folder of the images")
    made.add_argument("--pattern", required=True, help="path of an image below it, {} being IN")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--name", default="LungExp3D", help="deformName")
    made.add_argument("--side", choices=("F", "M"), default="F", help="made of fixed or moving")
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="deformMethod")
    made.add_argument("--ending", choices=(".mha", ".nii.gz"), default=".mha")
    made.add_argument("--max-deform", nargs=3, type=float, default=(20, 15, 15), help="mm")
    made.add_argument("--sigma", nargs=3, type=float, default=(35, 25, 20), help="sigmaB, mm")
    made.add_argument("--peaks", nargs=3, type=int, default=(100, 100, 100), help="Np")
    made.add_argument("--border", type=float, default=33, help="mm")
    made.add_argument("--distance", type=float, default=40, help="DistanceDeform, mm")
    made.add_argument("--area", type=float, default=20, help="DistanceArea, mm")
    made.add_argument("--noise", type=float, default=5, help="sigmaN, the image's unit")
    made.add_argument("--planar", action="store_true", help="2D mode: no movement along z")
    made.add_argument("--seed", type=int, default=0)
    return made


def generator(given: argparse.Namespace, kind: str) -> PeakField:
    """The generator of a frequency with the settings given."""
    k = list(KINDS).index(kind)
    more = {"distance": given.distance, "area": given.area} if kind == "high" else {}
    return KINDS[kind](
        max_deform=given.max_deform[k],
        sigma=given.sigma[k],
        peaks=given.peaks[k],
        border=given.border,
        planar=given.planar,
        **more,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Deform every image in every way that is asked for.

    Raises:
        UserError: There are no images, or a setting does not fit them.
    """
    given = parser().parse_args(arguments)
    fields = {kind: generator(given, kind) for kind in given.kinds}
    for number, (name, path) in enumerate(find_subjects(given.images, given.pattern).items()):
        case = given.out / "Elastix" / f"{given.name}{given.side}" / f"ExpLung{name}" / "Dsmooth0"
        volume = None
        for kind, maker in fields.items():
            d = list(KINDS).index(kind)
            folder = case / f"D{d}"
            if (folder / f"DeformedDVF{given.ending}").exists():
                continue
            volume = volume or read_volume(path)
            rng = np.random.default_rng([given.seed, number, d])
            files = deform(volume, maker, rng, given.noise)
            for title in sorted(
                files, key="DeformedDVF".__eq__
            ):  # the field last: then all is there
                write(folder / f"{title}{given.ending}", files[title])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
