"""Losses that look at a part of the image."""

from torch import Tensor

from regnet_lab.losses.base import Loss
from regnet_lab.pair import Pair, Registration

GRIDDED = ("fixed", "moving", "displacement")
ENDINGS = ("_labels", "_mask")


def bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask (B, 1, *spatial); everything if it is empty."""
    found = mask.flatten(0, 1).any(0)
    if not found.any():
        return tuple(slice(None) for _ in found.shape)
    ends = found.nonzero().aminmax(dim=0)
    return tuple(slice(a, b + 1) for a, b in zip(ends.min.tolist(), ends.max.tolist(), strict=True))


class Cropped(Loss):
    """A term looked at in the bounding box of the fixed masks of a batch; everywhere without one.

    For patches, whose mask is the box a network can answer on (:mod:`regnet_lab.data.patches`).
    Landmarks are left out.

    Args:
        term: The loss there.
        weight: Factor of the whole.
    """

    def __init__(self, term: Loss, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.term = term

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if "fixed_mask" not in pair:
            return self.term(pair, out)
        box = bounding_box(pair["fixed_mask"])
        inner = {
            key: value[..., *box] if key in GRIDDED or key.endswith(ENDINGS) else value  # type: ignore
            for key, value in pair.items()
            if not key.endswith("_points")
        }
        cropped = Registration([out.displacement[..., *box]], out.warped[..., *box])  # type: ignore[index]
        return self.term(Pair(**inner), cropped)  # type: ignore[typeddict-item]
