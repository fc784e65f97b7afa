"""Random head-like phantoms in 2D and 3D, defined as functions of continuous coordinates.

A phantom is a stack of structures: skin, a dark skull with fluid in the sulci, a folded cortex,
white matter, and bilateral organs inside it (compact, sheet-like and tubular). An image and its
deformed partner are both rendered from the function, so neither is blurred by resampling.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops

NUM_LAYERS = 4  # skin, skull, cortex, white matter; the labels above are organs
# of labels 1, 2, ...; repeated
LABEL_INTENSITIES = (0.62, 0.14, 0.46, 0.72, 0.22, 0.52, 0.36, 0.92)
ORGAN_RADII = (  # of successive organs along the first, second and further axes; repeated
    (0.12, 0.22, 0.20),
    (0.17, 0.18, 0.18),
    (0.07, 0.28, 0.28),
    (0.065, 0.26, 0.075),
)


def sample_normal(rng: Generator, shape: Sequence[int]) -> Tensor:
    """Sample standard normal values of a shape, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def sample_uniform(rng: Generator, size: int | tuple[int, ...]) -> Tensor:
    """Sample uniform values between -1 and 1 of a size, float32."""
    return torch.from_numpy(rng.uniform(-1, 1, size)).float()


def sample_smooth_noise(
    rng: Generator, channels: int, width: float, shape: Sequence[int]
) -> Tensor:
    """Sample Gaussian random fields: white noise smoothed by a Gaussian, as a sum of cosines.

    f(x) = sum_k a_k prod_i c_i cos(pi k_i x_i), a_k ~ N(0, exp(-(pi |k| width)^2)), x in [0, 1]^D,
    c_i = 1 where k_i = 0 and sqrt(2) elsewhere; two points at a distance d correlate by
    exp(-(d / (2 width))^2).

    Args:
        rng: Source of random numbers; the number of draws does not depend on the grid's size.
        channels: Number of independent fields.
        width: Standard deviation of the Gaussian, as a fraction of the field of view.
        shape: Grid shape of the fields.

    Returns:
        (1, channels, *shape), each channel with zero mean and unit variance.
    """
    frequency = torch.arange(1 + math.ceil(3 / (math.pi * width)), dtype=torch.float32)
    decay = torch.exp(-0.5 * (math.pi * width * frequency) ** 2)
    decay[1:] *= math.sqrt(2)
    field = sample_normal(rng, [1, channels] + [len(frequency)] * len(shape))
    for axis, n in enumerate(shape, start=2):
        x = (torch.arange(n) + 0.5) / n
        waves = torch.cos(math.pi * x[:, None] * frequency) * decay  # (n, frequencies)
        field = (field.movedim(axis, -1) @ waves.T).movedim(-1, axis)
    grid = tuple(range(2, field.ndim))
    return (field - field.mean(grid, keepdim=True)) / field.std(grid, keepdim=True)


def compute_ellipsoid_depth(offset: Tensor, radii: Tensor) -> Tensor:
    """Compute the first-order distance (*grid) to an ellipsoid's surface, positive inside.

    It is k (1 - k) / |y / r^2| with k = |y / r|, the offset y (D, *grid) from the center along the
    ellipsoid's axes and the radii r (D,).
    """
    r = radii.view(-1, *[1] * (offset.ndim - 1))
    scaled = offset / r
    level = scaled.square().sum(0).sqrt()  # several times as fast as Tensor.norm
    slope = (scaled / r).square().sum(0).sqrt()
    return (1 - level) * level.clamp(min=1e-6) / slope.clamp(min=1e-6)  # the center is inside


class Organ:
    """A rotated ellipsoid, evaluated at (possibly warped) coordinates."""

    def __init__(self, rng: Generator, ndim: int, place: float, radii: Tensor) -> None:
        """Sample an organ beside the midline, at ``place`` in (0, 1) from pole to pole."""
        self.center = 0.05 * sample_uniform(rng, ndim)
        self.center[0] += 0.28 * math.sin(math.pi * place)
        self.center[1] += 0.32 * math.cos(math.pi * place)
        turn = 0.25 * sample_normal(rng, (ndim, ndim))
        self.axes = torch.matrix_exp(turn - turn.T)  # (D, D) rotation
        self.radii = radii * (1 + 0.12 * sample_uniform(rng, ndim))

    def compute_depth(self, x: Tensor) -> Tensor:
        """Compute the distance to the surface at points (D, *grid), positive inside."""
        offset = x - self.center.view(-1, *[1] * (x.ndim - 1))
        return compute_ellipsoid_depth(torch.tensordot(self.axes, offset, 1), self.radii)


