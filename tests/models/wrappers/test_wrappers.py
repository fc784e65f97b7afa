import pytest
import torch

from regnet_lab import ops
from regnet_lab.models import SliceWiseModel, VoxelMorph

planes = pytest.mark.parametrize("plane", [(7,), (8, 9)])


class Coarse(torch.nn.Module):
    """Fields that identify their slices, at full size and on half the grid."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, fixed, moving):
        self.calls.append(len(fixed))
        ndim = fixed.ndim - 2
        u = torch.cat([fixed + 2 * k * moving for k in range(ndim)], 1)
        return [ops.resize_field(u, [-(-n // 2) for n in u.shape[2:]]), u]


def volumes(plane, batch=2, depth=5):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, batch, 1, *plane, depth, generator=generator)


@planes
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_every_slice_is_registered_independently(plane, chunk):
    fixed, moving = volumes(plane)
    model = Coarse()
    fields = SliceWiseModel(model, len(plane), chunk)(fixed, moving)
    half_plane = tuple(-(-n // 2) for n in plane)
    assert [f.shape for f in fields] == [
        (2, len(plane) + 1, *grid, 5) for grid in (half_plane, plane)
    ]
    for k in range(5):
        alone = Coarse()(fixed[..., k], moving[..., k])
        for whole, single in zip(fields, alone, strict=True):
            torch.testing.assert_close(whole[:, :-1, ..., k], single)
            assert not whole[:, -1].any()
    assert max(model.calls) <= (chunk or 10)
    assert sum(model.calls) == 10


@planes
def test_a_pair_of_slices_is_passed_to_the_model(plane):
    fixed, moving = volumes(plane)[..., 0]
    for wrapped, direct in zip(
        SliceWiseModel(Coarse(), len(plane))(fixed, moving), Coarse()(fixed, moving), strict=True
    ):
        assert torch.equal(wrapped, direct)


def test_warping_a_volume_warps_its_slices():
    torch.manual_seed(0)
    fixed, moving = volumes((12, 16), batch=1, depth=3)
    model = VoxelMorph(2, down=(4, 4), up=((4,), (4,)), out=(4,), flow_init_std=0.5).eval()
    (u,) = SliceWiseModel(model, 2)(fixed, moving)
    assert u.abs().max() > 0.1
    warped = ops.warp(moving, u)
    for k in range(3):
        (alone,) = model(fixed[..., k], moving[..., k])
        torch.testing.assert_close(
            warped[..., k], ops.warp(moving[..., k], alone), atol=1e-4, rtol=1e-4
        )
        plane = ops.jacobian_determinant(alone)
        torch.testing.assert_close(ops.jacobian_determinant(u)[..., k], plane, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_model_through_a_volume():
    fixed, moving = volumes((8, 8), depth=2)
    model = VoxelMorph(2, down=(4,), up=((4,),), out=(4,))
    (u,) = SliceWiseModel(model, 2, slices_per_batch=3)(fixed, moving)
    u.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.flow.parameters())
