"""Convolutions that do not care whether the image has two or three dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError


class OnSmallGrids(nn.Module):
    """Let a convolution that reaches further than the grid run in float32 on a CPU.

    In bfloat16 its weight's gradient is garbage there: oneDNN reads memory that is not its own
    (torch 2.13 with AVX-512; 3^3 on a 2 x 2 x 2 grid).
    """

    weight: Tensor
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        reach = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        if x.device.type == "cpu" and any(n <= r for n, r in zip(x.shape[2:], reach, strict=True)):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class Conv2d(OnSmallGrids, nn.Conv2d):
    """PyTorch's, on grids of any size."""


class Conv3d(OnSmallGrids, nn.Conv3d):
    """PyTorch's, on grids of any size."""


Convolution = Conv2d | Conv3d
CONV: dict[int, type[Convolution]] = {2: Conv2d, 3: Conv3d}


def convolution(ndim: int, inputs: int, outputs: int, stride: int = 1) -> Convolution:
    """A 3^D convolution, padded so that stride 1 keeps the grid.

    Raises:
        UserError: ``ndim`` is neither 2 nor 3.
    """
    if ndim not in CONV:
        raise UserError(f"ndim={ndim}: images have 2 or 3 dimensions.")
    return CONV[ndim](inputs, outputs, 3, stride, padding=1)


class InstanceNorm(nn.Module):
    """Each channel of each case to mean 0 and deviation 1 over its voxels, were it only one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:])


def displacement(layers: nn.Sequential, x: Tensor) -> Tensor:
    """What the layers give, the last of them in float32: half precision would round a displacement
    of 5 voxels to 1/32 (bfloat16), and the differences of neighbours with it.
    """
    return ops.full_precision(layers[-1])(layers[:-1](x))


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
