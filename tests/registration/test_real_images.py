"""register.py on real images: how a scan is stored does not change where its anatomy goes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from regnet_lab.data.io.images import decode
from regnet_lab.registration import api
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame, components, flatten

WAYS = {"general": (), "optimisation alone": ("model=identity",)}
DATA = Path(os.environ.get("REGNET_LAB_DATA", "data"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="set REGNET_LAB_DATA to the real images"),
]


def turned(image, degrees, finer):
    """An image resampled onto a turned, mirrored and finer grid that holds all of it, 0 outside;
    in the world everything stays in its place.
    """
    transform = sitk.Euler3DTransform((0, 0, 0), *np.radians(degrees).tolist())
    turn = np.reshape(transform.GetMatrix(), (3, 3)) @ np.diag([1, -1, 1])
    direction = np.reshape(image.GetDirection(), (3, 3)) @ turn
    spacing = np.divide(image.GetSpacing(), finer)
    corners = np.array(np.meshgrid(*[(0.0, n - 1.0) for n in image.GetSize()])).reshape(3, -1).T
    places = [image.TransformContinuousIndexToPhysicalPoint(c) for c in corners.tolist()]
    origin = np.array(image.GetOrigin())  # so that slices that stay in their plane stay slices
    along = (places - origin) @ direction / spacing
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


def hippocampi():
    folder = DATA / "learn2reg2020" / "task_04" / "Training" / "img"
    files = sorted(folder.iterdir())
    return [sitk.ReadImage(str(files[n]), sitk.sitkFloat32) for n in (0, 40)]


def heart(case="SCD0000101"):
    folder = DATA / "cardiac_cine_sunnybrook"
    phases = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))
    volume = decode(folder / f"{case}_cine4d.nii.gz")
    frames = [volume.array[64:192, 64:192, :, phases[p]] for p in ("ed", "es")]
    return [coordinates.to_image(frame.astype(np.float32), volume.affine) for frame in frames]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("side", [0, 1], ids=["fixed", "moving"])
@pytest.mark.parametrize(
    ("images", "degrees", "finer"),
    [(hippocampi, (20, -15, 30), 1.1), (heart, (0, 0, 20), (1.1, 1.1, 1))],
    ids=["hippocampi", "heart"],
)
def test_a_turned_mirrored_and_resampled_image_is_registered_to_the_same_places(
    images, degrees, finer, side, way
):
    pair = images()
    stored = list(pair)
    stored[side] = turned(pair[side], degrees, finer)
    fixed, moving = (Frame.of(image) for image in pair)
    fields = []
    for given in (pair, stored):
        found = api.register(*given, *way, "device=cpu")
        fields.append(components(flatten(found.transform, fixed)))
    spacing = np.reshape(pair[0].GetSpacing(), (3, 1, 1, 1))
    moved = np.linalg.norm(fields[0] / spacing, axis=0)
    missed = np.linalg.norm((fields[1] - fields[0]) / spacing, axis=0)
    x = np.indices(fixed.shape).reshape(3, -1).T
    places = coordinates.transform(fixed.lps, x) + fields[0].reshape(3, -1).T
    there = coordinates.transform(np.linalg.inv(moving.lps), places)
    both = ((there >= 0) & (there <= np.array(moving.shape) - 1)).all(1).reshape(fixed.shape)
    window = np.zeros_like(both)  # a window of the measure round these lies within the image
    window[(slice(3, -3),) * 3] = True
    both &= window
    print(f"moved {moved[both].mean():.2f}, missed {missed[both].mean():.2f} voxels")
    assert both.mean() > 0.2
    assert moved[both].mean() > 0.5
    assert missed[both].mean() < 0.5
