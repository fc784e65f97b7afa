import itertools

import numpy as np
import pytest
import torch

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.synthesis.chessboard import Chessboards, make_chessboard
from regnet_lab.errors import UserError

shapes = pytest.mark.parametrize("shape", [(40, 33), (15, 22, 18)])


def generator(seed=0):
    return np.random.default_rng(seed)


def paint_chessboard(rng, shape, width):
    """Cell by cell in plain loops, from the same random numbers."""
    rng.integers(width, width, endpoint=True)
    levels = rng.integers(0, 255, (2, *[2] * len(shape)))
    counts = [n // width for n in shape]
    chessboard = np.zeros(shape)
    for cell in np.ndindex(*counts):
        grey = 0.0
        for corner in itertools.product((0, 1), repeat=len(shape)):
            weight = 1.0
            for i, c, n in zip(cell, corner, counts, strict=True):
                t = i / (n - 1)
                weight *= t if c else 1 - t
            grey += weight * levels[(sum(cell) % 2, *corner)]
        box = tuple(
            slice(i * width, None if i == n - 1 else (i + 1) * width)
            for i, n in zip(cell, counts, strict=True)
        )
        chessboard[box] = round(grey)
    return chessboard


@shapes
@pytest.mark.parametrize("width", [3, 7])
def test_cells_are_blended_from_the_corners_of_their_parity(shape, width):
    chessboard = make_chessboard(generator(5), shape, (width, width))
    assert chessboard.shape == (1, *shape)
    assert chessboard.dtype == torch.float32
    difference = np.abs(chessboard[0].numpy() * 255 - paint_chessboard(generator(5), shape, width))
    assert difference.max() <= 1.001  # a tie may be rounded either way
    assert (difference > 0.5).mean() < 0.02


@shapes
def test_intensities_are_integers_and_change_only_at_cell_borders(shape):
    for seed in range(5):
        chessboard = make_chessboard(generator(seed), shape, (4, 4))[0]
        levels = chessboard * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        assert levels.min() >= 0
        assert levels.max() <= 254
        for axis, n in enumerate(shape):
            steps = (
                chessboard.diff(dim=axis).abs().transpose(0, axis).flatten(1).sum(1).nonzero() + 1
            )
            edges = range(4, (n // 4) * 4, 4)
            assert set(steps.flatten().tolist()) <= set(edges)
            assert len(steps) > len(edges) / 2


def test_cells_take_every_width_of_the_range_and_no_other():
    make_chessboards = (make_chessboard(generator(seed), (60, 60), (6, 9))[0] for seed in range(40))
    firsts = [int((chessboard[0].diff().nonzero() + 1)[0]) for chessboard in make_chessboards]
    assert set(firsts) == {6, 7, 8, 9}


@shapes
def test_chessboards_depend_only_on_seed_split_and_index(shape):
    def make_chessboards(split="train", seed=0):
        data = Chessboards(split, len(shape), list(shape), (3, 5), num_images=3, seed=seed)
        return [data[i] for i in (2, 0, 1)]

    first, again = make_chessboards(), make_chessboards()
    assert all(torch.equal(a["moving"], b["moving"]) for a, b in zip(first, again, strict=True))
    assert first[0]["name"] == "chessboard-train-0002"
    assert first[0]["spacing"].tolist() == [1.0] * len(shape)
    all_boards = [
        *first,
        *make_chessboards("val"),
        *make_chessboards("test"),
        *make_chessboards(seed=1),
    ]
    for a, b in itertools.combinations(all_boards, 2):
        assert not torch.equal(a["moving"], b["moving"])


@pytest.mark.parametrize(("kind", "shape", "cells"), [("64", 64, (6, 9)), ("dense", 64, (3, 6))])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_single_number_applies_to_all_axes(kind, shape, cells, ndim):
    chessboard = Chessboards("val", ndim, shape, cells)[0]["moving"]
    assert chessboard.shape == (1, *[64] * ndim)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shape": [40, 40, 40]}, "give 2 numbers"),
        ({"shape": 17}, "no room for two cells of 9"),
        ({"cell_size": (0, 3)}, "no room"),
    ],
)
def test_invalid_settings_are_refused(options, word):
    with pytest.raises(UserError, match=word):
        Chessboards("train", 2, **options)


def test_an_index_past_the_end_raises_index_error():
    assert len(list(Chessboards("train", 2, num_images=2))) == 2


@pytest.mark.parametrize("ndim", [2, 3])
def test_configuration_makes_deformed_chessboards(ndim, composed):
    cfg = composed("train", "data=chessboard", f"ndim={ndim}", "data.dataset.images.shape=24")
    pair = instantiate_config(cfg.data).make_dataset("val")[0]
    assert pair["fixed"].shape == (1, *[24] * ndim)
    assert 0.05 < pair["displacement"].abs().max() < 12
    assert not torch.equal(pair["fixed"], pair["moving"])
