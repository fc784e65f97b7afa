"""Operations on a whole pair: apply a displacement, swap its images, resize it."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from regnet_lab import ops
from regnet_lab.types import Pair, Registration


def apply_displacement(pair: Pair, fields: Sequence[Tensor]) -> Registration:
    """Warp the moving image by the last of ``fields``, resized to the fixed grid."""
    *coarse, last = fields
    u = ops.resize_field(last, pair["fixed"].shape[2:])
    return Registration([*coarse, u], ops.warp(pair["moving"], u))


def swap_pair(pair: Pair, _: Registration | None = None) -> Pair:
    """Return the pair with fixed and moving exchanged; a true displacement is dropped."""
    opposite = {"fixed": "moving", "moving": "fixed"}
    swapped: dict[str, Any] = {"spacing": pair["spacing"]}
    for key, value in pair.items():
        side, *part = key.split("_")
        if side in opposite:
            swapped["_".join([opposite[side], *part])] = value
    swapped["name"] = [f"{name} (swapped)" for name in pair["name"]]
    return cast(Pair, swapped)


def cycle_pair(pair: Pair, out: Registration) -> Pair:
    """Return the backward pair of a cycle: the warped image is registered to the moving image.

    Labels and mask of the new moving image are the warped ones of the old.  It has no landmarks,
    because mapping them would need the inverse of the displacement.
    """
    swapped: dict[str, Any] = {**swap_pair(pair), "moving": out.warped}
    for part in ("labels", "mask", "points"):
        swapped.pop(f"moving_{part}", None)
    u = out.displacement.detach()
    for part in ("labels", "mask"):
        if f"fixed_{part}" in swapped:
            swapped[f"moving_{part}"] = ops.warp(swapped[f"fixed_{part}"], u, "nearest", "zeros")
    return cast(Pair, swapped)


def resize_pair(pair: Pair, shape: Sequence[int]) -> Pair:
    """Resample a pair to another grid over the same field of view.

    Images are averaged or interpolated, labels and masks take the nearest voxel, landmarks and the
    true displacement are converted to the new voxels.
    """
    sizes = zip(shape, pair["fixed"].shape[2:], strict=True)
    scale = pair["spacing"].new_tensor([new / old for new, old in sizes])
    rules: dict[str, Callable[[Any, Sequence[int]], Any]] = {
        "fixed": ops.resize,
        "moving": ops.resize,
        "displacement": ops.resize_field,
        "spacing": lambda spacing, _: spacing / scale,
        "name": lambda name, _: name,
    }
    for side in ("fixed", "moving"):
        rules[f"{side}_labels"] = rules[f"{side}_mask"] = ops.resize_nearest
        rules[f"{side}_points"] = lambda points, _: (points + 0.5) * scale - 0.5
    return cast(Pair, {key: rules[key](value, shape) for key, value in pair.items()})
