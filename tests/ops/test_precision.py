import pytest
import torch

from regnet_lab import ops
from tests.helpers.fields import random_field

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


@pytest.mark.parametrize("shape", [(192, 3), (192, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_precision_does_not_round_coordinates(shape, dtype):
    ramp = torch.arange(192.0).view(1, 1, -1, *[1] * (len(shape) - 1)).expand(1, 1, *shape)
    u = torch.zeros(1, len(shape), *shape, dtype=dtype)
    u[:, 0] = 0.375  # exact in every dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped, twice = ops.warp(ramp, u), ops.warp(ramp, ops.compose(u, u))
    assert warped.dtype == twice.dtype == torch.float32
    assert (warped - ramp - 0.375)[:, :, :-1].abs().max() < 1e-3
    assert (twice - ramp - 0.75)[:, :, :-1].abs().max() < 1e-3


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function",
    [
        lambda u: ops.sample(u, ops.identity_grid(u.shape[2:], u.float()) + 0.3),
        lambda u: ops.warp(u, u),
        lambda u: ops.compose(u, u),
        ops.integrate,
        ops.invert,
        ops.jacobian_determinant,
        lambda u: ops.resize(u, [2 * n for n in u.shape[2:]]),
        lambda u: ops.resize_field(u, [n - 2 for n in u.shape[2:]]),
        lambda u: ops.transform_points(u[:, 0, ..., :3, :3], u[:, 0, ..., :2]),
    ],
    ids=["sample", "warp", "compose", "integrate", "invert", "jacobian", "up", "down", "points"],
)
def test_operations_compute_in_single_precision(shape, dtype, function):
    u = random_field(shape, 0.5).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = function(u)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, function(u.float()))
