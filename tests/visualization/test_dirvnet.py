"""Figures of DIRV-Net and of its learned parameters."""

from functools import partial

import numpy as np
import pytest
import torch

from regnet_lab.errors import UserError
from regnet_lab.models import DIRVNet
from regnet_lab.models.field_of_experts import FieldOfExperts, PiecewiseLinear
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.visualization import dirvnet, field_of_experts
from tests.helpers.images import smooth
from tests.helpers.pairs import make_unrolled_case


def test_potentials_are_the_integrals_of_activations():
    expert = FieldOfExperts(2, 2, 3, 3, partial(PiecewiseLinear, init_std=0.0, init_slope=2.0))
    x, phi, rho = field_of_experts.evaluate_activations(expert)
    np.testing.assert_allclose(phi, np.tile(2 * x, (3, 1)), atol=1e-5)
    np.testing.assert_allclose(rho, np.tile(x**2, (3, 1)), atol=1e-3)


def test_the_smallest_gradients():
    values = torch.tensor([4.0, -1.0, 0.5, -3.0])
    assert field_of_experts.select_smallest(values).abs().sort().values.tolist() == [0.5, 1.0, 3.0]


def test_gradients_and_weights_are_grouped_by_kind():
    model = DIRVNet(2, levels=2, units=2, filters=3, momentum=0.5)
    model(smooth((12, 14), 1), smooth((12, 14), 2))[-1].sum().backward()
    sizes = {kind: len(values) for kind, values in field_of_experts.collect_weights(model).items()}
    assert sizes == {
        "step sizes": 4,
        "momentum": 4,
        "data: filters": 4 * 3 * 49,
        "data: activations": 4 * 3 * 24,
        "regularisers: filters": 4 * 2 * 3 * 25,
        "regularisers: activations": 4 * 2 * 3 * 24,
    }
    assert {
        kind: len(values) for kind, values in field_of_experts.collect_gradients(model).items()
    } == sizes
    assert all(slopes.any() for slopes in field_of_experts.collect_gradients(model).values())


BATCH = {"images", "displacements", "vectors", "unit_images", "unit_displacements"}


@pytest.mark.parametrize(("shape", "has_displacement"), [((9, 11), False), ((7, 8, 9), True)])
def test_a_batch_is_drawn_with_and_without_the_true_field(shape, has_displacement):
    pair, _ = make_unrolled_case(shape)
    if not has_displacement:
        del pair["displacement"]
    model = DIRVNet(len(shape), levels=2, units=2, filters=2)
    out = apply_displacement(pair, model(pair["fixed"], pair["moving"]))
    figures = dirvnet.draw_figures(torch.nn.Identity(), pair, out, {}, [])
    assert set(figures) == {f"batch/{name}" for name in BATCH}
    for figure in figures.values():
        figure.set_layout_engine(None)  # it takes a second
        figure.canvas.draw()
    rows = 3 * len(shape) if has_displacement else len(shape)
    drawn = [a for a in figures["batch/displacements"].axes if a.images and a.get_ylabel()]
    assert len(drawn) >= rows
    assert len(figures["batch/vectors"].axes) == (3 if has_displacement else 1)


def test_pairs_of_different_sizes_are_not_collated():
    pairs = [{"fixed": torch.zeros(1, n, 5)} for n in (4, 6)]
    assert len(dirvnet.collate_first_pairs(pairs, 1)["fixed"]) == 1
    with pytest.raises(UserError, match="cases=1"):
        dirvnet.collate_first_pairs(pairs, 2)
