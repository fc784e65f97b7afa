"""Images, files and pipelines for tests of registration."""

import resource
from contextlib import contextmanager

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.losses import Diffusion, Similarity
from regnet_lab.models import Identity
from regnet_lab.ops.similarity import mean_squares
from regnet_lab.registration.instance_optimization import FieldOptimizer
from regnet_lab.registration.pipeline import RegistrationPipeline
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.linear_alignment import IdentityAlignment
from tests.helpers.geometry import affine_matrix

QUICK_OPTIONS = ("optimizer.steps=[4]", "optimizer.max_voxels=4000", "align=identity", "device=cpu")


def render_texture(grid, seed=0, sigma=2.0, move=None):
    """Sample a smooth texture of world coordinates on a grid.

    ``move`` (4, 4), RAS+, is applied to the coordinates first.
    """
    rng = np.random.default_rng(seed)
    ndim = grid.ndim
    texture = gaussian_filter(rng.normal(size=(48,) * ndim), sigma, mode="constant")
    points = coordinates.voxel_to_world(grid.affine, np.indices(grid.shape).reshape(ndim, -1).T)
    points = coordinates.apply_affine(np.eye(4) if move is None else move, points)[:, :ndim]
    values = map_coordinates(texture, points.T + 24, order=1)
    return (1000 * values / np.abs(texture).max()).reshape(grid.shape).astype(np.float32)


def make_grids(ndim):
    """Return two grids centered on the world's origin, of different size, spacing, orientation."""
    is_3d = ndim == 3

    def center(shape, degrees, spacing):
        affine = affine_matrix(degrees if is_3d else (0, 0, degrees[2]), spacing, (0, 0, 0))
        middle = np.append((np.array(shape) - 1) / 2, [0] * (3 - ndim))
        affine[:3, 3] = -affine[:3, :3] @ middle
        return ImageGrid(shape, affine)

    fixed = center((20, 17, 18)[:ndim], (0, 0, 0), (1.5, 1.7, 1.6))
    return fixed, center((26, 33, 24)[:ndim], (5, -10, 15), (1.2, 1.0, 1.4))


def make_cases(ndim, move=None):
    """Return a fixed and a moving image of one texture on the grids of :func:`make_grids`."""
    fixed, moving = make_grids(ndim)
    return (
        LoadedCase(render_texture(fixed), fixed.affine),
        LoadedCase(render_texture(moving, move=move), moving.affine),
    )


def save_nifti(path, array, affine):
    """Write a NIfTI and return its path."""
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


def make_pipeline(**options):
    """Return a pipeline of instance optimization alone."""
    losses = {
        "similarity": Similarity(mean_squares, weight=50.0),
        "smoothness": Diffusion(weight=0.5),
    }
    return RegistrationPipeline(
        Identity(),
        IdentityAlignment(),
        FieldOptimizer(losses, steps=[30, 30], max_voxels=20000),
        **options,
    )


@contextmanager
def limit_file_size(size):
    """Let no file grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
