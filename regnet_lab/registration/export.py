"""A trained network in files that run without this project: ONNX and torch.export.

The exported function takes ``fixed`` and ``moving`` (1, 1, *grid) float32 and gives the last field
carried to their grid, (1, D, *grid) in its voxels.
"""

import logging
import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError

OPSET = 20
TOLERANCE = 1e-3  # voxels by which the exported network may differ


class LastField(nn.Module):
    """The displacement of a model on the images' own grid."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        return ops.resize_field(self.model(fixed, moving)[-1], fixed.shape[2:])


def example(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two images of noise, of a batch of one."""
    noise = np.random.default_rng(0).random((2, 1, 1, *shape), np.float32)
    return torch.from_numpy(noise[0]), torch.from_numpy(noise[1])


def to_torch(model: nn.Module, shape: tuple[int, ...], path: Path) -> float:
    """Write a model by torch.export (``.pt2``) for one grid.

    Returns:
        Voxels by which what was written differs from the model, at most, on noise.

    Raises:
        UserError: The model cannot be traced, as one that differentiates inside cannot.
    """
    network, images = LastField(model).eval().cpu(), example(shape)
    aside = path.with_name(f".{uuid4().hex}.pt2")
    try:
        with torch.no_grad():
            torch.export.save(torch.export.export(network, images), aside)
            again = torch.export.load(aside).module()(*images)
            return placed(aside, path, again.numpy(), network(*images).numpy())
    except (RuntimeError, OSError, torch._dynamo.exc.TorchDynamoException) as error:
        raise refused(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def to_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> float:
    """Write a model as ONNX, opset 20, for one grid, and run it by onnxruntime.

    Returns:
        Voxels by which onnxruntime's answer differs from the model's, at most, on noise.

    Raises:
        UserError: The extra ``export`` is not installed, or the model has no ONNX form.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "ONNX needs the extra 'export': pip install 'regnet-lab[export]'."
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network, images = LastField(model).eval().cpu(), example(shape)
    aside = path.with_name(f".{uuid4().hex}.onnx")
    try:
        with torch.no_grad():
            torch.onnx.export(
                network,
                images,
                aside,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                input_names=["fixed", "moving"],
                output_names=["displacement"],
            )
            session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
            inputs = {"fixed": images[0].numpy(), "moving": images[1].numpy()}
            (again,) = session.run(None, inputs)
            return placed(aside, path, again, network(*images).numpy())
    except (RuntimeError, OSError, torch.onnx.OnnxExporterError) as error:
        raise refused(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def placed(aside: Path, path: Path, again: np.ndarray, known: np.ndarray) -> float:
    """Put the file where it belongs if it gives the same answer.

    Raises:
        RuntimeError: It does not.
    """
    missed = float(np.abs(again - known).max())
    if not missed <= TOLERANCE:
        raise RuntimeError(f"its answer differs by {missed:.2g} voxels")
    os.replace(aside, path)
    return missed


def refused(path: Path, error: Exception) -> UserError:
    """One sentence of an exporter's many."""
    reason = " ".join(str(error).strip().split("\n")[0].split())[:200]
    return UserError(f"{path}: this model cannot be exported so ({reason}).")
