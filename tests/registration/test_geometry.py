"""Points, warped images and written transforms agree in SimpleITK for files of any geometry."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from regnet_lab.data.io.images import decode_image
from regnet_lab.registration.mapping import map_points_to_moving, warp_array
from regnet_lab.spatial import Deformation, coordinates, write_transforms
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.writers import write_image
from tests.helpers import header_files
from tests.helpers.geometry import rotation
from tests.helpers.header_files import GRADIENT, Geometry, geometries

pytestmark = pytest.mark.usefixtures("silence_itk")
MAX_ERROR = 0.01  # voxels
INNER_MATRIX = np.array([[1.0, 0.04, 0], [-0.03, 1.05, 0.02], [0.01, 0, 0.94]])


def move_origin(matrix, center):
    """Return the map x -> center + matrix (x - center), (4, 4)."""
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = matrix, center - matrix @ center
    return result


def find_center(image):
    """Return the center of a SimpleITK image in RAS+ mm."""
    middle = [(size - 1) / 2 for size in image.GetSize()]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(middle)) * [-1, -1, 1]


def make_known_transform(fixed, moving):
    """Return two affine maps, RAS+ mm: within the fixed world, and from there to the moving one.

    The second turns and stretches the fixed image to lie about on the moving one.
    """
    centers = find_center(fixed), find_center(moving)
    axes = [coordinates.affine_from_sitk(image)[:3, :3] for image in (fixed, moving)]
    stretch = 0.8 * (np.array(moving.GetSize()) - 1) / (np.array(fixed.GetSize()) - 1)
    outer = np.eye(4)
    outer[:3, :3] = axes[1] @ (rotation(4, -6, 9) * stretch) @ np.linalg.inv(axes[0])
    outer[:3, 3] = centers[1] - outer[:3, :3] @ centers[0]
    return move_origin(INNER_MATRIX, centers[0]), outer


def compute_expected_indices(fixed, moving, matrix):
    """Compute the indices (N, 3) in the moving image of all fixed voxels, by SimpleITK alone."""
    voxels = np.argwhere(np.ones(fixed.GetSize())).tolist()
    lps = np.array([fixed.TransformIndexToPhysicalPoint(voxel) for voxel in voxels])
    points = coordinates.apply_affine(coordinates.flip_matrix(matrix), lps).tolist()
    return np.array([moving.TransformPhysicalPointToContinuousIndex(p) for p in points])


def read_written_transform(folder, fmt):
    """Read a transform as its users do."""
    if fmt == "itk":
        return sitk.ReadTransform(str(folder / "Composite.h5"))
    field = sitk.ReadImage(str(folder / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    return sitk.DisplacementFieldTransform(field)


def check_pair(folder: Path, fixed: Geometry, moving: Geometry, fmt: str, suffix: str) -> None:
    """Check all results of one known transform between two files, in voxels."""
    paths = [
        header_files.write_image(folder, name, geometry)
        for name, geometry in (("fixed", fixed), ("moving", moving))
    ]
    in_itk = [sitk.ReadImage(str(path)) for path in paths]
    volumes = [decode_image(path) for path in paths]
    grids = [ImageGrid(volume.array.shape, volume.affine) for volume in volumes]
    inner, outer = make_known_transform(*in_itk)
    voxels = np.argwhere(np.ones(fixed.shape))
    to_voxels = np.linalg.inv(grids[0].affine) @ inner @ grids[0].affine
    u = (coordinates.apply_affine(to_voxels, voxels) - voxels).T.reshape(3, *fixed.shape)
    deformation = Deformation(*grids, outer, u.astype(np.float32))
    expected = compute_expected_indices(*in_itk, outer @ inner)
    last = np.array(moving.shape) - 1
    inside = ((expected > 0.01) & (expected < last - 0.01)).all(1)
    assert inside.sum() > 10

    points = map_points_to_moving(deformation, voxels.astype(float))
    assert np.abs(points - expected).max() < MAX_ERROR

    values = expected @ GRADIENT
    warped = warp_array(volumes[1].array, deformation)
    assert np.abs(warped.ravel() - values)[inside].max() < MAX_ERROR

    write_transforms(folder, deformation, [fmt])
    transform = read_written_transform(folder, fmt)
    resampled = sitk.Resample(in_itk[1], in_itk[0], transform, sitk.sitkLinear)
    assert np.abs(sitk.GetArrayFromImage(resampled).T.ravel() - values)[inside].max() < MAX_ERROR

    write_image(folder / f"warped{suffix}", warped, grids[0].affine)
    written = sitk.ReadImage(str(folder / f"warped{suffix}"))
    for corner in ((0, 0, 0), fixed.shape, (0, 0, fixed.shape[2]), (fixed.shape[0], 0, 0)):
        place = in_itk[0].TransformContinuousIndexToPhysicalPoint([float(n) for n in corner])
        found = written.TransformPhysicalPointToContinuousIndex(place)
        assert np.abs(np.array(found) - corner).max() < MAX_ERROR


@st.composite
def cases(draw):
    """Draw two files, the format of the transform and the suffix of the warped image."""
    fmt = draw(st.sampled_from(("itk", "field")))
    fixed, moving = draw(geometries()), draw(geometries())
    if fixed.is_sheared or moving.is_sheared:
        fmt = "itk"
    if fmt == "field":  # whose float32 does not hold metres beside micrometres
        fixed, moving = replace(fixed, unit=2), replace(moving, unit=2)
    suffixes = (".nrrd", ".mha") if fixed.is_sheared else (".nii.gz", ".nrrd", ".mha")
    return fixed, moving, fmt, draw(st.sampled_from(suffixes))


def check_drawn(case):
    """Check a drawn case in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        check_pair(Path(folder), *case)


OPTIONS = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],
}


@settings(max_examples=20, **OPTIONS)
@given(case=cases())
def test_points_images_and_transforms_agree(case):
    check_drawn(case)


@pytest.mark.slow
@settings(max_examples=200, **OPTIONS)
@given(case=cases())
def test_points_images_and_transforms_agree_for_many_geometries(case):
    check_drawn(case)
