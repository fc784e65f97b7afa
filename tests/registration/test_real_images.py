"""On real images, the options an image is stored does not change its registration."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.data.io.images import decode_image
from regnet_lab.registration import api
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid, transform_to_field, vectors_from_image

OPTIONS = {"general": (), "optimization alone": ("model=identity",)}
DATA = Path(os.environ.get("REGNET_LAB_DATA", "data"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="set REGNET_LAB_DATA to the real images"),
]


def rotate(image, degrees, finer):
    """Resample an image to a rotated, mirrored and finer grid that contains it, 0 outside."""
    transform = sitk.Euler3DTransform((0, 0, 0), *np.radians(degrees).tolist())
    rotation = np.reshape(transform.GetMatrix(), (3, 3)) @ np.diag([1, -1, 1])
    direction = np.reshape(image.GetDirection(), (3, 3)) @ rotation
    spacing = np.divide(image.GetSpacing(), finer)
    corners = np.array(np.meshgrid(*[(0.0, n - 1.0) for n in image.GetSize()])).reshape(3, -1).T
    points = [image.TransformContinuousIndexToPhysicalPoint(c) for c in corners.tolist()]
    origin = np.array(image.GetOrigin())  # so that slices that stay in their plane stay slices
    along = (points - origin) @ direction / spacing
    low, high = np.floor(along.min(0) + 1e-6), np.ceil(along.max(0) - 1e-6)
    return sitk.Resample(
        image,
        (high - low + 1).astype(int).tolist(),
        sitk.Transform(),
        sitk.sitkLinear,
        (origin + direction @ (low * spacing)).tolist(),
        spacing.tolist(),
        direction.ravel().tolist(),
        0.0,
    )


def read_hippocampi():
    """Read two hippocampi of Learn2Reg 2020."""
    folder = DATA / "learn2reg2020" / "task_04" / "Training" / "img"
    files = sorted(folder.iterdir())
    return [sitk.ReadImage(str(files[n]), sitk.sitkFloat32) for n in (0, 40)]


def read_heart(case="SCD0000101"):
    """Read the end-diastolic and the end-systolic image of a heart."""
    folder = DATA / "cardiac_cine_sunnybrook"
    phases = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))
    volume = decode_image(folder / f"{case}_cine4d.nii.gz")
    frames = [volume.array[64:192, 64:192, :, phases[p]] for p in ("ed", "es")]
    return [coordinates.array_to_sitk(frame.astype(np.float32), volume.affine) for frame in frames]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("side", [0, 1], ids=["fixed", "moving"])
@pytest.mark.parametrize(
    ("images", "degrees", "finer"),
    [(read_hippocampi, (20, -15, 30), 1.1), (read_heart, (0, 0, 20), (1.1, 1.1, 1))],
    ids=["hippocampi", "heart"],
)
def test_a_rotated_mirrored_and_resampled_image_is_registered_in_the_same_way(
    images, degrees, finer, side, options
):
    pair = images()
    stored = list(pair)
    stored[side] = rotate(pair[side], degrees, finer)
    fixed, moving = (ImageGrid.from_sitk(image) for image in pair)
    fields = []
    for images_of_pair in (pair, stored):
        registered = api.register(*images_of_pair, *options, "device=cpu")
        fields.append(vectors_from_image(transform_to_field(registered.transform, fixed)))
    spacing = np.reshape(pair[0].GetSpacing(), (3, 1, 1, 1))
    moved = np.linalg.norm(fields[0] / spacing, axis=0)
    error = np.linalg.norm((fields[1] - fields[0]) / spacing, axis=0)
    x = np.indices(fixed.shape).reshape(3, -1).T
    points = coordinates.apply_affine(fixed.voxel_to_lps, x) + fields[0].reshape(3, -1).T
    indices = coordinates.apply_affine(np.linalg.inv(moving.voxel_to_lps), points)
    inside = ((indices >= 0) & (indices <= np.array(moving.shape) - 1)).all(1).reshape(fixed.shape)
    window = np.zeros_like(inside)  # where the windows of the similarity lie within the image
    window[(slice(3, -3),) * 3] = True
    inside &= window
    print(f"moved {moved[inside].mean():.2f}, error {error[inside].mean():.2f} voxels")
    assert inside.mean() > 0.2
    assert moved[inside].mean() > 0.5
    assert error[inside].mean() < 0.5
