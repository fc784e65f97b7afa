"""Instance optimization of a field and of a network."""

import numpy as np
import pytest
import torch

from regnet_lab.errors import UserError
from regnet_lab.losses import Similarity
from regnet_lab.models import Identity, VoxelMorph
from regnet_lab.ops.similarity import mean_squares
from regnet_lab.registration.inference_grid import InferenceGrid
from regnet_lab.registration.instance_optimization import (
    FieldOptimizer,
    NetworkOptimizer,
    compute_level_shapes,
    restrict_mask_to_overlap,
)
from regnet_lab.types import Pair
from tests.helpers.geometry import affine_matrix
from tests.helpers.registration import make_cases, make_pipeline


def test_a_time_limit_and_a_proximal_weight_keep_the_field_near_the_models():
    fixed, moving = make_cases(2, affine_matrix((0, 0, 0), (1, 1, 1), (3, 0, 0)))
    losses = {"similarity": Similarity(mean_squares, weight=5e-5)}
    pair = make_pipeline().build_pair(fixed, moving, InferenceGrid().compute_grid(fixed), "a")
    free, proximal, stopped = (
        FieldOptimizer(losses, steps=[20], **options)(pair, Identity())
        for options in ({}, {"proximal_weight": 1e5}, {"max_seconds": 0})
    )
    assert not stopped.any()
    assert 0 < proximal.abs().mean() < 0.1 * free.abs().mean()


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
def test_the_mask_is_restricted_to_the_overlap_of_the_images(shape):
    ndim, generator = len(shape), torch.Generator().manual_seed(0)
    fixed, moving = (torch.rand(2, 1, 1, *shape, generator=generator) > 0.3).unbind()
    shift = [2, -1, 3][:ndim]
    u = torch.tensor(shift).float().view(1, -1, *[1] * ndim).expand(1, -1, *shape)
    restricted = restrict_mask_to_overlap(Pair(fixed_mask=fixed, moving_mask=moving), u)
    mask = restricted["fixed_mask"][0, 0]
    for x in np.ndindex(shape):
        y = tuple(np.add(x, shift))
        inside = all(0 <= i < n for i, n in zip(y, shape, strict=True))
        assert mask[x] == (fixed[(0, 0, *x)] and inside and moving[(0, 0, *y)])
    assert mask.any()
    assert restrict_mask_to_overlap(Pair(fixed_mask=fixed), u)["fixed_mask"] is fixed


def test_a_network_is_tuned_on_a_copy():
    fixed, moving = make_cases(2, affine_matrix((0, 0, 0), (1, 1, 1), (2, 0, 0)))
    torch.manual_seed(0)
    model = VoxelMorph(2, (), (4, 4), ((4,), (4,)), ())
    before = {name: w.clone() for name, w in model.state_dict().items()}
    losses = {"similarity": Similarity(mean_squares)}
    pair = make_pipeline(intensity=lambda a: a / 1000).build_pair(
        fixed, moving, InferenceGrid().compute_grid(fixed), "a"
    )
    with torch.no_grad():
        untuned = model(pair["fixed"], pair["moving"])[-1]
    tuned = NetworkOptimizer(losses, steps=5, lr=1e-2)(pair, model)
    assert not torch.allclose(tuned, untuned)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    with pytest.raises(UserError, match="run="):
        NetworkOptimizer(losses)(pair, Identity())


def test_levels_halve_and_thick_slices_are_kept():
    assert compute_level_shapes((64, 64, 10), (1, 1, 4), 3, 10**6) == [
        [16, 16, 10],
        [32, 32, 10],
        [64, 64, 10],
    ]
    (only,) = compute_level_shapes((64, 64, 64), (1, 1, 1), 1, 5000)
    assert 4000 < np.prod(only) <= 5000
