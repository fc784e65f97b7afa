"""SDlogJ, Dice and HD95 of 35 labels against common implementations.

``python benchmarks/metrics.py``.  The peer's HD95 is weighted by area (surface-distance), ours is
over surface voxels: the values differ in the third digit.
"""

import harness
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from regnet_lab import metrics
from regnet_lab.metrics import surface_distance

LABELS = 35
monai_dice = harness.peer("monai.metrics", "compute_dice")
monai_one_hot = harness.peer("monai.networks.utils", "one_hot")
voxelmorph = harness.peer("voxelmorph.py.utils", "jacobian_determinant")
monai_hausdorff = harness.peer("monai.metrics", "compute_hausdorff_distance")


def cells(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.int64]:
    """Create Voronoi cells of 35 points in an ellipsoid, labelled from 1."""
    rng = np.random.default_rng(seed)
    size = np.array(shape)
    places = rng.uniform(0.25, 0.75, (LABELS, len(shape))) * size
    x = np.moveaxis(np.indices(shape), 0, -1)
    nearest = cKDTree(places).query(x.reshape(-1, len(shape)))[1].reshape(shape)
    inside = (((x + 0.5) / size * 2 - 1) ** 2).sum(-1) < 0.8
    return np.where(inside, nearest + 1, 0)


def official_sdlogj(u: NDArray) -> float:
    """Compute SDlogJ as Learn2Reg's evaluator does, from (*spatial, D)."""
    inner = (slice(2, -2),) * 3
    return float(np.log(np.clip(voxelmorph(u)[inner] + 3, 1e-9, 1e9)).std())


def one_hot(labels: NDArray) -> torch.Tensor:
    """Return (1, 36, *spatial), as MONAI makes it."""
    return monai_one_hot(torch.from_numpy(labels)[None, None], LABELS + 1)


def dice_loop(fixed: NDArray, warped: NDArray) -> list[float]:
    """Compute Dice label by label."""
    return [
        2 * np.sum((fixed == k) & (warped == k)) / (np.sum(fixed == k) + np.sum(warped == k))
        for k in range(1, LABELS + 1)
    ]


def hausdorff(fixed: NDArray, warped: NDArray, spacing: NDArray) -> list[float]:
    """Compute HD95 of every label as ``metrics=full`` does."""
    return [
        metrics.hausdorff95(*metrics.surface_distances(fixed[box] == k, warped[box] == k, spacing))
        for k, box in surface_distance.find_label_boxes(fixed, warped, range(1, LABELS + 1)).items()
    ]


def regularity(args: harness.argparse.Namespace, limits: harness.Row) -> list[harness.Row]:
    """Return rows of SDlogJ; the bound is one read of the field."""
    u = np.random.default_rng(0).normal(size=(3, 128, 128, 128)).astype(np.float32)
    last = np.moveaxis(u, 0, -1).copy()
    forms: harness.Forms = {
        "ours": lambda: metrics.sdlogj(metrics.interior_determinant(u)),
        "VoxelMorph 0.3.4": voxelmorph and (lambda: official_sdlogj(last)),
    }
    limit = harness.floor(limits, gigabytes=u.nbytes / 1e9)
    return harness.compare("SDlogJ", "128^3", forms, args, limit)


def overlap(args: harness.argparse.Namespace, limits: harness.Row) -> list[harness.Row]:
    """Return rows of Dice; the bound is one read of the three volumes."""
    fixed = cells((160, 192, 224))
    warped = np.roll(fixed, (1, 2, 1), (0, 1, 2))
    forms: harness.Forms = {
        "ours": lambda: metrics.dice(fixed, warped, warped),
        "numpy, by label": lambda: dice_loop(fixed, warped),
        "MONAI": monai_dice
        and (lambda: monai_dice(one_hot(warped), one_hot(fixed), include_background=False)),
    }
    limit = harness.floor(limits, gigabytes=3 * fixed.nbytes / 1e9)
    return harness.compare("Dice, 35 labels", "160 x 192 x 224", forms, args, limit)


def surfaces(args: harness.argparse.Namespace) -> list[harness.Row]:
    """Return rows of HD95."""
    import surface_distance as deepmind_surface_distance

    fixed, spacing = cells((64,) * 3), np.ones(3)
    warped = np.roll(fixed, (1, 2, 1), (0, 1, 2))

    def weighted(k: int) -> float:
        distances = deepmind_surface_distance.compute_surface_distances(
            fixed == k, warped == k, spacing
        )
        return deepmind_surface_distance.compute_robust_hausdorff(distances, 95.0)

    hot = [one_hot(volume) for volume in (fixed, warped)] if monai_one_hot else []
    forms: harness.Forms = {
        "ours": lambda: hausdorff(fixed, warped, spacing),
        "surface-distance": lambda: [weighted(k) for k in range(1, LABELS + 1)],
        "MONAI": monai_hausdorff and (lambda: monai_hausdorff(hot[1], hot[0], percentile=95)),
    }
    return harness.compare("HD95, 35 labels", "64^3", forms, args)


def main() -> None:
    """Measure all three on the CPU."""
    args = harness.options(__doc__)
    args.device = harness.CPU
    limits = harness.limits()
    rows = [*regularity(args, limits), *overlap(args, limits), *surfaces(args)]
    harness.save("metrics", args, rows, limits=limits)


if __name__ == "__main__":
    main()
