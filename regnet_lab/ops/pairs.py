"""The two values every part of the code speaks about: what goes into a model and what comes out."""

from collections.abc import Sequence

from torch import Tensor

from regnet_lab import ops
from regnet_lab.types import Pair, Registration


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
