"""General-purpose registration with the pretrained weights distributed with the project.

The weights of a network are a safetensors file with a JSON card beside it.  The card has the
file's SHA-256, the model's configuration, the number of voxels it was trained on and how it was
made; a file that differs from its card is not loaded.  ``python -m regnet_lab.cli.package_weights``
writes both from a training run.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.shared_pyramid import SharedPyramid
from regnet_lab.models.wrappers import SliceWiseModel
from regnet_lab.utils.paths import RESOURCE_ROOTS
from regnet_lab.utils.voxel_budget import enlarge_voxels

FOLDERS = tuple(root / "weights" for root in RESOURCE_ROOTS)
SUFFIX = ".safetensors"
NETWORKS = {"regnet_lab.models.SharedPyramid": SharedPyramid}  # a card may name
MIN_SIDE = 16  # voxels; shorter sides are not downsampled


def find_weights(name: str) -> Path:
    """Return the weights file of a network, in the repository or where it was installed."""
    for folder in FOLDERS:
        if (path := folder / f"{name}{SUFFIX}").is_file():
            return path
    raise UserError(
        f"{FOLDERS[0] / name}{SUFFIX} is missing: restore it from the repository, or use "
        "model=identity."
    )


def load_network(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of a weights file, and its card."""
    try:
        content = path.read_bytes()
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        sha256, settings = card["sha256"], dict(card["model"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} or its card {path.stem}.json cannot be read.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{path} is damaged or differs from its card {path.stem}.json; restore both files."
        )
    target = settings.pop("_target_", None)
    if target not in NETWORKS:
        allowed = ", ".join(NETWORKS)
        raise UserError(f"{path}: model {target} is refused; a card may name {allowed}.")
    try:
        model = NETWORKS[target](**settings)
        model.load_state_dict(safetensors.torch.load(content))
    except Exception as error:
        raise UserError(f"{path} does not hold the weights of the model on its card.") from error
    return model, card


def limit_voxels(shape: Sequence[int], voxels: int) -> list[int]:
    """Return a grid over the same field of view with about ``voxels`` at most.

    All sides shrink by one factor; sides do not shrink below ``MIN_SIDE``.

    >>> limit_voxels((256, 256, 10), 200_000)
    [141, 141, 10]
    """

    def shrink(factor: float) -> list[int]:
        return [max(round(n / factor), min(n, MIN_SIDE)) for n in shape]

    def count(factor: float) -> int:
        size = shrink(factor)
        return math.prod(size) if max(size) > MIN_SIDE else 0  # nothing left to shrink

    return shrink(enlarge_voxels(1.0, count, voxels))


class GeneralModel(nn.Module):
    """The pretrained networks, for images of any contrast, organ and size.

    A network registers images downsampled to a bounded number of voxels, then, if they have more,
    at a higher resolution, starting from the displacement so far.  Volumes of few thick slices are
    registered slice by slice by the 2D network, if it is loaded.

    Args:
        ndim: 2 or 3, the dimensions of the images; null: load both networks.
        voxel_factors: Voxels of each pass, relative to those the network was trained on.
        thin_volume_ratio: Register slice by slice if a side is shorter than the next by this
            factor.
    """

    def __init__(
        self,
        ndim: int | None = None,
        voxel_factors: Sequence[float] = (1.5, 4.0),
        thin_volume_ratio: float = 5.0,
    ) -> None:
        super().__init__()
        dimensions = [ndim] if ndim else [2, 3]
        loaded = {str(n): load_network(find_weights(f"general_{n}d")) for n in dimensions}
        self.networks = nn.ModuleDict({n: model for n, (model, _) in loaded.items()})
        self.voxels = {
            n: [int(factor * card["voxels"]) for factor in voxel_factors]
            for n, (_, card) in loaded.items()
        }
        self.thin_volume_ratio = thin_volume_ratio

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return one field for each pass."""
        sides = sorted(fixed.shape[2:])
        ndim = str(len(sides))
        if ndim == "3" and "2" in self.networks and self.thin_volume_ratio * sides[0] < sides[1]:
            return [self.register_slices(fixed, moving, fixed.shape[2:].index(sides[0]))]
        if ndim not in self.networks:
            raise RuntimeError(f"this is a network of {' or '.join(self.voxels)} dimensions")
        fields: list[Tensor] = []
        grids = [tuple(limit_voxels(fixed.shape[2:], voxels)) for voxels in self.voxels[ndim]]
        for shape in dict.fromkeys(grids):
            zero = fixed.new_zeros(len(fixed), len(sides), *shape)
            total = ops.resize_field(fields[-1], shape) if fields else zero
            warped = ops.warp(ops.resize(moving, shape), total)
            residual = self.networks[ndim](ops.resize(fixed, shape), warped)[-1]
            fields.append(ops.compose(ops.resize_field(residual, shape), total))
        return fields

    def register_slices(self, fixed: Tensor, moving: Tensor, axis: int) -> Tensor:
        """Return the field of volumes whose slices are orthogonal to ``axis``."""
        images = [image.movedim(axis + 2, -1) for image in (fixed, moving)]
        u = SliceWiseModel(self, slices_per_batch=8)(*images)[-1]
        order = [a for a in range(3) if a != axis] + [axis]
        return u[:, [order.index(a) for a in range(3)]].movedim(-1, axis + 2)
