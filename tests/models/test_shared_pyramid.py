"""The pyramid of one estimator: what it knows before training, and that it learns."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet_lab import ops
from regnet_lab.data.synthesis.synthmorph import Flow, Generated
from regnet_lab.losses import EndpointError
from regnet_lab.models import SharedPyramid
from regnet_lab.models.shared_pyramid import averaged, context, pointed
from regnet_lab.ops.cost_volume import cost_volume, offsets
from regnet_lab.ops.pairs import registered

SHAPES = pytest.mark.parametrize("shape", [(24, 28), (20, 17, 18)])


def texture(shape, sigma=1.0):
    noise = torch.randn(1, 1, *shape).numpy()
    return torch.from_numpy(gaussian_filter(noise, [0, 0, *[sigma] * len(shape)]))


@SHAPES
def test_the_context_does_not_depend_on_scale_offset_and_sign_of_contrast(shape):
    image = texture(shape)
    assert torch.allclose(context(image), context(3 - 20 * image), atol=1e-3)
    assert context(image).abs().max() > 0.1
    assert context(image).mean(1).abs().max() < 1e-6


@SHAPES
def test_costs_point_to_where_an_inverted_image_went(shape):
    image, ndim = texture(shape), len(shape)
    steps = torch.tensor([*offsets(ndim, 1)]).float().T
    shift = torch.tensor([1.0, -1.0, 0.0][:ndim])
    moved = 1 - image.roll([1, -1, 0][:ndim], tuple(range(2, ndim + 2)))
    cost = averaged(cost_volume(context(image), context(moved), 1))
    mean = pointed(cost, torch.tensor(300.0), steps)
    middle = mean[(0, slice(None), *[slice(5, -5)] * ndim)].flatten(1).mean(1)
    assert torch.allclose(middle, shift, atol=0.15)


def test_a_neighbourhood_is_averaged():
    cost = torch.zeros(1, 1, 11, 11)
    cost[..., 5, 5] = 25
    expected = torch.zeros(11, 11)
    expected[3:8, 3:8] = 1
    assert torch.allclose(averaged(cost)[0, 0], expected, atol=1e-5)


@SHAPES
def test_levels_share_their_weights_and_double_their_grids(shape):
    small, large = SharedPyramid(len(shape), levels=2), SharedPyramid(len(shape), levels=3)
    large.load_state_dict(small.state_dict())
    fixed, moving = texture(shape), texture(shape)
    fields = large(fixed, moving)
    assert len(fields) == 3
    for level, u in enumerate(reversed(fields), start=1):
        assert list(u.shape[2:]) == [-(-n // 2**level) for n in shape]


@SHAPES
def test_large_answers_do_not_fold(shape):
    model = SharedPyramid(len(shape))
    torch.nn.init.normal_(model.estimator.flow.weight, std=0.2)
    u = model(texture(shape), texture(shape))[-1]
    assert u.abs().max() > 0.6
    assert (ops.jacobian_determinant(u) > 0).all()


def test_a_batch_is_its_cases():
    model = SharedPyramid(2)
    fixed, moving = (torch.cat([texture((24, 20)), texture((24, 20))]) for _ in range(2))
    together = model(fixed, moving)[-1]
    alone = torch.cat([model(f[None], m[None])[-1] for f, m in zip(fixed, moving, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_it_learns():
    pairs = Generated("train", (24, 24), flow=Flow((0.05, 0.05), (0.15, 0.3)), size=2)
    pair = torch.utils.data.default_collate([pairs[0], pairs[1]])
    model, error, missed = SharedPyramid(2), EndpointError(), []
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(20):
        missed.append(error(pair, registered(pair, model(pair["fixed"], pair["moving"]))))
        optimizer.zero_grad()
        missed[-1].backward()
        optimizer.step()
    assert missed[-1] < 0.8 * missed[0]
