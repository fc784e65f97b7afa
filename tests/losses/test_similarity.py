"""The image similarity term."""

import torch

from regnet_lab import losses, ops
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement
from tests.helpers.losses import SHAPES, make_complete_pair, smooth


@SHAPES
def test_similarity_uses_the_warped_image_and_the_mask(shape):
    pair, u = make_complete_pair(shape, batch=2), smooth(shape, len(shape), 2, seed=7)
    out = apply_displacement(pair, [u])
    squares = (pair["fixed"] - ops.warp(pair["moving"], u)).square()
    whole = losses.Similarity(similarity.mean_squares)(pair, out)
    torch.testing.assert_close(whole, squares.mean())
    inside = losses.Similarity(similarity.mean_squares, masked=True)(pair, out)
    cases = zip(squares, pair["fixed_mask"] > 0, strict=True)
    expected = torch.stack([square[at].mean() for square, at in cases]).mean()
    torch.testing.assert_close(inside, expected)
