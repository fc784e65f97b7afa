"""Export of a network to formats that run without this package: ONNX and torch.export.

The exported function takes ``fixed`` and ``moving`` (1, 1, *grid) float32 and returns the last
displacement field on their grid, (1, D, *grid) in its voxels.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import MissingPackageError, UserError

ONNX_OPSET = 20
MAX_ERROR = 1e-3  # voxels by which the exported network may differ


class FinalDisplacement(nn.Module):
    """The last field of a model on the grid of the images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Compute the displacement (B, D, *grid)."""
        return ops.resize_field(self.model(fixed, moving)[-1], fixed.shape[2:])


def create_example_images(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Create two images of uniform noise, (1, 1, *shape)."""
    noise = np.random.default_rng(0).random((2, 1, 1, *shape), np.float32)
    return torch.from_numpy(noise[0]), torch.from_numpy(noise[1])


@contextmanager
def temporary_export(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` in the end, without autograd.

    Raises:
        UserError: An error of the exporter, in one sentence; ``path`` is then unchanged.
    """
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        with torch.no_grad():
            yield temporary
        os.replace(temporary, path)
    except (
        RuntimeError,
        OSError,
        torch._dynamo.exc.TorchDynamoException,
        torch.onnx.OnnxExporterError,
    ) as error:
        reason = " ".join(str(error).strip().split("\n")[0].split())[:200]
        raise UserError(f"{path}: this model cannot be exported ({reason}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_equal(exported: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference in voxels; raise RuntimeError if it exceeds ``MAX_ERROR``."""
    error = float(np.abs(exported - expected).max())
    if not error <= MAX_ERROR:
        raise RuntimeError(f"the exported network differs by {error:.2g} voxels")
    return error


def export_torch(model: nn.Module, shape: tuple[int, ...], path: Path) -> float:
    """Export a model for one grid with torch.export (``.pt2``).

    Returns:
        Largest difference in voxels between the exported and the original model on noise.

    Raises:
        UserError: The model cannot be traced, for example because it computes gradients.
    """
    network, images = FinalDisplacement(model).eval().cpu(), create_example_images(shape)
    with temporary_export(path) as temporary:
        torch.export.save(torch.export.export(network, images), temporary)
        displacement = torch.export.load(temporary).module()(*images)
        return check_equal(displacement.numpy(), network(*images).numpy())


def export_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> float:
    """Export a model for one grid as ONNX and run it with onnxruntime.

    Returns:
        Largest difference in voxels between onnxruntime and the original model on noise.

    Raises:
        MissingPackageError: The extra ``export`` is not installed.
        UserError: The model has no ONNX form.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "ONNX needs the extra 'export': pip install 'regnet-lab[export]'."
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network, images = FinalDisplacement(model).eval().cpu(), create_example_images(shape)
    with temporary_export(path) as temporary:
        torch.onnx.export(
            network,
            images,
            temporary,
            dynamo=True,
            opset_version=ONNX_OPSET,
            external_data=False,
            verbose=False,
            input_names=["fixed", "moving"],
            output_names=["displacement"],
        )
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        inputs = {"fixed": images[0].numpy(), "moving": images[1].numpy()}
        (displacement,) = session.run(None, inputs)
        return check_equal(displacement, network(*images).numpy())
