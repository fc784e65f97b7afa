"""Breathing, as RegNet's second version simulates it after Hub et al. (IEEE TMI 2009)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regnet_lab.data.synthesis.displacements.bspline import spline_field
from regnet_lab.data.synthesis.displacements.masked_image import Scene, bounded, in_voxels, smoothed
from regnet_lab.errors import UserError

STEEP = 1.3  # of the logarithmic decay


def decay(height: Tensor, length: float) -> Tensor:
    """1 below height 0, then 1 - ln(1 + a h) / ln(1 + a L) with a = 1.3 / L, and 0 above L."""
    a = STEEP / length
    h = height.clamp(0, length)
    return 1 - torch.log1p(a * h) / np.log1p(STEEP)


@dataclass(frozen=True, kw_only=True)
class Respiratory:
    """The diaphragm moves up, the chest grows narrower from front to back, both fading over the
    lower half of the lung; a random B-spline is added.

    u_z = t f(z) and u_y = -(y - c) s f(z) in mm, with f of :func:`decay` from the lowest slice of
    the lung, t and s drawn from 0.8 to 1.1 times ``shift`` and ``scale``, and c close to the back.

    Args:
        max_deform: The field is bounded by 1.2 times this, mm.
        shift: Of the diaphragm, mm.
        scale: Of the chest.
        knots: Distance of the B-spline's knots, mm.
        ratio: The B-spline's size, in ``max_deform``; along the body it has 0.3 of that.
        border: Planes of its coefficients that stay zero.
        background: Gaussian over the field after the body is cut out, mm for ``max_deform`` 7.
    """

    max_deform: float
    shift: float
    knots: float
    scale: float = 0.12
    ratio: float = 0.5
    border: int = 2
    background: float = 8.0

    def breath(self, rng: np.random.Generator, scene: Scene) -> Tensor:
        """(3, *shape) mm, without the B-spline."""
        lung = scene.need_lung(self)
        shift, scale = rng.uniform(0.8, 1.1, 2) * (self.shift, self.scale)
        _, y, z = (torch.arange(n) * mm for n, mm in zip(scene.shape, scene.spacing, strict=True))
        slices, rows = (np.flatnonzero(lung.any(axes)) for axes in ((0, 1), (0, 2)))
        bottom, top = (float(z[k]) for k in slices[[0, -1]])
        centre = float(y[rows[-1]]) - rng.uniform(2, 12)
        fade = decay(z - bottom, max((top - bottom) / 2, scene.spacing[2]))
        u = torch.zeros(3, *scene.shape)
        u[1] = -(y[:, None] - centre) * scale * fade
        u[2] = shift * fade
        return u

    def __call__(self, rng: np.random.Generator, scene: Scene) -> Tensor:
        if len(scene.shape) != 3:
            raise UserError(
                "Respiratory: breathing needs volumes; leave it out of 'methods' in 2D."
            )
        u = self.breath(rng, scene)
        largest = self.ratio * self.max_deform
        knots = [self.knots] * 3
        added = spline_field(rng, scene, knots, (0, 1.7), largest, 0.8, self.border)
        u = u + added * torch.tensor([1.0, 1.0, 0.3]).view(3, 1, 1, 1)
        u = smoothed(u * scene.body, self.background * self.max_deform / 7, scene.spacing)
        return in_voxels(bounded(u, 1.2 * self.max_deform), scene.spacing)
