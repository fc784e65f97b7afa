"""The cost volume, value and gradients, against a loop over offsets and against unfolding.

``python benchmarks/cost_volume.py``: 3D, radius 1 to 4, 16 channels.
"""

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from regnet_lab.ops.cost_volume import compute_reference_cost_volume, cost_volume

SIZES = {1: 40, 2: 40, 3: 32, 4: 24}  # voxels along each axis, by radius
CHANNELS = 16
UNFOLDED_GB = 0.5  # windows larger than this are not stored for the comparison


def unfolded(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """Contract all windows of the moving map with the fixed map by einsum."""
    windows = F.pad(moving, [radius] * 6)
    for axis in (2, 3, 4):
        windows = windows.unfold(axis, 2 * radius + 1, 1)  # (B, C, *spatial, *offsets) in the end
    cost = torch.einsum("bcxyz,bcxyzijk->bijkxyz", fixed, windows) / fixed.shape[1]
    return cost.flatten(1, 3)


def main() -> None:
    """Measure every radius; the bound is three products per voxel, channel and offset."""
    args = harness.options(__doc__, radius=list(SIZES))
    limits, rows = harness.limits(args.device), []
    for radius in args.radius:
        grid = [SIZES[radius]] * 3
        maps = [torch.randn(1, CHANNELS, *grid, device=args.device) for _ in range(2)]
        inputs = [each.requires_grad_() for each in maps]
        products = maps[0].numel() * (2 * radius + 1) ** 3 / 1e9
        functions = {"ours": cost_volume, "loop": compute_reference_cost_volume}
        if 4 * products < UNFOLDED_GB:
            functions["unfold + einsum"] = unfolded
        forms = {
            name: harness.with_gradient(lambda f, m, form=form, r=radius: form(f, m, r), *inputs)
            for name, form in functions.items()
        }
        size = f"{SIZES[radius]}^3, radius {radius}"
        limit = harness.floor(limits, gigaflop=6 * products)
        rows += harness.compare("cost volume + gradient", size, forms, args, limit)
    harness.save("cost_volume", args, rows, limits=limits)


if __name__ == "__main__":
    main()
