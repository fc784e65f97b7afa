import pytest
import torch

from regnet_lab import ops
from regnet_lab.cli import make_toy_learn2reg
from regnet_lab.data.datasets import learn2reg_2020
from regnet_lab.data.preprocessing.grids import CropOrPad
from regnet_lab.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    shapes = {"task_02": (24, 20, 26), "task_03": (24, 20, 28)}
    monkeypatch.setattr(make_toy_learn2reg, "SHAPES", shapes)
    make_toy_learn2reg.write_toy_data(tmp_path, 5)
    return tmp_path


@pytest.mark.parametrize(("number", "shape"), [(2, (24, 20, 26)), (3, (24, 20, 28))])
def test_toy_data_are_read_like_the_published_data(number, shape, root):
    task = {2: learn2reg_2020.list_task02_pairs, 3: learn2reg_2020.list_task03_pairs}[number]
    prepare = CropOrPad(shape)
    folder = f"{root}/learn2reg2020/task_0{number}"
    train, val = (task(split, folder, prepare) for split in ("train", "val"))
    assert (len(train), len(val)) == {2: (4, 1), 3: (6, 2)}[number]
    pair = val[0]
    assert pair["fixed"].shape == (1, *shape)
    assert 0 <= pair["fixed"].min() < 0.2
    assert pair["fixed"].max() == 1
    if number == 3:
        assert set(pair["fixed_labels"].unique().tolist()) == set(range(14))
        assert "fixed_points" not in pair
        return
    assert "fixed_labels" not in pair
    for side in ("fixed", "moving"):  # landmarks lie in the mask of their own image
        points = pair[f"{side}_points"].T[None, :, :, None, None]
        inside = ops.sample_nearest(pair[f"{side}_mask"][None], points)
        assert inside.mean() > 0.9
    length = (pair["fixed_points"] - pair["moving_points"]).norm(dim=1)
    assert 0.2 < length.mean() < 8
    assert not torch.equal(pair["fixed"], pair["moving"])


def test_nothing_is_overwritten(root):
    with pytest.raises(UserError, match="task_02"):
        make_toy_learn2reg.write_toy_data(root, 5)


def test_too_few_cases_are_refused(tmp_path):
    with pytest.raises(UserError, match="cases=2"):
        make_toy_learn2reg.write_toy_data(tmp_path, 2)
    assert not list(tmp_path.iterdir())
