"""Networks in files that run without the project give the same fields."""

import pytest
import torch

from regnet_lab.cli import register
from regnet_lab.errors import UserError
from regnet_lab.models import Diffeomorphic, VoxelMorph
from regnet_lab.registration.export import to_onnx, to_torch

SHAPES = pytest.mark.parametrize("shape", [(18, 20), (16, 12, 14)])


def network(ndim):
    torch.manual_seed(0)
    model = VoxelMorph(ndim, (4,), (4, 4), ((4,), (4,)), (4,), flow_deviation=0.1)
    return Diffeomorphic(model, steps=3)


@SHAPES
def test_torch_export_gives_the_same_field(shape, tmp_path):
    missed = to_torch(network(len(shape)), shape, tmp_path / "net.pt2")
    assert missed < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@SHAPES
def test_onnxruntime_gives_the_same_field(shape, tmp_path):
    reason = "onnx, onnxruntime and onnxscript come with the extra 'export'"
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=reason)
    import onnx

    model = network(len(shape)) if len(shape) == 2 else network(3).model
    missed = to_onnx(model, shape, tmp_path / "net.onnx")
    assert missed < 1e-3
    written = onnx.load(tmp_path / "net.onnx")
    assert {o.version for o in written.opset_import if o.domain in ("", "ai.onnx")} == {20}


class Undecided(torch.nn.Module):
    def forward(self, fixed, moving):
        return [fixed if fixed.sum() > 0 else moving]


def test_a_model_that_cannot_be_traced_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be exported"):
        to_torch(Undecided(), (9, 11), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_run_is_exported_by_the_command_for_its_own_grid(composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed("register", "export=net.pt2", "grid.shape=[9,11]", "model=voxelmorph", "+ndim=2")
    register.serve(cfg)
    fixed, moving = torch.rand(2, 1, 1, 9, 11)
    assert torch.export.load("net.pt2").module()(fixed, moving).shape == (1, 2, 9, 11)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["export=net.pt2"], "grid.shape"), (["export=net.zip", "grid.shape=[9,11]"], "net.zip")],
)
def test_a_mistake_in_exporting_is_named(arguments, named, composed):
    with pytest.raises(UserError, match=named):
        register.serve(composed("register", *arguments))
