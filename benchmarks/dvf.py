"""Artificial displacement fields a second, beside scipy.ndimage.gaussian_filter of the same field.

``PYTHONPATH=. python benchmarks/dvf.py [side] [--patches]``.  Fields of RegNet's three frequencies
and of its second version on a cube; the peer blurs the same impulses, component by component.
``--patches``: patches a second from the sampler, chunks made in its background thread included,
against training steps of RegNet on such patches.  One thread; seconds are of this process's CPU.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from regnet_lab.data.deformed import Deformed, alone
from regnet_lab.data.dvf import (
    HighFrequency,
    LowFrequency,
    MediumFrequency,
    PeakField,
    blur_matrix,
    spread,
)
from regnet_lab.data.dvf_2019 import MixedFrequency, SingleFrequency
from regnet_lab.data.patches import Patches
from regnet_lab.data.respiratory import Respiratory
from regnet_lab.data.scene import Scene
from regnet_lab.models import RegNet

torch.set_num_threads(1)


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU seconds of some calls."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found)


def peer(fields: PeakField, side: int) -> tuple[float, float]:
    """Seconds of scipy's blurring of the peaks of a field, and the greatest difference to ours,
    relative to the greatest value.
    """
    shape = (side,) * 3
    peaks = fields.draw(np.random.default_rng(0), shape, (1, 1, 1))
    impulses = np.zeros((3, *shape), np.float32)
    impulses[:, *peaks.places.T.numpy()] = peaks.vectors.T.numpy()
    blurred = [np.zeros(shape)] * 3

    def blur() -> None:
        blurred[:] = [gaussian_filter(component, fields.sigma) for component in impulses]

    took = seconds(blur, 1)
    matrices = [blur_matrix(side, fields.sigma)] * 3
    ours = spread(peaks.places, peaks.vectors, matrices).numpy()
    return took, float(np.abs(ours - np.stack(blurred)).max() / np.abs(ours).max())


def scene(side: int) -> Scene:
    """A body with a textured lung."""
    x = (np.indices((side,) * 3) + 0.5) / side * 2 - 1
    lung = torch.from_numpy((x**2).sum(0) < 0.4)
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(side,) * 3), 2)
    image = torch.from_numpy(0.2 + texture).float() * lung + 0.7 * ~lung
    return Scene(image, (1.0, 1.0, 1.0), torch.ones_like(lung), lung)


def fields_table(side: int) -> None:
    """Print what fields cost."""
    shape, spacing = (side,) * 3, (1.0, 1.0, 1.0)
    print(f"one field of {side}^3 voxels of 1 mm, CPU seconds")
    border = min(33.0, side / 4)
    for fields in (
        LowFrequency(border=border),
        MediumFrequency(border=border),
        HighFrequency(border=border, distance=min(40.0, side / 8)),
    ):
        ours = seconds(lambda f=fields: f(np.random.default_rng(0), shape, spacing))
        theirs, error = peer(fields, side)
        name = type(fields).__name__
        print(f"{name:18}{ours:8.3f}  gaussian_filter{theirs:8.2f}  x{theirs / ours:5.0f}", end="")
        print(f"  relative difference {error:.0e}")
    place = scene(side)
    for generator in (
        SingleFrequency(max_deform=7.0, knots=35.0),
        MixedFrequency(max_deform=7.0, knots=[40.0] * 3, canny=(0.02, 0.05)),
        Respiratory(max_deform=7.0, shift=15.0, knots=35.0),
    ):
        ours = seconds(lambda g=generator: g(np.random.default_rng(0), place))
        print(f"{type(generator).__name__:18}{ours:8.3f}")


def patches_table(side: int) -> None:
    """Print what patches cost."""
    image = alone(torch.rand(1, side, side, side), "noise")
    fields = LowFrequency(border=side / 4)
    pairs = Deformed("train", lambda split: [image], fields, size=1000)
    for samples in (50, 400):
        patches = Patches(pairs, 10, RegNet.margin, images=4, samples=samples)
        count = 4 * samples * 3
        start = time.perf_counter()
        for number in range(count):
            patches[number]
        rate = count / (time.perf_counter() - start)
        print(f"patches of 62^3 a second, {samples} from each image: {rate:.0f} (wall)")
    model = RegNet(3, patches=RegNet.margin)
    batch = [patches[number] for number in range(4)]
    fixed, moving = (torch.stack([p[side] for p in batch]) for side in ("fixed", "moving"))

    def step() -> None:
        model(fixed, moving)[0].square().mean().backward()

    print(f"a training step of RegNet uses {4 / seconds(step):.1f} such patches a CPU second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("side", nargs="?", type=int, default=128)
    parser.add_argument("--patches", action="store_true")
    given = parser.parse_args()
    patches_table(given.side) if given.patches else fields_table(given.side)
