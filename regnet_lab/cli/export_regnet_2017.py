r"""Write artificial deformations in the folder layout of RegNet's first version (2017).

    python -m regnet_lab.cli.export_regnet_2017 IMAGES --output OUT \
        --pattern 'ExpLung{}/Result/FixedImageFullRS1.mha'

For every image, ``OUT/Elastix/<name><F or M>/ExpLung<IN>/Dsmooth0/D<d>/`` gets
``DeformedImage.mha`` (int16), ``DeformedDVF.mha`` (float32 vectors in mm, LPS, on the grid of the
deformed image) and for D2 ``DeformedArea.mha``; d is 0 for low, 1 for medium and 2 for high
frequency.  Existing files are kept.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from regnet_lab import ops
from regnet_lab.data.io.images import Volume, read_volume
from regnet_lab.data.splits import find_subjects
from regnet_lab.data.synthesis.displacements.gaussian import (
    HighFrequency,
    LowFrequency,
    MediumFrequency,
    PeakDisplacement,
)
from regnet_lab.data.synthesis.phantom import sample_normal
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.writers import displacement_to_sitk, write_sitk_image

FREQUENCIES = {"low": LowFrequency, "medium": MediumFrequency, "high": HighFrequency}


def deform_image(
    volume: Volume, generator: PeakDisplacement, rng: np.random.Generator, noise: float
) -> dict[str, sitk.Image]:
    """Deform an image; return the files of the deformation by name without suffix."""
    shape, spacing = volume.array.shape, volume.spacing.tolist()
    peaks = generator.sample_peaks(rng, shape, spacing)
    u = generator.compute_displacement(peaks, shape, spacing)
    image = torch.from_numpy(np.ascontiguousarray(volume.array))[None, None]
    warped = ops.warp(image, u, padding="zeros")[0, 0] + noise * sample_normal(rng, shape)
    array = warped.round().clamp(-32768, 32767).numpy().astype(np.int16)
    files = {
        "DeformedImage": coordinates.array_to_sitk(array, volume.affine),
        "DeformedDVF": displacement_to_sitk(u, volume.affine),
    }
    if isinstance(generator, HighFrequency):
        area = generator.compute_deformed_area(peaks, shape, spacing)[0].numpy().astype(np.uint8)
        files["DeformedArea"] = coordinates.array_to_sitk(area, volume.affine)
    return files


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; options are named and preset as in the first version."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("images", type=Path, help="folder of the images")
    add("--pattern", required=True, help="path of an image below IMAGES, with {} for its number IN")
    add("--output", type=Path, required=True, help="folder to create Elastix in")
    add("--name", default="LungExp3D", help="deformName")
    side = "whether the images are fixed (F) or moving (M) ones"
    add("--side", choices=("F", "M"), default="F", help=side)
    add("--kinds", nargs="+", choices=FREQUENCIES, default=list(FREQUENCIES), help="deformMethod")
    add("--image-suffix", choices=(".mha", ".nii.gz"), default=".mha")
    add("--max-deform", nargs=3, type=float, default=(20, 15, 15), help="largest displacement, mm")
    add("--sigma", nargs=3, type=float, default=(35, 25, 20), help="sigmaB, mm")
    add("--peaks", nargs=3, type=int, default=(100, 100, 100), help="number of peaks, Np")
    add("--border", type=float, default=33, help="distance of peaks from the border, mm")
    add("--distance", type=float, default=40, help="DistanceDeform, mm")
    add("--area", type=float, default=20, help="DistanceArea, mm")
    add("--noise", type=float, default=5, help="sigmaN, the image's unit")
    add("--planar", action="store_true", help="2D mode: no displacement along z")
    add("--seed", type=int, default=0)
    return parser


def make_displacement_generator(arguments: argparse.Namespace, frequency: str) -> PeakDisplacement:
    """Make the displacement generator of a frequency with the settings of the command line."""
    k, more = list(FREQUENCIES).index(frequency), {}
    if frequency == "high":
        more["min_peak_distance"] = arguments.distance
        more["deformed_area_half_width"] = arguments.area
    return FREQUENCIES[frequency](
        max_deform=arguments.max_deform[k],
        sigma=arguments.sigma[k],
        num_peaks=arguments.peaks[k],
        border=arguments.border,
        planar=arguments.planar,
        **more,
    )


def main(command_line: Sequence[str] | None = None) -> None:
    """Write the deformations of every image with every chosen frequency."""
    arguments = make_parser().parse_args(command_line)
    generators = {name: make_displacement_generator(arguments, name) for name in arguments.kinds}
    images = find_subjects(arguments.images, arguments.pattern)
    root = arguments.output / "Elastix" / f"{arguments.name}{arguments.side}"
    for number, (name, path) in enumerate(images.items()):
        volume = None
        for frequency, generator in generators.items():
            d = list(FREQUENCIES).index(frequency)
            folder = root / f"ExpLung{name}" / "Dsmooth0" / f"D{d}"
            if (folder / f"DeformedDVF{arguments.image_suffix}").exists():
                continue
            volume = volume or read_volume(path)
            rng = np.random.default_rng([arguments.seed, number, d])
            files = deform_image(volume, generator, rng, arguments.noise)
            # The field is written last: its file marks a complete deformation.
            for file_name in sorted(files, key="DeformedDVF".__eq__):
                write_sitk_image(folder / f"{file_name}{arguments.image_suffix}", files[file_name])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
