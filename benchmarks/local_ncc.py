"""Local normalised correlation in 9^D windows, value and gradient, against MONAI and neurite.

``python benchmarks/local_ncc.py``.  The bound counts the multiplications of our implementation,
eight box sums by blocks of bands, at the speed of a large matrix product.
"""

import harness
import torch

from regnet_lab.ops import box_filter, similarity

WINDOW = 9
SUMS = 8
monai = harness.peer("monai.losses", "LocalNormalizedCrossCorrelationLoss")
neurite = harness.peer("neurite.nn.modules", "NCC")


def main() -> None:
    """Measure both 3D sizes and a batch of slices."""
    args = harness.options(__doc__)
    limits, rows = harness.limits(args.device), []
    sizes = [([64] * 3, 1), ([128] * 3, 1), ([256] * 2, 8)]
    if args.device.type == "cuda":
        sizes.append(([160, 192, 224], 1))
    for shape, batch in sizes:
        ndim = len(shape)
        fixed = torch.rand(batch, 1, *shape, device=args.device)
        warped = torch.rand_like(fixed).requires_grad_()
        flop = fixed.numel() * SUMS * ndim * 2 * (box_filter.BLOCK_VOXELS + WINDOW - 1) / 1e9
        forms: harness.Forms = {
            "ours": harness.with_gradient(
                lambda w, f=fixed: similarity.local_ncc(f, w, window=WINDOW).mean(), warped
            )
        }
        if monai:
            loss = monai(spatial_dims=ndim, kernel_size=WINDOW).to(args.device)
            forms["MONAI"] = harness.with_gradient(lambda w, f=fixed, g=loss: g(w, f), warped)
        if neurite:
            score = neurite(WINDOW).to(args.device)
            forms["neurite 0.3.4"] = harness.with_gradient(
                lambda w, f=fixed, g=score: g(f, w).mean(), warped
            )
        size = f"{batch} x {' x '.join(map(str, shape))}"
        rows += harness.compare(
            "local NCC + gradient", size, forms, args, harness.floor(limits, gigaflop=flop)
        )
    harness.save("local_ncc", args, rows, limits=limits)


if __name__ == "__main__":
    main()
