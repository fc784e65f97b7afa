"""SharedPyramid: properties before training, and learning."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet_lab import ops
from regnet_lab.data.synthesis.synthmorph import RandomDiffeomorphism, SynthMorphPairs
from regnet_lab.losses import EndpointError
from regnet_lab.models import SharedPyramid
from regnet_lab.models.shared_pyramid import compute_context, compute_mean_offset, smooth_costs
from regnet_lab.ops.cost_volume import cost_volume, iterate_offsets
from regnet_lab.ops.pairs import apply_displacement

SHAPES = pytest.mark.parametrize("shape", [(24, 28), (20, 17, 18)])


def texture(shape, sigma=1.0):
    noise = torch.randn(1, 1, *shape).numpy()
    return torch.from_numpy(gaussian_filter(noise, [0, 0, *[sigma] * len(shape)]))


@SHAPES
def test_context_is_invariant_to_scale_offset_and_sign_of_contrast(shape):
    image = texture(shape)
    assert torch.allclose(compute_context(image), compute_context(3 - 20 * image), atol=1e-3)
    assert compute_context(image).abs().max() > 0.1
    assert compute_context(image).mean(1).abs().max() < 1e-6


@SHAPES
def test_costs_find_the_shift_of_an_inverted_image(shape):
    image, ndim = texture(shape), len(shape)
    steps = torch.tensor([*iterate_offsets(ndim, 1)]).float().T
    shift = torch.tensor([1.0, -1.0, 0.0][:ndim])
    moved = 1 - image.roll([1, -1, 0][:ndim], tuple(range(2, ndim + 2)))
    cost = smooth_costs(cost_volume(compute_context(image), compute_context(moved), 1))
    mean = compute_mean_offset(cost, torch.tensor(300.0), steps)
    middle = mean[(0, slice(None), *[slice(5, -5)] * ndim)].flatten(1).mean(1)
    assert torch.allclose(middle, shift, atol=0.15)


def test_smooth_costs_averages_over_a_neighbourhood():
    cost = torch.zeros(1, 1, 11, 11)
    cost[..., 5, 5] = 25
    expected = torch.zeros(11, 11)
    expected[3:8, 3:8] = 1
    assert torch.allclose(smooth_costs(cost)[0, 0], expected, atol=1e-5)


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
def test_large_displacements_do_not_fold(shape):
    model = SharedPyramid(len(shape))
    torch.nn.init.normal_(model.estimator.flow.weight, std=0.2)
    u = model(texture(shape), texture(shape))[-1]
    assert u.abs().max() > 0.6
    assert (ops.jacobian_determinant(u) > 0).all()


def test_cases_of_a_batch_are_independent():
    model = SharedPyramid(2)
    fixed, moving = (torch.cat([texture((24, 20)), texture((24, 20))]) for _ in range(2))
    together = model(fixed, moving)[-1]
    alone = torch.cat([model(f[None], m[None])[-1] for f, m in zip(fixed, moving, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_network_learns_to_register():
    pairs = SynthMorphPairs(
        "train", (24, 24), deformation=RandomDiffeomorphism((0.05, 0.05), (0.15, 0.3)), num_pairs=2
    )
    pair = torch.utils.data.default_collate([pairs[0], pairs[1]])
    model, error, missed = SharedPyramid(2), EndpointError(), []
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(20):
        missed.append(error(pair, apply_displacement(pair, model(pair["fixed"], pair["moving"]))))
        optimizer.zero_grad()
        missed[-1].backward()
        optimizer.step()
    assert missed[-1] < 0.8 * missed[0]
