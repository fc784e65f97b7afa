"""Layers that work on 2D and 3D images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError


class SmallGridConvolution(nn.Module):
    """Mixin that runs a convolution in float32 on a CPU if its kernel exceeds the grid.

    In bfloat16 the gradient of its weight is then wrong: oneDNN reads out of bounds (torch 2.13
    with AVX-512; 3^3 on a 2 x 2 x 2 grid).
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


class Conv2d(SmallGridConvolution, nn.Conv2d):
    """``torch.nn.Conv2d`` for grids of any size."""


class Conv3d(SmallGridConvolution, nn.Conv3d):
    """``torch.nn.Conv3d`` for grids of any size."""


Convolution = Conv2d | Conv3d
CONVOLUTIONS: dict[int, type[Convolution]] = {2: Conv2d, 3: Conv3d}


def make_convolution(
    ndim: int, inputs: int, outputs: int, stride: int = 1, dilation: int = 1
) -> Convolution:
    """Create a 3^D convolution, padded so that stride 1 keeps the grid."""
    if ndim not in CONVOLUTIONS:
        raise UserError(f"ndim={ndim}: images have 2 or 3 dimensions.")
    return CONVOLUTIONS[ndim](inputs, outputs, 3, stride, dilation, dilation)


class InstanceNorm(nn.Module):
    """Instance normalisation without parameters; also works on one voxel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:])


def predict_displacement(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply layers, the last of them in float32.

    Half precision would round a displacement of 5 voxels to 1/32 (bfloat16), and the derivatives
    with it.
    """
    return ops.full_precision(layers[-1])(layers[:-1](x))


def make_conv_block(
    ndim: int,
    inputs: int,
    outputs: int,
    stride: int = 1,
    normalised: bool = False,
    dilation: int = 1,
) -> nn.Sequential:
    """Create a 3^D convolution, optional instance normalisation and leaky ReLU of slope 0.2."""
    norm = [InstanceNorm()] if normalised else []
    return nn.Sequential(
        make_convolution(ndim, inputs, outputs, stride, dilation),
        *norm,
        nn.LeakyReLU(0.2, inplace=True),
    )


def zero_bias(layer: nn.Module) -> None:
    """Set the bias of a layer to zero."""
    nn.init.zeros_(layer.get_parameter("bias"))


def init_flow_layer(layer: Convolution, deviation: float) -> nn.Module:
    """Initialise a layer for displacements near zero: weights N(0, deviation^2), zero bias."""
    nn.init.normal_(layer.weight, std=deviation)
    zero_bias(layer)
    return layer
