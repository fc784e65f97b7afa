"""How unlike two images are: pure functions, lower is better, in D dimensions.

Each takes ``fixed`` and ``warped`` (B, 1, *spatial) with intensities of about [0, 1] and, if
wanted, a ``mask`` of the same shape (1 where the fixed image counts), computes in float32, and
returns one number for each case, (B,).
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regnet_lab import ops
from regnet_lab.ops.box_filter import box_sum, mean_squared_correlation

Image = Float[Tensor, "b c *spatial"]
Mask = Shaped[Tensor, "b c *spatial"]
PerCase = Float[Tensor, " b"]


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of a map over everything but the batch, weighted by the mask."""
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.to(values.dtype).expand_as(values).flatten(1)
    return (values.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


@ops.full_precision
def mean_squares(fixed: Image, warped: Image, mask: Mask | None = None) -> PerCase:
    """Mean of (f - w)^2 over the voxels (SSD divided by their number)."""
    return _mean((fixed - warped).square(), mask)


@ops.full_precision
def global_ncc(
    fixed: Image, warped: Image, mask: Mask | None = None, epsilon: float = 1e-5
) -> PerCase:
    """1 - cov(f, w)^2 / (var f var w + epsilon): 0 for any linear relation, at most 1.

    The squared global correlation of GraDIRN's ``ncc`` (Qiu et al., MICCAI 2022).
    """

    def centred(image: Tensor) -> Tensor:
        return image - _mean(image, mask).view(-1, *[1] * (image.ndim - 1))

    f, w = centred(fixed), centred(warped)
    covariance = _mean(f * w, mask)
    return 1 - covariance**2 / (_mean(f * f, mask) * _mean(w * w, mask) + epsilon)


@ops.full_precision
def local_ncc(
    fixed: Image,
    warped: Image,
    mask: Mask | None = None,
    window: int = 9,
    padding: str = "zeros",
    epsilon: float = 1e-5,
) -> PerCase:
    """1 - mean of the squared correlation in a window^D box around every voxel.

    cc = S^2(fw) / (S(ff) S(ww) + epsilon) with sums S of centred products over the box
    (Avants et al., MedIA 2008; the form used by VoxelMorph, FAIM and the pyramid).  With ``zeros``
    the image continues as zero beyond its border, with ``replicate`` as its outermost voxel.
    """
    if mask is None:
        weight = fixed.new_tensor(1 / fixed[0].numel())
    else:
        mask = mask.to(fixed.dtype).expand_as(fixed)
        inside = mask.flatten(1).sum(1).clamp(min=1e-6)
        weight = mask / inside.view(-1, *[1] * (fixed.ndim - 1))
    return 1 - mean_squared_correlation(fixed, warped, weight, window, padding, epsilon)


def _parzen(image: Tensor, bins: int) -> Tensor:
    """(B, N, bins) share of each voxel in each histogram bin of [0, 1], Gaussian window."""
    centres = torch.linspace(0, 1, bins, dtype=image.dtype, device=image.device)
    sigma = 0.5 / (bins - 1)
    share = torch.exp(-0.5 * ((image.flatten(1)[..., None] - centres) / sigma) ** 2)
    return share / share.sum(-1, keepdim=True)


def _joint_histogram(
    fixed: Tensor, warped: Tensor, mask: Tensor | None, bins: int
) -> Float[Tensor, "b bins bins"]:
    f, w = (_parzen(image.clamp(0, 1), bins) for image in (fixed, warped))
    weight = torch.ones_like(fixed) if mask is None else mask.to(f.dtype)
    weight = weight.flatten(1) / weight.flatten(1).sum(1, keepdim=True).clamp(min=1e-6)
    return (f * weight[..., None]).transpose(1, 2) @ w


def _entropy(probability: Tensor) -> Tensor:
    return -(probability * (probability + 1e-7).log()).flatten(1).sum(1)


@ops.full_precision
def mutual_information(
    fixed: Image,
    warped: Image,
    mask: Mask | None = None,
    bins: int = 32,
    normalised: bool = False,
) -> PerCase:
    """-I(f; w) = H(f, w) - H(f) - H(w) in nats, or with ``normalised`` -(H(f) + H(w)) / H(f, w).

    Joint histogram by Parzen windows (Viola and Wells, IJCV 1997): Gaussians of half a bin on
    ``bins`` centres over [0, 1]; normalised after Studholme et al., Pattern Recognition 1999.
    """
    joint = _joint_histogram(fixed, warped, mask, bins)
    marginals = _entropy(joint.sum(1)) + _entropy(joint.sum(2))
    together = _entropy(joint)
    return -marginals / together.clamp(min=1e-6) if normalised else together - marginals


@ops.full_precision
def normalised_gradient_field(
    fixed: Image, warped: Image, mask: Mask | None = None, edge: float = 0.05
) -> PerCase:
    """Mean of 1 - <grad f, grad w>_e^2 / (|grad f|_e^2 |grad w|_e^2), with |g|_e^2 = |g|^2 + e^2
    and <g, h>_e = <g, h> + e^2 (Haber and Modersitzki, MICCAI 2006); ``edge`` e in intensity
    per voxel: smaller slopes count as noise.
    """
    f, w = (ops.gradient(image) for image in (fixed, warped))  # (B, 1, D, *spatial)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(2) + edge**2

    return _mean(1 - product(f, w) ** 2 / (product(f, f) * product(w, w)), mask)


def _shift(image: Tensor, offset: list[int]) -> Tensor:
    """image(x + offset), the outermost voxels continued."""
    for axis, step in enumerate(offset, start=2):
        index = torch.arange(image.shape[axis], device=image.device) + step
        image = image.index_select(axis, index.clamp(0, image.shape[axis] - 1))
    return image


def mind_ssc(image: Image, radius: int = 1, dilation: int = 1) -> Float[Tensor, "b k *spatial"]:
    """MIND self-similarity context descriptor (Heinrich et al., MICCAI 2013).

    Compares the patches (side 2 radius + 1) around every two face neighbours, at distance
    ``dilation``, that lie around a corner from one another: 2 D (D - 1) channels, 12 in 3D and 4
    in 2D.  exp(-d / v) with d the patch distance less its minimum over channels, and v the mean d,
    kept within [0.001, 1000] times its mean over the image.
    """
    ndim = image.ndim - 2
    unit = torch.eye(ndim, dtype=torch.long)
    steps = [dilation * sign * unit[axis] for axis in range(ndim) for sign in (1, -1)]
    corners = [
        (a.tolist(), b.tolist())
        for i, a in enumerate(steps)
        for b in steps[i + 1 :]
        if int(a @ b) == 0
    ]
    distance = torch.cat([(_shift(image, a) - _shift(image, b)).square() for a, b in corners], 1)
    side = 2 * radius + 1
    distance = box_sum(distance, side, "replicate") / side**ndim
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    typical = variance.flatten(1).mean(1).view(-1, *[1] * (ndim + 1)).detach()
    variance = torch.maximum(torch.minimum(variance, typical * 1000), typical * 0.001)
    return torch.exp(-distance / variance.clamp(min=1e-12))


@ops.full_precision
def mind(
    fixed: Image,
    warped: Image,
    mask: Mask | None = None,
    radius: int = 1,
    dilation: int = 1,
) -> PerCase:
    """Mean squared difference of the two MIND-SSC descriptors: for images of unlike contrast."""
    difference = mind_ssc(fixed, radius, dilation) - mind_ssc(warped, radius, dilation)
    return _mean(difference.square(), mask)
