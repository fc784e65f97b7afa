"""Reading a volume of 160 x 192 x 224 voxels: from our cache, and from files as others do.

``python benchmarks/volumes.py``.  The operating system has every file in memory.
"""

import tempfile
from pathlib import Path

import harness
import nibabel
import numpy as np
import SimpleITK as sitk
import torch

from regnet_lab.data.preprocessing.cache import FolderCache

SHAPE = (160, 192, 224)
monai = harness.peer("monai.transforms", "LoadImage")


def image() -> np.ndarray:
    """Noise in a box of zeros, in float32 as normalised scans are stored."""
    volume = np.zeros(SHAPE, np.float32)
    inner = tuple(slice(n // 8, n - n // 8) for n in SHAPE)
    volume[inner] = np.random.default_rng(0).normal(0.5, 0.1, volume[inner].shape)
    return volume


def main() -> None:
    """Write once, read often; the limit is a copy of the volume."""
    arguments = harness.options(__doc__)
    arguments.device = harness.CPU
    volume = image()
    with tempfile.TemporaryDirectory() as folder:
        uncompressed, packed = Path(folder) / "volume.nii", Path(folder) / "volume.nii.gz"
        for path in (uncompressed, packed):
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
        cache = FolderCache(Path(folder) / "cache")

        def cached() -> torch.Tensor:
            return torch.from_numpy(
                cache.get_or_create("key", lambda: {"image": volume})["image"].copy()
            )

        assert np.array_equal(cached(), volume)
        load = monai and monai(image_only=True)
        forms: harness.Forms = {
            "ours": cached,
            "nibabel .nii": lambda: np.asarray(nibabel.load(uncompressed).dataobj).astype(
                np.float32
            ),
            "nibabel .nii.gz": lambda: np.asarray(nibabel.load(packed).dataobj),
            "SimpleITK .nii.gz": lambda: sitk.GetArrayFromImage(sitk.ReadImage(str(packed))),
            "MONAI .nii.gz": load and (lambda: load(packed)),
        }
        limit = harness.floor(harness.limits(), gigabytes=2 * volume.nbytes / 1e9)
        rows = harness.compare("read a volume", "160 x 192 x 224", forms, arguments, limit)
    harness.save("volumes", arguments, rows)


if __name__ == "__main__":
    main()
