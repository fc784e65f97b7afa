"""Respiratory motion, as simulated by RegNet's second version after Hub et al. (IEEE TMI 2009)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab.data.synthesis.displacements.bspline import sample_spline_field
from regnet_lab.data.synthesis.displacements.masked_image import (
    MaskedImage,
    limit_magnitude,
    smooth_field,
    to_voxels,
)
from regnet_lab.errors import UserError

DECAY_STEEPNESS = 1.3  # of the logarithmic decay


def compute_decay(height: Tensor, length: float) -> Tensor:
    """Compute the decay with height h: 1 - ln(1 + a h) / ln(1 + a L) with a = 1.3 / L.

    It is 1 below height 0 and 0 above L.
    """
    a = DECAY_STEEPNESS / length
    h = height.clamp(0, length)
    return 1 - torch.log1p(a * h) / np.log1p(DECAY_STEEPNESS)


@dataclass(frozen=True, kw_only=True)
class Respiratory:
    """Upward motion of the diaphragm and contraction of the chest, plus a random B-spline.

    Both motions fade over the lower half of the lung:

    u_z = t f(z) and u_y = -(y - c) s f(z) in mm, with f of :func:`decay` from the lowest slice of
    the lung, t and s drawn from 0.8 to 1.1 times ``diaphragm_shift`` and ``chest_scale``, and c
    near the back.
    """

    max_deform: float  # scale of the largest component, which is at most 1.2 times this, mm
    diaphragm_shift: float  # displacement of the diaphragm, mm
    knot_spacing: float  # knot spacing of the B-spline, mm
    chest_scale: float = 0.12  # contraction of the chest
    # amplitude of the B-spline as a fraction of ``max_deform``; along z 0.3 of that
    amplitude_ratio: float = 0.5
    zero_border: int = 2  # number of outer coefficient planes that are zero
    # standard deviation of the smoothing after masking, mm at ``max_deform`` 7
    background: float = 8.0

    def sample_breathing(self, rng: Generator, masked_image: MaskedImage) -> Tensor:
        """Sample the motion (3, *shape) in mm, without the B-spline."""
        lung = masked_image.require_lung(self)
        shift, scale = rng.uniform(0.8, 1.1, 2) * (self.diaphragm_shift, self.chest_scale)
        _, y, z = (
            torch.arange(n) * mm
            for n, mm in zip(masked_image.shape, masked_image.spacing, strict=True)
        )
        slices, rows = (np.flatnonzero(lung.any(axes)) for axes in ((0, 1), (0, 2)))
        bottom, top = (float(z[k]) for k in slices[[0, -1]])
        center = float(y[rows[-1]]) - rng.uniform(2, 12)
        fade = compute_decay(z - bottom, max((top - bottom) / 2, masked_image.spacing[2]))
        u = torch.zeros(3, *masked_image.shape)
        u[1] = -(y[:, None] - center) * scale * fade
        u[2] = shift * fade
        return u

    def __call__(self, rng: Generator, masked_image: MaskedImage) -> Tensor:
        if len(masked_image.shape) != 3:
            raise UserError("Respiratory: needs 3D images; remove it from 'deformations' in 2D.")
        u = self.sample_breathing(rng, masked_image)
        largest = self.amplitude_ratio * self.max_deform
        knots = [self.knot_spacing] * 3
        spline = sample_spline_field(
            rng, masked_image, knots, (0, 1.7), largest, 0.8, self.zero_border
        )
        u = u + spline * torch.tensor([1.0, 1.0, 0.3]).view(3, 1, 1, 1)
        u = smooth_field(
            u * masked_image.body, self.background * self.max_deform / 7, masked_image.spacing
        )
        return to_voxels(limit_magnitude(u, 1.2 * self.max_deform), masked_image.spacing)
