"""Types that the whole package shares: a pair of images, a registration, and what models, losses
and data sets must offer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, TypedDict, cast

from torch import Tensor

from regnet_lab.errors import UserError


class Pair(TypedDict):
    """A batch of image pairs on a common voxel grid; keys that the data does not offer are absent.

    A plain dict, so that PyTorch collates it and Lightning moves it to a device.
    """

    fixed: Tensor  # (B, 1, *spatial)
    moving: Tensor  # (B, 1, *spatial)
    spacing: Tensor  # (B, D) mm per voxel
    name: list[str]
    fixed_labels: NotRequired[Tensor]  # (B, 1, *spatial) integers, 0 is background
    moving_labels: NotRequired[Tensor]
    fixed_points: NotRequired[Tensor]  # (B, N, D) landmarks in voxels
    moving_points: NotRequired[Tensor]
    displacement: NotRequired[Tensor]  # (B, D, *spatial) true displacement, voxels
    fixed_mask: NotRequired[Tensor]  # (B, 1, *spatial) 1 where the image counts
    moving_mask: NotRequired[Tensor]


@dataclass
class Registration:
    """The output of a model for a pair.

    Args:
        fields: Displacement fields, coarse to fine, each in voxels of its own grid.
        warped: The moving image warped by the last field, (B, 1, *spatial).
    """

    fields: list[Tensor]
    warped: Tensor

    @property
    def displacement(self) -> Tensor:
        """Return the last displacement field, (B, D, *spatial), in voxels of the fixed grid."""
        return self.fields[-1]


class Model(Protocol):
    """A registration model: any ``nn.Module`` with this call."""

    def __call__(self, fixed: Tensor, moving: Tensor) -> Sequence[Tensor]:
        """Return displacement fields, coarse to fine.

        Args:
            fixed: (B, 1, *spatial).
            moving: (B, 1, *spatial).

        Returns:
            Fields (B, D, *grid), each in voxels of its own grid over the images' field of view;
            the last one is the result.
        """
        ...


class Loss(Protocol):
    """A weighted term of the training objective."""

    weight: float

    def __call__(self, pair: Pair, out: Registration) -> Tensor:
        """Return the unweighted loss of a batch, a scalar."""
        ...


class PairDataset(Protocol):
    """A data set of image pairs, each with batch size 1 left out of its tensors."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return a pair as in :class:`Pair`, without the batch axis."""
        ...


def require(pair: Pair, key: str, caller: object) -> Tensor:
    """Return ``pair[key]``.

    Raises:
        UserError: The data set does not offer it; the message names the class of ``caller``.
    """
    if key not in pair:
        raise UserError(
            f"{type(caller).__name__} needs '{key}', which {pair['name'][0]} does not have: "
            "choose data that offers it or remove the term from the loss."
        )
    return cast(dict[str, Tensor], pair)[key]


def update_pair(pair: Pair, **changes: object) -> Pair:
    """Return a copy of ``pair`` with some of its entries replaced or added."""
    return cast(Pair, {**pair, **changes})
