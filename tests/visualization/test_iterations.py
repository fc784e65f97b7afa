"""Energy curves over the iterations of a model."""

import numpy as np
import pytest
import torch

from regnet_lab import ops
from regnet_lab.models import GraDIRN, SliceWiseModel
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.types import Pair
from regnet_lab.visualization import iterations
from regnet_lab.visualization.iterations import summarize_iteration_sweep

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def images(shape, batch=1, seed=0):
    """Two smooth images, their intensities between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, batch, 1, *[(n + 1) // 2 for n in shape], generator=generator)
    return [ops.resize(image, shape) for image in coarse]


def pair_of(shape, batch=1):
    fixed, moving = images(shape, batch)
    names = [f"case{k}" for k in range(batch)]
    return Pair(fixed=fixed, moving=moving, spacing=torch.ones(batch, len(shape)), name=names)


def made(shape, seed=0, **options):
    torch.manual_seed(seed)
    return GraDIRN(len(shape), **{"flow_init_std": 0.05, "channels": 4, **options})


@SMALL
def test_energy_curve_equals_a_loop_over_cases(shape):
    pair = pair_of(shape, batch=2)
    model = made(shape, iterations=(1, 2, 1)).eval()
    with iterations.record_learned_steps(model) as steps:
        fields = apply_displacement(pair, model(pair["fixed"], pair["moving"])).fields
    rows = iterations.compute_energy_curve(pair, fields, similarity.mean_squares)
    rows = iterations.add_learned_steps(rows, steps)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert "learned_step" not in rows[0]
    fixed, moving = pair["fixed"], pair["moving"]
    assert rows[0]["energy"] == pytest.approx(float((fixed - moving).square().mean()))
    for row, u in zip(rows[1:], fields, strict=True):
        assert row["level"] == " x ".join(map(str, u.shape[2:]))
        f, m = (ops.resize(image, u.shape[2:]) for image in (fixed, moving))
        assert row["level_energy"] == pytest.approx(
            float((f - ops.warp(m, u)).square().mean().detach())
        )
        whole = ops.resize_field(u, shape)
        error = (fixed - ops.warp(moving, whole)).square().mean()
        assert row["energy"] == pytest.approx(error.item())
        slopes = np.stack(np.gradient(whole.detach().numpy(), axis=range(2, whole.ndim)))
        assert row["roughness"] == pytest.approx((slopes**2).sum((0, 2)).mean(), rel=1e-4)

    u = torch.zeros_like(fields[0])
    block = model.levels[0][0]
    f, m = (ops.resize(image, u.shape[2:]) for image in (fixed, moving))
    learned = block.regulariser(torch.cat([u, f, m], 1))
    assert rows[1]["learned_step"] == pytest.approx(float(learned.square().sum(1).mean().sqrt()))


def test_learned_steps_are_averaged_over_chunks():
    rows = [{"iteration": k} for k in range(3)]
    rows_with_steps = iterations.add_learned_steps(rows, [1.0, 2.0, 3.0, 6.0])
    assert [row.get("learned_step") for row in rows_with_steps] == [None, 2.0, 4.0]
    assert iterations.add_learned_steps(rows, []) == rows
    assert iterations.add_learned_steps(rows, [1.0]) == rows


def test_image_energy_is_that_of_the_model():
    model = SliceWiseModel(GraDIRN(2, energy=similarity.global_ncc))
    assert iterations.find_image_energy(model) is similarity.global_ncc
    assert iterations.find_image_energy(torch.nn.Identity()) is similarity.mean_squares


def test_curves_are_means_over_cases():
    rows = [
        {"method": "a", "case": case, "iteration": k, "level": "2 x 2", "energy": value}
        for case, values in (("x", [4.0, 2.0]), ("y", [2.0, 0.0]))
        for k, value in enumerate(values)
    ]
    curve = iterations.average_energy_curves(rows)
    assert curve["energy"].tolist() == [3.0, 1.0]
    assert curve["cases"].tolist() == [2, 2]
    records = [
        {"iterations": n, "dice": d, "dice/1": 0.0} for n, d in ((9, 0.5), (9, 0.7), (18, 1))
    ]
    steps = summarize_iteration_sweep(records, "m")
    assert steps["dice"].tolist() == pytest.approx([0.6, 1.0])
    assert steps["dice_std"].tolist() == pytest.approx([0.1, 0.0])
    assert "dice/1" not in steps
