import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from regnet_lab.ops import box_filter, similarity

SHAPES = pytest.mark.parametrize("shape", [(9, 41), (35, 8, 9)])  # more than one block, and less
PADDING = pytest.mark.parametrize("padding", ["zeros", "replicate"])
PAD_MODE = {"zeros": "constant", "replicate": "replicate"}


def dense_sum(image, window, padding):
    ndim = image.ndim - 2
    before, after = (window - 1) // 2, window // 2
    padded = F.pad(image, [before, after] * ndim, mode=PAD_MODE[padding])
    kernel = torch.ones(1, 1, *[window] * ndim, dtype=image.dtype)
    return {2: F.conv2d, 3: F.conv3d}[ndim](padded, kernel)


def dense_ncc(f, w, window, padding, weight):
    """1 - weighted mean of the squared correlation, by dense convolutions."""
    count = window ** (f.ndim - 2)
    mean_f, mean_w = (dense_sum(x, window, padding) / count for x in (f, w))
    cross = dense_sum(f * w, window, padding) - count * mean_f * mean_w
    variances = [
        dense_sum(x * x, window, padding) - count * mean**2
        for x, mean in ((f, mean_f), (w, mean_w))
    ]
    cc = cross**2 / (variances[0] * variances[1] + 1e-5)
    return 1 - (cc * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


@SHAPES
@PADDING
@pytest.mark.parametrize("window", [2, 3, 9])
def test_box_sums_are_convolutions_with_ones(shape, padding, window):
    image = torch.randn(2, 1, *shape, dtype=torch.float64).requires_grad_()
    total, dense = box_filter.box_sum(image, window, padding), dense_sum(image, window, padding)
    torch.testing.assert_close(total, dense)
    slope = torch.randn_like(total)
    ours, theirs = (torch.autograd.grad(x, image, slope)[0] for x in (total, dense))
    torch.testing.assert_close(ours, theirs)


@SHAPES
@PADDING
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_local_ncc_has_values_and_gradients_of_dense_convolutions(
    shape, padding, masked, dtype
):
    f, w = (torch.rand(2, 1, *shape, dtype=torch.float64) for _ in range(2))
    mask = (torch.rand(2, 1, *shape) > 0.3).double() if masked else None
    weight = torch.ones_like(f) if mask is None else mask
    f, w = (x.requires_grad_() for x in (f, w))
    dense = dense_ncc(f, w, 9, padding, weight)
    expected = torch.autograd.grad(dense, [f, w], torch.tensor([1.0, -2.0]).double())
    a, b = (x.detach().to(dtype).requires_grad_() for x in (f, w))
    value = similarity.local_ncc(a, b, mask, 9, padding)
    gradients = torch.autograd.grad(value, [a, b], torch.tensor([1.0, -2.0], dtype=dtype))
    relative = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(value.double(), dense, rtol=relative, atol=0)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert (gradient - reference).abs().max() <= relative * reference.abs().max()


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)])
@PADDING
def test_local_ncc_can_be_differentiated_twice(shape, padding):
    f, w = (torch.rand(1, 1, *shape, dtype=torch.float64).requires_grad_() for _ in range(2))

    def measured(f, w):
        return similarity.local_ncc(f, w, window=3, padding=padding, epsilon=1e-3)

    assert gradcheck(measured, (f, w))
    assert gradgradcheck(measured, (f, w))


def test_gradients_of_single_images_equal_those_of_both():
    f, w = (torch.rand(1, 1, 9, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    gradients = torch.autograd.grad(similarity.local_ncc(f, w).sum(), [f, w])
    alone = (
        torch.autograd.grad(similarity.local_ncc(f, w.detach()).sum(), f)[0],
        torch.autograd.grad(similarity.local_ncc(f.detach(), w).sum(), w)[0],
    )
    for expected, gradient in zip(gradients, alone, strict=True):
        torch.testing.assert_close(expected, gradient)
