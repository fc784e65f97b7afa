"""The two values every part of the code speaks about: what goes into a model and what comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torch import Tensor

from regnet_lab import ops
from regnet_lab.errors import UserError


class Pair(TypedDict):
    """A batch of image pairs on a common voxel grid; a key the data cannot offer is absent.

    Being a plain dict, it is collated and moved to a device by PyTorch and Lightning unaided.
    """

    fixed: Tensor  # (B, 1, *spatial)
    moving: Tensor  # (B, 1, *spatial)
    spacing: Tensor  # (B, D) millimetres per voxel
    name: list[str]
    fixed_labels: NotRequired[Tensor]  # (B, 1, *spatial) integers, 0 is background
    moving_labels: NotRequired[Tensor]
    fixed_points: NotRequired[Tensor]  # (B, N, D) voxels
    moving_points: NotRequired[Tensor]
    displacement: NotRequired[Tensor]  # (B, D, *spatial) known answer, voxels
    fixed_mask: NotRequired[Tensor]  # (B, 1, *spatial) 1 where the image counts
    moving_mask: NotRequired[Tensor]


@dataclass
class Registration:
    """What a model made of a pair."""

    fields: list[Tensor]  # displacements, coarse to fine, each in voxels of its own grid
    warped: Tensor  # moving image seen through the last displacement

    @property
    def displacement(self) -> Tensor:
        """(B, D, *spatial) on the fixed grid, in its voxels."""
        return self.fields[-1]


def need(pair: Pair, key: str, who: object) -> Tensor:
    """The pair's ``key``.

    Raises:
        UserError: The data set does not offer it.
    """
    if key not in pair:
        raise UserError(
            f"{type(who).__name__} needs '{key}', which {pair['name'][0]} does not have: "
            "choose data that offers it or remove the term from the loss."
        )
    return pair[key]  # type: ignore[literal-required]


def registered(pair: Pair, fields: Sequence[Tensor]) -> Registration:
    """What ``fields`` make of a pair: the last one, carried to the fixed grid, is applied."""
    *coarse, last = fields
    u = ops.resize_field(last, pair["fixed"].shape[2:])
    return Registration([*coarse, u], ops.warp(pair["moving"], u))


def swapped(pair: Pair, _: Registration | None = None) -> Pair:
    """The pair with its sides exchanged; what displaces it then is not known."""
    other = {"fixed": "moving", "moving": "fixed"}
    back: dict[str, object] = {}
    for key, value in pair.items():
        side, *kind = key.split("_")
        if side in other:
            back["_".join([other[side], *kind])] = value
    names = [f"the way back of {name}" for name in pair["name"]]
    return Pair(**back, spacing=pair["spacing"], name=names)  # type: ignore[typeddict-item]


def returned(pair: Pair, out: Registration) -> Pair:
    """The way back of a cycle: bring the warped image, labels and mask home to the moving ones.

    Where points lie in the warped image, only the inverse of the displacement would tell.
    """
    back = swapped(pair)
    back["moving"] = out.warped
    for kind in ("labels", "mask", "points"):
        back.pop(f"moving_{kind}", None)  # type: ignore[misc]
    u = out.displacement.detach()
    if "fixed_labels" in back:
        back["moving_labels"] = ops.warp(back["fixed_labels"], u, "nearest", "zeros")
    if "fixed_mask" in back:
        back["moving_mask"] = ops.warp(back["fixed_mask"], u, "nearest", "zeros")
    return back


def resized(pair: Pair, shape: Sequence[int]) -> Pair:
    """The same pair on another grid: images averaged, labels and masks nearest, points and known
    displacement in the new voxels.
    """
    scale = pair["spacing"].new_tensor(
        [new / old for new, old in zip(shape, pair["fixed"].shape[2:], strict=True)]
    )
    rules = {
        "fixed": ops.resize,
        "moving": ops.resize,
        "displacement": ops.resize_field,
        "spacing": lambda spacing, _: spacing / scale,
        "name": lambda name, _: name,
    }
    for side in ("fixed", "moving"):
        rules[f"{side}_labels"] = rules[f"{side}_mask"] = ops.resize_nearest
        rules[f"{side}_points"] = lambda points, _: (points + 0.5) * scale - 0.5
    return Pair(**{key: rules[key](value, shape) for key, value in pair.items()})  # type: ignore
