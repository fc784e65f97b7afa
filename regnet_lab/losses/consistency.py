"""Agreement of the way there with the way back."""

from torch import Tensor

from regnet_lab import ops


def inverse_consistency(there: Tensor, back: Tensor) -> Tensor:
    """Mean of |w|^2 over voxels, voxels^2, where w is the way there and back, in either order.

    w is compose(there, back) and compose(back, there): sums of fields, as often used instead, are
    zero for other fields than each other's inverse (Christensen and Johnson, IEEE TMI 2001).

    Args:
        there: (B, D, *spatial) displacement on the fixed grid.
        back: The same on the moving grid.
    """
    rounds = ops.compose(there, back), ops.compose(back, there)
    return (rounds[0].square().sum(1).mean() + rounds[1].square().sum(1).mean()) / 2
