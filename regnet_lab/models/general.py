"""The networks that come with the project: a file of tensors each, and a card of what it is.

``python -m regnet_lab.shipped outputs/<run> weights/general_3d.pt`` makes both of a run.  The card,
``general_3d.json``, has the file's SHA-256, the model's configuration, the voxels it was trained on
and how it was made; a file that its card does not know is not loaded.
"""

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.config.compose import ROOTS
from regnet_lab.config.instantiate import build
from regnet_lab.errors import UserError
from regnet_lab.models import SliceWise

PREFIX = "model."  # of the model's weights in a checkpoint


FOLDERS = tuple(root / "weights" for root in ROOTS)


FEWEST = 16  # voxels that a short axis keeps when images are made smaller


def shipped(name: str) -> Path:
    """The file of a network, in the repository or where it was installed.

    Raises:
        UserError: It is in neither.
    """
    for folder in FOLDERS:
        if (folder / f"{name}.pt").is_file():
            return folder / f"{name}.pt"
    raise UserError(
        f"{FOLDERS[0] / name}.pt is missing: fetch the repository again, or use model=identity."
    )


def load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a file, and its card.

    Raises:
        UserError: One of the two is missing or damaged, or they do not belong together.
    """
    try:
        content = path.read_bytes()
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        known = card["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: it or its card {path.stem}.json cannot be read.") from error
    if hashlib.sha256(content).hexdigest() != known:
        raise UserError(
            f"{path}: is damaged or another than its card {path.stem}.json describes; "
            "fetch both again."
        )
    model = build(OmegaConf.create(card["model"]))
    try:
        model.load_state_dict(torch.load(io.BytesIO(content), "cpu", weights_only=True))
    except Exception as error:
        raise UserError(f"{path}: does not hold the weights of the model on its card.") from error
    return model, card


def bounded(shape: Sequence[int], voxels: int) -> list[int]:
    """A grid over the same field of view of about ``voxels`` at most, all sides made smaller by
    one factor; a side of few voxels keeps them.
    """
    size, factor = list(shape), 1.0
    while math.prod(size) > voxels and max(size) > FEWEST:
        factor *= 1.02
        size = [max(round(n / factor), min(n, FEWEST)) for n in shape]
    return size


class General(nn.Module):
    """The shipped networks for images of any contrast, organ and size.

    A network looks at images averaged to a bounded number of voxels, and again at more of them if
    they have more, the moving one warped by what was found before.  Volumes of few thick slices go
    slice by slice through the network of slices, if there is one.

    Args:
        ndim: 2 or 3, of the images to come; null: both, and a network for each.
        growth: Voxels a network is given each time, over those it was trained on.
        thin: A volume has few slices if a side is that many times shorter than the next.

    Raises:
        UserError: A file is missing or damaged.
    """

    def __init__(
        self, ndim: int | None = None, growth: Sequence[float] = (1.5, 4.0), thin: float = 5.0
    ) -> None:
        super().__init__()
        loaded = {str(n): load(shipped(f"general_{n}d")) for n in ([ndim] if ndim else (2, 3))}
        self.networks = nn.ModuleDict({n: model for n, (model, _) in loaded.items()})
        self.voxels = {
            n: [int(factor * card["voxels"]) for factor in growth]
            for n, (_, card) in loaded.items()
        }
        self.thin = thin

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Raises RuntimeError for images of other dimensions than those to come."""
        sides = sorted(fixed.shape[2:])
        ndim = str(len(sides))
        if ndim == "3" and "2" in self.networks and self.thin * sides[0] < sides[1]:
            return [self.slice_wise(fixed, moving, fixed.shape[2:].index(sides[0]))]
        if ndim not in self.networks:
            raise RuntimeError(f"this is a network of {' or '.join(self.voxels)} dimensions")
        fields: list[Tensor] = []
        grids = [tuple(bounded(fixed.shape[2:], voxels)) for voxels in self.voxels[ndim]]
        for shape in dict.fromkeys(grids):
            still = fixed.new_zeros(len(fixed), len(sides), *shape)
            before = ops.resize_field(fields[-1], shape) if fields else still
            near = ops.warp(ops.resize(moving, shape), before)
            found = self.networks[ndim](ops.resize(fixed, shape), near)[-1]
            fields.append(ops.compose(ops.resize_field(found, shape), before))
        return fields

    def slice_wise(self, fixed: Tensor, moving: Tensor, axis: int) -> Tensor:
        """The field of volumes whose slices lie across an axis."""
        last = [image.movedim(axis + 2, -1) for image in (fixed, moving)]
        u = SliceWise(self, chunk=8)(*last)[-1]
        order = [a for a in range(3) if a != axis] + [axis]
        return u[:, [order.index(a) for a in range(3)]].movedim(-1, axis + 2)
