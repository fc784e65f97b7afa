"""The two values every part of the code speaks about: what goes into a model and what comes out."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict, cast

from torch import Tensor

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


def update_pair(pair: Pair, **changes: object) -> Pair:
    """Return a copy of ``pair`` with some of its entries replaced or added."""
    return cast(Pair, {**pair, **changes})