class PhantomAnatomy:
    """A random phantom: sampled by the constructor, evaluated at voxel coordinates by a call.

    Lengths are in units of half the field of view, the origin is its center, and axis 0 runs from
    left to right.

    Args:
        rng: Source of random numbers.
        shape: Image grid; sets the scale of fine texture and of partial volume.
        labels: Number of structures: four layers, the others organs.
    """

    def __init__(self, rng: Generator, shape: Sequence[int], labels: int) -> None:
        ndim = len(shape)
        self.shape = torch.tensor(shape, dtype=torch.float32)
        lattice = [max(n // 2, 16) for n in shape]
        self.channel_counts = [ndim, ndim, 1, 2]  # bend, wrinkle, fold, coarse texture
        scales = zip(self.channel_counts, (0.16, 0.07, 0.045, 0.05), strict=True)
        noise = [sample_smooth_noise(rng, c, width, lattice) for c, width in scales]
        self.smooth_noise = torch.cat(noise, 1)
        self.fine_noise = sample_normal(rng, [1, 2] + [math.ceil(n / 2.3) for n in shape])
        self.radii = 0.85 + 0.04 * sample_uniform(rng, ndim)
        self.radii[0] -= 0.1
        self.organs = []
        for i in range(labels - NUM_LAYERS):
            first, second, further = ORGAN_RADII[i % len(ORGAN_RADII)]
            radii = torch.tensor([first, second] + [further] * (ndim - 2))
            self.organs.append(Organ(rng, ndim, (i + 0.5) / (labels - NUM_LAYERS), radii))
        mean = torch.tensor([LABEL_INTENSITIES[k % len(LABEL_INTENSITIES)] for k in range(labels)])
        blend = sample_normal(rng, (labels, 4))
        self.mean = mean + 0.03 * sample_uniform(rng, labels)
        self.texture = 0.13 * mean.sqrt()[:, None] * blend / blend.norm(dim=1, keepdim=True)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Render image and labels at voxel coordinates (1, D, *grid).

        The image (1, 1, *grid), about [0, 1], has partial volume along edges; the labels
        (1, 1, *grid) are int64, 0 outside the body.
        """
        per_axis = (-1, *[1] * (points.ndim - 2))
        fraction = (points[0] + 0.5) / self.shape.view(per_axis)  # (D, *grid) in [0, 1]
        smooth = self._sample_noise(self.smooth_noise, fraction)
        *surface, coarse = smooth.split(self.channel_counts)
        texture = torch.cat([coarse, self._sample_noise(self.fine_noise, fraction)])
        depth = self._compute_depths(2 * fraction - 1, *surface)  # (K, *grid)
        cover = (0.5 + 0.5 * depth * self.shape.mean()).clamp(0, 1)  # edges one voxel wide
        uncovered = (1 - cover.flip(0)).cumprod(0)[:-1]
        visible = torch.cat([torch.ones_like(cover[:1]), uncovered]).flip(0)
        value = self.mean.view(per_axis) + torch.tensordot(self.texture, texture, 1)
        image = (visible * cover * value).sum(0)
        number = torch.arange(1, len(depth) + 1).view(per_axis)
        labels = ((depth > 0) * number).amax(0)
        return image[None, None], labels[None, None]

    @staticmethod
    def _sample_noise(noise: Tensor, fraction: Tensor) -> Tensor:
        """Sample a lattice (1, C, *lattice) that covers the field of view; gives (C, *grid)."""
        size = torch.tensor(noise.shape[2:]).view(-1, *[1] * (fraction.ndim - 1))
        return ops.sample(noise, (fraction * size - 0.5)[None])[0]

    def _compute_depths(self, x: Tensor, bend: Tensor, wrinkle: Tensor, fold: Tensor) -> Tensor:
        """Compute the (K, *grid) distance to the surface of each structure, positive inside."""
        x = x + 0.06 * bend
        body = compute_ellipsoid_depth(x, self.radii)
        # between the gyri and the hemispheres
        sulcus = _compute_ridge(fold, 0.16) + _compute_ridge(x[:1], 0.03)
        valley = _compute_ridge(fold, 0.5) + _compute_ridge(x[:1], 0.09)
        layers = [
            body,
            body - 0.10,
            body - 0.18 - 0.14 * sulcus.clamp(max=1),
            body - 0.28 - 0.14 * valley.clamp(max=1),
        ]
        x = x + 0.035 * wrinkle
        mirrored = torch.cat([x[:1].abs(), x[1:]])
        organs = [torch.minimum(o.compute_depth(mirrored), body - 0.30) for o in self.organs]
        return torch.stack([*layers, *organs])


def _compute_ridge(level: Tensor, width: float) -> Tensor:
    """Compute a Gaussian ridge of a width, with height 1 where ``level`` (1, *grid) is zero."""
    return torch.exp(-((level[0] / width) ** 2))
