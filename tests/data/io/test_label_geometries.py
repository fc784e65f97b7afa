"""Labels read for an image equal those of SimpleITK and nibabel, whatever grid they are stored on.

Grids are drawn at random: flips, permutations, oblique axes, spacings, origins, 2D and 3D.
"""

from contextlib import suppress

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from regnet_lab.data.io.images import read_volume
from regnet_lab.data.io.labels import read_labels, read_mask
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

QUICK, THOROUGH = (
    settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    for count in (20, 200)
)
SUFFIXES = (".nii", ".nrrd", ".mha")
VALUES = np.array([0, 1, 7, 40000, 16777217, 614454277])
TIE = 1e-3  # voxels; nearer to the border between two voxels the result is undetermined


@st.composite
def draw_affine(draw, ndim):
    """An affine with any orientation; in 2D one of the x-y plane, as ITK stores it."""
    degrees = [draw(st.floats(-180, 180)) for _ in range(3)]
    rotation = Rotation.from_euler("zyx", degrees, degrees=True).as_matrix()
    if ndim == 2:
        rotation = Rotation.from_euler("z", degrees[0], degrees=True).as_matrix()
    flips = [draw(st.sampled_from([-1, 1])) for _ in range(ndim)]
    spacing = [draw(st.floats(0.4, 4)) for _ in range(ndim)]
    affine = np.eye(4)
    affine[:3, :3] = rotation
    affine[:3, :ndim] = rotation[:, :ndim] * flips * spacing
    affine[:ndim, 3] = [draw(st.floats(-300, 300)) for _ in range(ndim)]
    return affine


@st.composite
def draw_case(draw):
    """An image grid, labels and the grid on which these are stored."""
    ndim = draw(st.sampled_from([2, 3, 3]))
    shape = tuple(draw(st.integers(4, 9)) for _ in range(ndim))
    affine = draw(draw_affine(ndim))
    kind = draw(st.sampled_from(["reordered", "shifted", "parallel", "oblique"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    if kind == "reordered":
        order = draw(st.permutations(range(ndim)))
        signs = [draw(st.sampled_from([-1, 1])) for _ in range(ndim)]
        return kind, shape, affine, make_labels(rng, shape), np.c_[order, signs]
    if kind == "shifted":
        lengths = [draw(st.integers(4, 12)) for _ in range(ndim)]
        assume(sorted(lengths) != sorted(shape))
        offset = [draw(st.integers(-1, 1)) for _ in range(ndim)]
        shared = np.minimum(shape, np.add(lengths, offset)) - np.maximum(offset, 0)
        assume(shared.prod() > 0.3 * min(np.prod(shape), np.prod(lengths)))
        return kind, shape, affine, make_labels(rng, lengths), np.array(offset)
    other = draw(draw_affine(ndim))
    if kind == "parallel":
        factors = [draw(st.sampled_from([-1, 1])) * draw(st.floats(0.3, 3)) for _ in range(ndim)]
        other[:3, :ndim] = affine[:3, draw(st.permutations(range(ndim)))] * factors
        other[:3, 2] = other[:3, 2] if ndim == 3 else affine[:3, 2]
    lengths = [draw(st.integers(10, 14)) for _ in range(ndim)]
    middle = np.append((np.array(shape) - 1) / 2, [0] * (3 - ndim) + [1])
    other_middle = np.append((np.array(lengths) - 1) / 2, [0] * (3 - ndim) + [0])
    other_middle[:ndim] += [draw(st.floats(-0.9, 0.9)) for _ in range(ndim)]
    other[:, 3] = affine @ middle - other @ other_middle  # grids nearly share their centre
    other[3, 3] = 1
    return kind, shape, affine, make_labels(rng, lengths), other


def make_labels(rng, shape):
    return VALUES[rng.integers(0, len(VALUES), tuple(shape))].astype(np.uint32)


def write(path, array, affine):
    if path.suffix == ".nii":
        nibabel.save(coordinates.array_to_nifti(array, affine), path)
    else:
        sitk.WriteImage(coordinates.array_to_sitk(array, affine), str(path))
    return path


def store(labels, shape, affine, change, kind, path):
    """Write labels that are given on the image's grid, or on another one; return what is expected
    on the image's grid and where it is certain.
    """
    everywhere = np.ones(shape, bool)
    if kind == "reordered":
        padded = np.pad(change, ((0, 3 - len(change)), (0, 0)), constant_values=1)
        padded[len(change) :, 0] = range(len(change), 3)
        image = nibabel.Nifti1Image(labels.reshape(*shape, *[1] * (3 - len(shape))), affine)
        stored = image.as_reoriented(padded)
        write(path, np.asarray(stored.dataobj).reshape(np.array(shape)[np.argsort(change[:, 0])]),
              stored.affine)  # fmt: skip
        return labels, everywhere
    if kind == "shifted":
        moved = affine.copy()
        moved[:3, 3] += affine[:3, : len(change)] @ change
        write(path, labels, moved)
        expected = np.zeros(shape, labels.dtype)
        for index in np.ndindex(*shape):
            place = np.array(index) - change
            if (place >= 0).all() and (place < labels.shape).all():
                expected[index] = labels[tuple(place)]
        return expected, everywhere
    write(path, labels, change)
    source = coordinates.array_to_sitk(labels, change)
    reference = coordinates.array_to_sitk(np.zeros(shape, np.uint8), affine)
    resampled = sitk.Resample(source, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    voxels = np.indices(shape).reshape(len(shape), -1).T
    place = coordinates.world_to_voxel(change, coordinates.voxel_to_world(affine, voxels))
    place = place[:, : len(shape)]
    certain = (np.abs(place - np.floor(place) - 0.5) > TIE).all(1).reshape(shape)
    return sitk.GetArrayFromImage(resampled).T, certain


def check(folder, case, suffix, image_suffix):
    kind, shape, affine, labels, change = case
    path = folder / f"labels{suffix}"
    expected, certain = store(labels, shape, affine, change, kind, path)
    image = write(folder / f"image{image_suffix}", np.ones(shape, np.float32), affine)
    volume = read_volume(image)
    if (expected != 0).mean() < 0.5:  # grids that may hardly overlap
        with suppress(UserError):
            read_labels(path, volume, image)
        reject()
    read = read_labels(path, volume, image)
    assert read.shape == volume.array.shape == shape
    np.testing.assert_array_equal(read[certain], expected[certain])
    assert expected.any()
    np.testing.assert_array_equal(read_mask(path, volume, image)[certain], expected[certain] > 0)


CASES = (draw_case(), st.sampled_from(SUFFIXES), st.sampled_from(SUFFIXES))


@QUICK
@given(*CASES)
def test_labels_on_random_grids_are_those_of_simpleitk_and_nibabel(tmp_path, case, suffix, other):
    check(tmp_path, case, suffix, other)


@pytest.mark.slow
@THOROUGH
@given(*CASES)
def test_labels_on_many_random_grids_are_those_of_simpleitk_and_nibabel(
    tmp_path, case, suffix, other
):
    check(tmp_path, case, suffix, other)
