"""Local normalised correlation in 9^D windows, value and gradient, beside MONAI and neurite.

``python benchmarks/local_ncc.py``.  The limit counts the multiplications of our own form, eight
box sums by blocks of bands, at the rate of a large matrix product.
"""

import harness
import torch

from regnet_lab.ops import box_filter, similarity

WINDOW = 9
SUMS = 8
monai = harness.peer("monai.losses", "LocalNormalizedCrossCorrelationLoss")
neurite = harness.peer("neurite.nn.modules", "NCC")


def main() -> None:
    """Both 3D sizes and a batch of slices."""
    given = harness.options(__doc__)
    found, rows = harness.limits(given.device), []
    sizes = [([64] * 3, 1), ([128] * 3, 1), ([256] * 2, 8)]
    if given.device.type == "cuda":
        sizes.append(([160, 192, 224], 1))
    for shape, batch in sizes:
        ndim = len(shape)
        fixed = torch.rand(batch, 1, *shape, device=given.device)
        warped = torch.rand_like(fixed).requires_grad_()
        flop = fixed.numel() * SUMS * ndim * 2 * (box_filter.BLOCK + WINDOW - 1) / 1e9
        forms: harness.Forms = {
            "ours": harness.both(
                lambda w, f=fixed: similarity.local_ncc(f, w, window=WINDOW).mean(), warped
            )
        }
        if monai:
            loss = monai(spatial_dims=ndim, kernel_size=WINDOW).to(given.device)
            forms["MONAI"] = harness.both(lambda w, f=fixed, g=loss: g(w, f), warped)
        if neurite:
            score = neurite(WINDOW).to(given.device)
            forms["neurite 0.3.4"] = harness.both(
                lambda w, f=fixed, g=score: g(f, w).mean(), warped
            )
        size = f"{batch} x {' x '.join(map(str, shape))}"
        rows += harness.compare(
            "local NCC + gradient", size, forms, given, harness.floor(found, gigaflop=flop)
        )
    harness.save("local_ncc", given, rows, limits=found)


if __name__ == "__main__":
    main()
