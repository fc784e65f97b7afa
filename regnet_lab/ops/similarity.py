"""Dissimilarity measures of two images, in 2D and 3D; lower is better.

Each takes ``fixed`` and ``warped`` (B, 1, *spatial) with intensities of about [0, 1] and optionally
a ``mask`` of the same shape (1 where the fixed image counts), computes in float32, and returns one
value per case, (B,).
"""

from itertools import combinations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regnet_lab.ops.box_filter import box_sum, weighted_squared_correlation
from regnet_lab.ops.fields import gradient
from regnet_lab.ops.precision import full_precision

Image = Float[Tensor, "b c *spatial"]
Mask = Shaped[Tensor, "b c *spatial"]
PerCase = Float[Tensor, " b"]
RELATIVE_VARIANCE_FLOOR = 1e-10  # of the mean square; below it an image counts as constant


def _average_over_mask(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average a map over everything but the batch, weighted by the mask."""
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.to(values.dtype).expand_as(values).flatten(1)
    return (values.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


@full_precision
def mean_squares(fixed: Image, warped: Image, mask: Mask | None = None) -> PerCase:
    """Compute the mean of (f - w)^2 over the voxels.

    >>> mean_squares(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
    tensor([0.2500])
    """
    return _average_over_mask((fixed - warped).square(), mask)


@full_precision
def global_ncc(fixed: Image, warped: Image, mask: Mask | None = None) -> PerCase:
    """Compute 1 - cov(f, w)^2 / (var f var w), between 0 (linear relation) and 1.

    One minus the squared global correlation, ``ncc`` of GraDIRN (Qiu et al., MICCAI 2022), whose
    added 1e-5 is left out: an image of small variance would not be equal to itself.  It does not
    depend on the scale and offset of either image; it is 1 where one of them is constant, which
    means a variance of at most 1e-10 of its mean square.

    >>> image = torch.linspace(0, 1, 9).view(1, 1, 3, 3)
    >>> bool(global_ncc(image, 1 - 0.5 * image) < 0.01)
    True
    """

    def center(image: Tensor) -> Tensor:
        return image - _average_over_mask(image, mask).view(-1, *[1] * (image.ndim - 1))

    def compute_variance(image: Tensor, centered: Tensor) -> Tensor:
        power = _average_over_mask(image.square(), mask).detach()
        floor = (RELATIVE_VARIANCE_FLOOR * power).clamp(min=1e-18)
        return torch.maximum(_average_over_mask(centered.square(), mask), floor)

    f, w = center(fixed), center(warped)
    covariance = _average_over_mask(f * w, mask)
    return 1 - (covariance / compute_variance(fixed, f)) * (
        covariance / compute_variance(warped, w)
    )


@full_precision
def local_ncc(
    fixed: Image,
    warped: Image,
    mask: Mask | None = None,
    window: int = 9,
    padding: str = "zeros",
    epsilon: float = 1e-5,
    noise: float = 0.0,
) -> PerCase:
    """Compute 1 - mean squared correlation in a box of side ``window`` around every voxel.

    cc = S^2(fw) / (S(ff) S(ww) + epsilon) with sums S of centered products over the box (Avants et
    al., MedIA 2008; the form used by VoxelMorph, FAIM and the pyramid).  Beyond the border the
    image is zero (padding ``zeros``) or equal to its outermost voxel (``replicate``).

    ``noise`` is a standard deviation of intensity below which a box counts as constant.  With the
    floor n noise^2 for a box of n voxels, cc = (|S(fw)| + floor)^2 / ((S(ff) + floor) (S(ww) +
    floor) + epsilon).  Where both images are constant cc is then 1 instead of 0, and with epsilon 0
    it is largest where both images are equal; without a floor it grows with the contrast of w, so
    that equal images are not an optimum.

    >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> bool(local_ncc(image, 2 - 3 * image, padding="replicate") < 1e-3)
    True
    """
    if mask is None:
        weight = fixed.new_tensor(1 / fixed[0].numel())
    else:
        mask = mask.to(fixed.dtype).expand_as(fixed)
        inside = mask.flatten(1).sum(1).clamp(min=1e-6)
        weight = mask / inside.view(-1, *[1] * (fixed.ndim - 1))
    options = window, padding, epsilon, noise**2 * window ** (fixed.ndim - 2)
    return 1 - weighted_squared_correlation(fixed, warped, weight, *options)


def _compute_parzen_weights(image: Tensor, bins: int) -> Tensor:
    """Compute the weight (B, N, bins) of each voxel in each bin of [0, 1], Gaussian window."""
    centers = torch.linspace(0, 1, bins, dtype=image.dtype, device=image.device)
    sigma = 0.5 / (bins - 1)
    weight = torch.exp(-0.5 * ((image.flatten(1)[..., None] - centers) / sigma) ** 2)
    return weight / weight.sum(-1, keepdim=True)


def _compute_joint_histogram(
    fixed: Tensor, warped: Tensor, mask: Tensor | None, bins: int
) -> Float[Tensor, "b bins bins"]:
    """Compute the joint histogram of two images, each with sum 1."""
    f, w = (_compute_parzen_weights(image.clamp(0, 1), bins) for image in (fixed, warped))
    weight = torch.ones_like(fixed) if mask is None else mask.to(f.dtype)
    weight = weight.flatten(1) / weight.flatten(1).sum(1, keepdim=True).clamp(min=1e-6)
    return (f * weight[..., None]).transpose(1, 2) @ w


def _compute_entropy(probability: Tensor) -> Tensor:
    """Compute the entropy of each case in nats."""
    return -(probability * (probability + 1e-7).log()).flatten(1).sum(1)


@full_precision
def mutual_information(
    fixed: Image, warped: Image, mask: Mask | None = None, bins: int = 32, normalised: bool = False
) -> PerCase:
    """Compute the negative mutual information H(f, w) - H(f) - H(w) in nats.

    With ``normalised``, -(H(f) + H(w)) / H(f, w) (Studholme et al., Pattern Recognition 1999).  The
    joint histogram uses Parzen windows (Viola and Wells, IJCV 1997): Gaussians with a standard
    deviation of half a bin at ``bins`` centers over [0, 1].
    """
    joint = _compute_joint_histogram(fixed, warped, mask, bins)
    marginals = _compute_entropy(joint.sum(1)) + _compute_entropy(joint.sum(2))
    joint_entropy = _compute_entropy(joint)
    if normalised:
        return -marginals / joint_entropy.clamp(min=1e-6)
    return joint_entropy - marginals


@full_precision
def normalised_gradient_field(
    fixed: Image, warped: Image, mask: Mask | None = None, edge: float = 0.05
) -> PerCase:
    """Compute the mean of 1 - <grad f, grad w>_e^2 / (|grad f|_e^2 |grad w|_e^2).

    |g|_e^2 = |g|^2 + e^2 and <g, h>_e = <g, h> + e^2 (Haber and Modersitzki, MICCAI 2006).
    ``edge`` is e in intensity per voxel: smaller gradients count as noise.
    """
    f, w = (gradient(image) for image in (fixed, warped))  # (B, 1, D, *spatial)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(2) + edge**2

    return _average_over_mask(1 - product(f, w) ** 2 / (product(f, f) * product(w, w)), mask)


def _shift(image: Tensor, offset: list[int]) -> Tensor:
    """Return image(x + offset), with the outermost voxels replicated."""
    for axis, step in enumerate(offset, start=2):
        index = torch.arange(image.shape[axis], device=image.device) + step
        image = image.index_select(axis, index.clamp(0, image.shape[axis] - 1))
    return image


def mind_ssc(image: Image, radius: int = 1, dilation: int = 1) -> Float[Tensor, "b k *spatial"]:
    """Compute the MIND self-similarity context descriptor (Heinrich et al., MICCAI 2013).

    Each channel compares the patches (side 2 radius + 1) around two neighbours of the voxel, at
    distance ``dilation`` along two different axes: 2 D (D - 1) channels, 12 in 3D and 4 in 2D.  Its
    value is exp(-d / v), where d is the patch distance minus its minimum over channels, and v is
    the mean of d over channels, clamped to [0.001, 1000] times its mean over the image.

    >>> mind_ssc(torch.rand(1, 1, 6, 6, 6)).shape
    torch.Size([1, 12, 6, 6, 6])
    """
    ndim = image.ndim - 2
    unit = torch.eye(ndim, dtype=torch.long)
    steps = [dilation * sign * unit[axis] for axis in range(ndim) for sign in (1, -1)]
    corners = [(a.tolist(), b.tolist()) for a, b in combinations(steps, 2) if int(a @ b) == 0]
    distance = torch.cat([(_shift(image, a) - _shift(image, b)).square() for a, b in corners], 1)
    side = 2 * radius + 1
    distance = box_sum(distance, side, "replicate") / side**ndim
    distance = distance - distance.amin(1, keepdim=True)
    variance = distance.mean(1, keepdim=True)
    typical = variance.flatten(1).mean(1).view(-1, *[1] * (ndim + 1)).detach()
    variance = torch.maximum(torch.minimum(variance, typical * 1000), typical * 0.001)
    return torch.exp(-distance / variance.clamp(min=1e-12))


@full_precision
def mind(
    fixed: Image, warped: Image, mask: Mask | None = None, radius: int = 1, dilation: int = 1
) -> PerCase:
    """Compute the mean squared difference of MIND-SSC descriptors, for different contrasts."""
    difference = mind_ssc(fixed, radius, dilation) - mind_ssc(warped, radius, dilation)
    return _average_over_mask(difference.square(), mask)
