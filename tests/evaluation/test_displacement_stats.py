import numpy as np
import pandas as pd
import pytest
import torch

from regnet_lab import ops
from regnet_lab.data.synthesis.deformed_images import make_self_pair
from regnet_lab.errors import UserError
from regnet_lab.evaluation import displacement_stats
from regnet_lab.evaluation.displacement_stats import (
    DisplacementStatsTask,
    compute_displacement_stats,
    compute_wavelength,
)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((96, 80), (1.0, 2.0)), ((48, 40, 44), (1, 2, 1.5))]
)
def test_a_wave_has_its_wavelength_classes_and_determinant(shape, spacing):
    x = np.indices(shape)[0] * spacing[0]
    u = np.zeros((len(shape), *shape))
    u[-1] = 5 * np.sin(2 * np.pi * x / 24)  # along the last axis, changing along the first
    assert compute_wavelength(u, spacing) == pytest.approx(24, rel=0.05)
    voxels = torch.from_numpy(u / np.array(spacing).reshape(-1, *[1] * len(shape))).float()
    statistics = compute_displacement_stats(voxels, torch.tensor(spacing), [1.5, 4.0])
    length = np.abs(u[-1])
    assert statistics["largest_mm"] == pytest.approx(length.max(), rel=1e-5)
    assert statistics["mean_mm"] == pytest.approx(length.mean(), rel=1e-5)
    assert statistics["below_1.5_mm_percent"] == pytest.approx(100 * (length < 1.5).mean(), abs=0.1)
    assert statistics["above_percent"] == pytest.approx(100 * (length >= 4).mean(), abs=0.1)
    assert statistics["least_determinant"] == pytest.approx(1)  # a shear
    assert statistics["folds_percent"] == 0


def test_folds_are_counted():
    u = -1.5 * ops.identity_grid((10, 12), torch.zeros(1))[0]
    u[1] = 0
    assert compute_displacement_stats(u, torch.ones(2), [1.0])["folds_percent"] == 100


@pytest.mark.parametrize("shape", [(12, 14), (9, 10, 11)])
def test_the_task_writes_a_table_and_a_figure(shape, tmp_path, monkeypatch):
    draw_magnitude_maps = displacement_stats.draw_magnitude_maps

    def pair(number):
        item = make_self_pair(torch.rand(1, *shape), "a") | {
            "displacement": torch.rand(len(shape), *shape)
        }
        batch = {k: v[None] for k, v in item.items() if k != "name"}
        return {**batch, "name": [f"a{number}"]}

    torch.manual_seed(0)
    drawn = []
    monkeypatch.setattr(
        displacement_stats,
        "draw_magnitude_maps",
        lambda pairs: drawn.extend(pairs) or draw_magnitude_maps(pairs),
    )
    DisplacementStatsTask(str(tmp_path / "new"), [0.5, 1.0], 2).run(
        None, None, [pair(n) for n in range(3)]
    )
    assert [p["name"] for p in drawn] == [["a0"], ["a2"]]
    table = pd.read_csv(tmp_path / "new/displacement_stats.csv")
    assert table["case"].tolist() == ["a0", "a1", "a2"]
    assert (table.filter(like="percent").iloc[:, :3].sum(axis=1) - 100).abs().max() < 1e-3
    assert (tmp_path / "new/displacement_stats.png").stat().st_size > 1000
    bare = {k: v for k, v in pair(0).items() if k != "displacement"}
    with pytest.raises(UserError, match="a0: its displacement is unknown"):
        DisplacementStatsTask(str(tmp_path), [1.0], 1).run(None, None, [bare])
