"""Random images, displacement fields and affine fields for tests of operations."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

SKEW_MATRIX = np.array([[-0.2, 0.3, 0.1], [-0.15, -0.1, 0.2], [0.05, -0.25, -0.3]])


def random_image(shape, channels=1, batch=1, sigma=0.0, seed=0):
    """Return Gaussian noise (batch, channels, *shape) smoothed by ``sigma`` voxels, std 1."""
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    smooth = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy(smooth / smooth.std())


def random_field(shape, deviation, sigma=3.0, batch=1, seed=1):
    """Return a smooth random displacement with a standard deviation in voxels."""
    return deviation * random_image(shape, len(shape), batch, sigma, seed)


def make_waves(shape, amplitude, phase):
    """Return a displacement (1, D, *shape) of plane sine waves along the diagonal, in float32."""
    components = torch.arange(len(shape)).view(1, -1, *[1] * len(shape))
    x = torch.from_numpy(np.indices(shape)).float().sum(0)
    return amplitude * torch.sin(x / 4 + phase + components)


def make_affine_field(matrix, shape, center=None):
    """Compute u(x) = matrix (x - center) on a grid by numpy."""
    center = (np.array(shape) - 1) / 2 if center is None else center
    x = np.moveaxis(np.indices(shape, dtype=float), 0, -1) - center
    return torch.from_numpy(np.moveaxis(x @ matrix.T, -1, 0).copy())[None]


def skew_matrix(ndim):
    """Return a skew contraction."""
    return SKEW_MATRIX[:ndim, :ndim]


def find_inside(*fields):
    """Return where x + u(x) stays on the grid for every field."""
    shape = fields[0].shape[2:]
    size = np.array(shape).reshape(-1, *[1] * len(shape)) - 1
    points = [u[0].numpy() + np.indices(shape) for u in fields]
    return torch.from_numpy(np.all([(p >= 0) & (p <= size) for p in points], axis=(0, 1)))


def displacement_between_voxels(shape, seed):
    """Return a displacement that ends well away from the kinks of linear interpolation."""
    rng = np.random.default_rng(seed)
    whole, part = rng.integers(-1, 2, (1, len(shape), *shape)), rng.uniform(0.2, 0.4, shape)
    return torch.from_numpy(whole + part).requires_grad_()
