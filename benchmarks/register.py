"""Seconds and peak memory of registering one pair of 160 x 192 x 224 voxels without training.

python benchmarks/register.py [threads]
"""

import sys
import time

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, zoom

import regnet_lab
from regnet_lab.utils.profiling import Profile

SHAPE = (160, 192, 224)


def texture(seed: int) -> np.ndarray:
    """Smooth noise in a ball."""
    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.normal(size=[n // 4 for n in SHAPE]), 2)
    noise = zoom(coarse, 4, order=1).astype(np.float32)
    x = np.indices(SHAPE, np.float32) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2
    ball = (x**2).sum(0) < (0.45 * min(SHAPE)) ** 2
    return (noise / noise.std() + 5) * ball


def main() -> None:
    """Move an image by a few voxels and find the way back."""
    threads = int(sys.argv[1]) if sys.argv[1:] else 1
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    fixed = texture(0)
    moving = np.roll(fixed, (3, -2, 4), (0, 1, 2))
    begun = time.process_time()
    with Profile(torch.device("cpu")) as profile:
        registered = regnet_lab.register(fixed, moving, "device=cpu")
    worked = time.process_time() - begun
    stages = ", ".join(f"{k} {v:.1f} s" for k, v in registered.result.seconds.items())
    before, after = (
        np.sqrt(np.mean((fixed - image) ** 2)) for image in (moving, registered.warped)
    )
    print(f"{threads} threads: {profile.seconds:.1f} s ({stages}), of the processor {worked:.1f} s")
    print(f"peak {profile.peak_mb:.0f} MB")
    print(f"RMSE {before:.3f} -> {after:.3f}")


if __name__ == "__main__":
    main()
