"""Export of a network to formats that run without this package: ONNX and torch.export.

The exported function takes ``fixed`` and ``moving`` (1, 1, *grid) float32 and returns the last
displacement field on their grid, (1, D, *grid) in its voxels.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import MissingPackageError, UserError

ONNX_OPSET = 20
MAX_ERROR = 1e-3  # voxels by which the exported network may differ
Images = tuple[Tensor, Tensor]


class FinalDisplacement(nn.Module):
    """The last field of a model on the grid of the images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Compute the displacement (B, D, *grid)."""
        return ops.resize_field(self.model(fixed, moving)[-1], fixed.shape[2:])


def _export(
    model: nn.Module,
    shape: tuple[int, ...],
    path: Path,
    save_and_run: Callable[[nn.Module, Images, Path], np.ndarray],
) -> float:
    """Export a model for one grid and return its largest error on uniform noise, in voxels.

    ``save_and_run`` writes a network, traced for two images, to a file and returns the displacement
    that this file's network computes for them.  The file replaces ``path`` if all goes well.
    """
    network = FinalDisplacement(model).eval().cpu()
    fixed, moving = np.random.default_rng(0).random((2, 1, 1, *shape), np.float32)
    images = torch.from_numpy(fixed), torch.from_numpy(moving)
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        with torch.no_grad():
            exported = save_and_run(network, images, temporary)
            error = float(np.abs(exported - network(*images).numpy()).max())
        if not error <= MAX_ERROR:
            raise RuntimeError(f"the exported network differs by {error:.2g} voxels")
        os.replace(temporary, path)
    except (
        RuntimeError,
        OSError,
        torch._dynamo.exc.TorchDynamoException,
        torch.onnx.OnnxExporterError,
    ) as failure:
        reason = " ".join(str(failure).strip().split("\n")[0].split())[:200]
        raise UserError(f"{path}: this model cannot be exported ({reason}).") from failure
    finally:
        temporary.unlink(missing_ok=True)
    return error


def export_torch(model: nn.Module, shape: tuple[int, ...], path: Path) -> float:
    """Export a model for one grid with torch.export (``.pt2``); return its largest error in voxels.

    A model that computes gradients, for example, cannot be traced.
    """

    def save_and_run(network: nn.Module, images: Images, file: Path) -> np.ndarray:
        torch.export.save(torch.export.export(network, images), file)
        return torch.export.load(file).module()(*images).numpy()

    return _export(model, shape, path, save_and_run)


def export_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> float:
    """Export a model for one grid as ONNX; return the largest error of onnxruntime in voxels."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "ONNX needs the extra 'export': run pip install '.[export]' in the project folder."
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def save_and_run(network: nn.Module, images: Images, file: Path) -> np.ndarray:
        torch.onnx.export(
            network,
            images,
            file,
            dynamo=True,
            opset_version=ONNX_OPSET,
            external_data=False,
            verbose=False,
            input_names=["fixed", "moving"],
            output_names=["displacement"],
        )
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        fixed, moving = (image.numpy() for image in images)
        return session.run(None, {"fixed": fixed, "moving": moving})[0]

    return _export(model, shape, path, save_and_run)
