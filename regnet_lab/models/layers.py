"""Convolutions that do not care whether the image has two or three dimensions."""

import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab.errors import UserError

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
Convolution = nn.Conv2d | nn.Conv3d


def convolution(ndim: int, inputs: int, outputs: int, stride: int = 1) -> Convolution:
    """A 3^D convolution, padded so that stride 1 keeps the grid.

    Raises:
        UserError: ``ndim`` is neither 2 nor 3.
    """
    if ndim not in CONV:
        raise UserError(f"ndim={ndim}: images have 2 or 3 dimensions.")
    return CONV[ndim](inputs, outputs, 3, stride, padding=1)  # type: ignore[return-value]


class InstanceNorm(nn.Module):
    """Each channel of each case to mean 0 and deviation 1 over its voxels, were it only one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:])


def activated(
    ndim: int, inputs: int, outputs: int, stride: int = 1, normalised: bool = False
) -> nn.Sequential:
    """A 3^D convolution, instance normalisation if wanted, and a leaky rectifier of slope 0.2."""
    norm = [InstanceNorm()] if normalised else []
    return nn.Sequential(
        convolution(ndim, inputs, outputs, stride), *norm, nn.LeakyReLU(0.2, inplace=True)
    )


def initialise_flow(layer: Convolution, deviation: float) -> nn.Module:
    """Start a layer that gives displacements near zero: weights N(0, deviation^2), no offset."""
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
