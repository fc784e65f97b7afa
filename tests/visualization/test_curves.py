"""Training curves from TensorBoard logs."""

import pytest

from regnet_lab.errors import UserError
from regnet_lab.visualization import curves


def test_scalars_are_read_from_a_tensorboard_log(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "run" / "tensorboard")
    for step, value in enumerate([0.5, 0.6, 0.7]):
        writer.add_scalar("epoch", step, step, walltime=60.0 * step)
        writer.add_scalar("val/dice", value, step, walltime=60.0 * step)
    writer.close()
    minutes, values = curves.read_scalars(tmp_path / "run", "val/dice")
    assert minutes == pytest.approx([0, 1, 2])
    assert values == pytest.approx([0.5, 0.6, 0.7])
    (axes,) = curves.plot_training_curves([str(tmp_path / "run")], "val/dice").axes
    assert axes.get_lines()[0].get_ydata() == pytest.approx(values)
    with pytest.raises(UserError, match="val/tre"):
        curves.read_scalars(tmp_path / "run", "val/tre")
    with pytest.raises(UserError, match="has no TensorBoard log"):
        curves.read_scalars(tmp_path, "val/dice")
