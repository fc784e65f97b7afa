"""Artificial displacement fields against scipy's equivalents.

``python benchmarks/dvf.py``.  RegNet's three frequencies on 128^3 voxels of 1 mm: the peer blurs
the same impulses component by component; for B-splines it blurs noise, or upsamples coefficients.
``--patches 1``: patches per second of the sampler, including its background thread, against
training steps of RegNet on such patches.
"""

import time

import harness
import numpy as np
import torch
from scipy.ndimage import gaussian_filter, zoom

from regnet_lab.data.patches import PatchDataset
from regnet_lab.data.synthesis.deformed_images import DeformedImages, make_self_pair
from regnet_lab.data.synthesis.displacements.bspline import (
    MixedFrequency,
    SingleFrequency,
    sample_spline_field,
)
from regnet_lab.data.synthesis.displacements.gaussian import (
    HighFrequency,
    LowFrequency,
    MediumFrequency,
    PeakDisplacement,
    compute_blur_matrix,
    spread_peaks,
)
from regnet_lab.data.synthesis.displacements.masked_image import MaskedImage
from regnet_lab.data.synthesis.displacements.respiratory import Respiratory
from regnet_lab.models import RegNet

SPACING = (1.0, 1.0, 1.0)
KNOTS = 16  # voxels


def make_masked_image(side: int) -> MaskedImage:
    """Create a body with a textured lung."""
    x = (np.indices((side,) * 3) + 0.5) / side * 2 - 1
    lung = torch.from_numpy((x**2).sum(0) < 0.4)
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(side,) * 3), 2)
    image = torch.from_numpy(0.2 + texture).float() * lung + 0.7 * ~lung
    return MaskedImage(image, (1.0, 1.0, 1.0), torch.ones_like(lung), lung)


def peaks(fields: PeakDisplacement, side: int) -> harness.Forms:
    """Compare blurred impulses by matrices and by scipy (equal to 1e-6)."""
    shape = (side,) * 3
    drawn = fields.sample_peaks(np.random.default_rng(0), shape, (1, 1, 1))
    impulses = np.zeros((3, *shape), np.float32)
    impulses[:, *drawn.voxels.T.numpy()] = drawn.vectors.T.numpy()
    matrices = [compute_blur_matrix(side, fields.sigma)] * 3

    def ours() -> np.ndarray:
        return spread_peaks(drawn.voxels, drawn.vectors, matrices).numpy()

    def theirs() -> np.ndarray:
        return np.stack([gaussian_filter(component, fields.sigma) for component in impulses])

    greatest = np.abs(ours()).max()
    assert np.abs(ours() - theirs()).max() < 2e-6 * greatest
    return {"ours": ours, "scipy gaussian_filter": theirs}


def splines(masked_image: MaskedImage) -> harness.Forms:
    """Compare a random B-spline with equally smooth noise by scipy."""
    side, rng = masked_image.shape[0], np.random.default_rng(0)
    noise = rng.normal(size=(3, side, side, side)).astype(np.float32)
    coarse = rng.normal(size=(3, *[side // KNOTS] * 3)).astype(np.float32)
    return {
        "ours": lambda: sample_spline_field(rng, masked_image, [KNOTS] * 3, (0, 1.7), 7.0, 0.8, 2),
        "scipy gaussian_filter": lambda: [gaussian_filter(c, 0.8 * KNOTS) for c in noise],
        "scipy zoom, order 3": lambda: [zoom(c, KNOTS, order=3) for c in coarse],
    }


def fields_table(args: harness.argparse.Namespace) -> None:
    """Print the cost of fields; the bound is writing one."""
    shape = (args.side,) * 3
    border = min(33.0, args.side / 4)
    limits, masked_image, size = harness.limits(), make_masked_image(args.side), f"{args.side}^3"
    limit = harness.floor(limits, gigabytes=12 * args.side**3 / 1e9)
    rows = harness.compare("B-spline field", size, splines(masked_image), args, limit)
    generators = (
        LowFrequency(border=border),
        MediumFrequency(border=border),
        HighFrequency(border=border, min_peak_distance=min(40.0, args.side / 8)),
    )
    for fields in generators:
        name = f"Gaussian peaks, {fields.sigma:g}"
        rows += harness.compare(name, size, peaks(fields, args.side), args, limit)
    whole: harness.Forms = {
        type(f).__name__: lambda f=f: f(np.random.default_rng(0), shape, SPACING)
        for f in generators
    }
    for made in (
        SingleFrequency(max_deform=7.0, knot_spacing=35.0),
        MixedFrequency(max_deform=7.0, knot_spacing=[40.0] * 3, canny=(0.02, 0.05)),
        Respiratory(max_deform=7.0, diaphragm_shift=15.0, knot_spacing=35.0),
    ):
        whole[type(made).__name__] = lambda g=made: g(np.random.default_rng(0), masked_image)
    for name, make in whole.items():
        rows += harness.compare(f"whole {name}", size, {"ours": make}, args, limit)
    harness.save("dvf", args, rows, limits=limits)


def patches_table(side: int) -> None:
    """Print the cost of patches."""
    image = make_self_pair(torch.rand(1, side, side, side), "noise")
    fields = LowFrequency(border=side / 4)
    pairs = DeformedImages("train", lambda split: [image], fields, num_pairs=1000)
    for samples in (50, 400):
        patches = PatchDataset(
            pairs, 10, RegNet.margin, images_per_chunk=4, patches_per_image=samples
        )
        count = 4 * samples * 3
        start = time.process_time()  # of all threads, the one that makes chunks among them
        for number in range(count):
            patches[number]
        rate = count / (time.process_time() - start)
        print(f"patches of 62^3 a CPU second, {samples} from each image: {rate:.0f}")
    model = RegNet(3, patch_margin=RegNet.margin)
    batch = [patches[number] for number in range(4)]
    fixed, moving = (torch.stack([p[side] for p in batch]) for side in ("fixed", "moving"))

    def step() -> None:
        model(fixed, moving)[0].square().mean().backward()

    took = min(harness.once(step)[1] for _ in range(3))
    print(f"a training step of RegNet uses {4 / took:.1f} such patches a CPU second")


if __name__ == "__main__":
    options = harness.options(__doc__, side=128, patches=0)
    options.device = harness.CPU
    patches_table(options.side) if options.patches else fields_table(options)
