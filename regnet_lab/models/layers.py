"""Layers that work on 2D and 3D images."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError


@functools.cache
def has_bfloat16_instructions() -> bool:
    """Check whether convolutions in bfloat16 are fast on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Float32OnCpu(nn.Module):
    """Mixin that runs a convolution in float32 on a CPU where bfloat16 is slow or wrong.

    Without bfloat16 instructions it takes many times as long.  With them, the gradient of its
    weight is wrong if its kernel exceeds the grid, because oneDNN reads out of bounds (torch 2.13
    with AVX-512; 3^3 on a 2 x 2 x 2 grid).
    """

    weight: Tensor
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        reach = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        exceeds = any(n <= r for n, r in zip(x.shape[2:], reach, strict=True))
        if x.device.type == "cpu" and (exceeds or not has_bfloat16_instructions()):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class Conv2d(Float32OnCpu, nn.Conv2d):
    """``torch.nn.Conv2d`` for grids of any size and any CPU."""


class Conv3d(Float32OnCpu, nn.Conv3d):
    """``torch.nn.Conv3d`` for grids of any size and any CPU."""


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
