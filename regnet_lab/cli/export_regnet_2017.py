"""Artificial deformations on disk, in the folders RegNet's first version reads and writes.

``python -m regnet_lab.cli.export_regnet_2017 <images> --pattern 'ExpLung{}/Result/FixedImageFullRS1.mha' --out
<folder>`` writes, for every image, ``<folder>/Elastix/<name><F or M>/ExpLung<IN>/Dsmooth0/D<d>/``
with ``DeformedImage.mha`` (int16), ``DeformedDVF.mha`` (float32 vectors in mm, x y z to the left,
the back and the head, on the deformed image's grid) and for D2 ``DeformedArea.mha``; d is 0 for
low, 1 for medium and 2 for high frequency.  What is there already is left alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from regnet_lab import ops
from regnet_lab.data.io.images import Volume, read_volume
from regnet_lab.data.splits import find_subjects
from regnet_lab.data.synthesis.displacements.gaussian import (
    HighFrequency,
    LowFrequency,
    MediumFrequency,
    PeakField,
)
from regnet_lab.data.synthesis.phantom import normal
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.writers import displacement_image, write_atomically

KINDS = {"low": LowFrequency, "medium": MediumFrequency, "high": HighFrequency}


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
        "DeformedImage": coordinates.to_image(array, volume.affine),
        "DeformedDVF": displacement_image(u, volume.affine),
    }
    if isinstance(fields, HighFrequency):
        area = fields.deformed_area(peaks, shape, spacing)[0].numpy().astype(np.uint8)
        files["DeformedArea"] = coordinates.to_image(area, volume.affine)
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
                write_atomically(folder / f"{title}{given.ending}", files[title])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
