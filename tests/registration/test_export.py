"""Exported networks give the same fields."""

import sys

import pytest
import torch

from regnet_lab.cli import register
from regnet_lab.errors import MissingPackageError, UserError
from regnet_lab.models import DiffeomorphicModel, VoxelMorph
from regnet_lab.registration.export import export_onnx, export_torch

SHAPES = pytest.mark.parametrize("shape", [(18, 20), (16, 12, 14)])


def make_network(ndim):
    torch.manual_seed(0)
    model = VoxelMorph(ndim, (4,), (4, 4), ((4,), (4,)), (4,), flow_init_std=0.1)
    return DiffeomorphicModel(model, integration_steps=3)


@SHAPES
def test_torch_export_gives_the_same_field(shape, tmp_path):
    error = export_torch(make_network(len(shape)), shape, tmp_path / "net.pt2")
    assert error < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@SHAPES
def test_onnxruntime_gives_the_same_field(shape, tmp_path):
    reason = "onnx, onnxruntime and onnxscript come with the extra 'export'"
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=reason)
    import onnx

    model = make_network(len(shape)) if len(shape) == 2 else make_network(3).model
    error = export_onnx(model, shape, tmp_path / "net.onnx")
    assert error < 1e-3
    exported = onnx.load(tmp_path / "net.onnx")
    assert {o.version for o in exported.opset_import if o.domain in ("", "ai.onnx")} == {20}


def test_missing_onnx_is_named_with_its_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[export\]'"):
        export_onnx(make_network(2), (9, 11), tmp_path / "net.onnx")


class DataDependent(torch.nn.Module):
    def forward(self, fixed, moving):
        return [fixed if fixed.sum() > 0 else moving]


def test_a_model_that_cannot_be_traced_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be exported"):
        export_torch(DataDependent(), (9, 11), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_network_for_a_grid(composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed("register", "export=net.pt2", "grid.shape=[9,11]", "model=voxelmorph", "+ndim=2")
    register.run_register(cfg)
    fixed, moving = torch.rand(2, 1, 1, 9, 11)
    assert torch.export.load("net.pt2").module()(fixed, moving).shape == (1, 2, 9, 11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["export=net.pt2"], "grid.shape"), (["export=net.zip", "grid.shape=[9,11]"], "net.zip")],
)
def test_faulty_export_settings_are_named(arguments, message, composed):
    with pytest.raises(UserError, match=message):
        register.run_register(composed("register", *arguments))
