"""Warping an image, value and gradient of the displacement, against VoxelMorph and MONAI.

``python benchmarks/warp.py``.  All three get the same displacement in voxels; the peers are the
classes a user calls.
"""

import harness
import torch
from torch import Tensor

from regnet_lab import ops

BYTES = 52  # a voxel in 3D: image, field, answer; then slope, field, image, gradient
monai = harness.peer("monai.networks.blocks", "Warp")
voxelmorph = harness.peer("voxelmorph.nn.modules", "SpatialTransformer")


def rows_of(shape: list[int], batch: int, args: harness.argparse.Namespace) -> list[harness.Row]:
    """Return the rows of one size, value alone and with gradient."""
    image = torch.rand(batch, 1, *shape, device=args.device)
    noise = torch.randn(batch, len(shape), *[n // 8 for n in shape], device=args.device)
    u = (3 * ops.resize(noise, shape)).requires_grad_()
    peers = {
        "VoxelMorph 0.3.4": voxelmorph and voxelmorph(),
        "MONAI": monai and monai("bilinear", "border"),
    }
    implementations = {"ours": lambda u: ops.warp(image, u)}
    implementations |= {name: lambda u, f=f: f(image, u) for name, f in peers.items() if f}
    size = f"{batch} x {' x '.join(map(str, shape))}"
    voxels = image.numel() / 1e9
    moved = BYTES * voxels * (len(shape) + 2) / 5

    def value(function: harness.Callable[[Tensor], Tensor]) -> harness.Callable[[], Tensor]:
        return lambda: function(u.detach())

    with_slope = {name: harness.with_gradient(f, u) for name, f in implementations.items()}
    alone = {name: value(f) for name, f in implementations.items()}
    limits = harness.limits(args.device)
    return [
        *harness.compare("warp", size, alone, args, harness.floor(limits, moved * 0.4)),
        *harness.compare("warp + gradient", size, with_slope, args, harness.floor(limits, moved)),
    ]


def main() -> None:
    """Measure every size, on one thread and on all cores."""
    args = harness.options(__doc__, cores=harness.os.cpu_count() or 1)
    sizes = [([64] * 3, 1), ([128] * 3, 1), ([256] * 2, 8)]
    if args.device.type == "cuda":
        sizes.append(([160, 192, 224], 1))
    rows = []
    for threads in sorted({args.threads, args.cores} if args.device.type == "cpu" else {1}):
        torch.set_num_threads(threads)
        for shape, batch in sizes:
            rows += rows_of(shape, batch, args)
    harness.save("warp", args, rows)


if __name__ == "__main__":
    main()
