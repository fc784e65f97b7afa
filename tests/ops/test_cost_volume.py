import numpy as np
import pytest
import torch

from regnet_lab.ops.cost_volume import compute_reference_cost_volume, cost_volume, iterate_offsets

CASES = pytest.mark.parametrize(
    ("shape", "radius", "stride", "dilation"),
    [
        ((9, 11), 2, 1, 1),
        ((7, 8, 9), 1, 1, 1),
        ((9, 10), 1, 2, 3),
        ((5, 8, 7), 1, 3, 2),
        ((3, 2), 2, 1, 2),  # most of what it meets lies outside
        ((1, 1, 1), 1, 1, 1),
    ],
)
SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def maps(shape, batch=2, channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, batch, channels, *shape, generator=generator, dtype=dtype)


def by_definition(fixed, moving, radius, stride, dilation):
    """A loop over voxels and offsets."""
    shape = fixed.shape[2:]
    steps = list(np.ndindex(*[2 * radius + 1] * len(shape)))
    out = np.zeros((len(fixed), len(steps), *(-(-n // stride) for n in shape)))
    for k, step in enumerate(steps):
        for at in np.ndindex(*out.shape[2:]):
            x = tuple(stride * i for i in at)
            y = tuple(i + dilation * (s - radius) for i, s in zip(x, step, strict=True))
            if all(0 <= i < n for i, n in zip(y, shape, strict=True)):
                products = fixed[(slice(None), slice(None), *x)] * moving[(..., *y)]
                out[(slice(None), k, *at)] = products.mean(1)
    return out


@CASES
@pytest.mark.parametrize("form", [cost_volume, compute_reference_cost_volume])
def test_every_cost_is_the_mean_product_at_its_offset(form, shape, radius, stride, dilation):
    fixed, moving = maps(shape)
    expected = by_definition(fixed.numpy(), moving.numpy(), radius, stride, dilation)
    value = form(fixed, moving, radius, stride, dilation)
    np.testing.assert_allclose(value, expected, atol=1e-12)


@CASES
def test_the_gradient_is_that_of_the_definition(shape, radius, stride, dilation):
    fixed, moving = (x.requires_grad_() for x in maps(shape))
    values = [
        form(fixed, moving, radius, stride, dilation)
        for form in (cost_volume, compute_reference_cost_volume)
    ]
    weight = torch.randn_like(values[0])
    slopes = [torch.autograd.grad(v, (fixed, moving), weight) for v in values]
    for gradient, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(gradient, expected)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("shape", "stride", "dilation"), [((4, 5), 1, 1), ((3, 4, 3), 1, 1), ((5, 4), 2, 2)]
)
def test_gradcheck(shape, stride, dilation):
    fixed, moving = (x.requires_grad_() for x in maps(shape, channels=2))
    assert torch.autograd.gradcheck(
        lambda f, m: cost_volume(f, m, 1, stride, dilation),
        (fixed, moving),
        fast_mode=len(shape) == 3,
    )


@SHAPES
def test_views_are_as_good_as_copies(shape):
    fixed, moving = maps([2 * n for n in shape])
    every = (..., *[slice(None, None, 2)] * len(shape))
    fixed, moving = fixed.transpose(2, 3)[every], moving.transpose(2, 3)[every]
    expected = cost_volume(fixed.contiguous(), moving.contiguous(), 2)
    torch.testing.assert_close(cost_volume(fixed, moving, 2), expected)


@SHAPES
def test_the_best_match_is_an_integer_shift_inside_the_radius(shape):
    (moving, _), radius = maps(shape, batch=1, channels=64), 2
    inner = (..., *[slice(radius, -radius)] * len(shape))
    for step in iterate_offsets(len(shape), radius):
        fixed = moving.roll([-s for s in step], list(range(2, moving.ndim)))
        best = cost_volume(fixed, moving, radius).argmax(1)[inner]
        offset = np.stack(np.unravel_index(best.numpy(), [2 * radius + 1] * len(shape))) - radius
        assert (offset == np.reshape(step, (-1, *[1] * best.ndim))).all()


@SHAPES
def test_only_the_inputs_are_saved_for_the_backward_pass(shape):
    saved = []
    fixed, moving = (x.requires_grad_() for x in maps(shape, channels=16))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        cost_volume(fixed, moving, 2)
    assert sum(x.numel() for x in saved) == fixed.numel() + moving.numel()


@SHAPES
def test_mixed_precision_does_not_lower_it(shape):
    fixed, moving = maps(shape, dtype=torch.float32)
    expected = cost_volume(fixed.bfloat16().float(), moving.bfloat16().float(), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cost_volume(fixed.bfloat16(), moving.bfloat16(), 1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
