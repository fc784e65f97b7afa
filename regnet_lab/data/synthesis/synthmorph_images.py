"""How a scanner that nobody built sees a label map: random intensities, textures and faults."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.base import gaussian, separable
from regnet_lab.data.synthesis.phantom import normal, smooth_noise
from regnet_lab.data.synthesis.synthmorph_labels import TEXTURES, Range, between


@dataclass(frozen=True)
class Look:
    """What the labels look like: (K + 1,) intensities and (K + 1, TEXTURES) strengths."""

    intensity: Tensor
    texture: Tensor


@dataclass(frozen=True)
class Contrast:
    """Draws looks, and images of labels that have one.

    The image is I = intensity[label] + sum_k texture[label, k] texture_k, blurred, averaged along
    one axis into thick slices, times exp(bias b) with smooth unit noise b, with normal noise,
    brought from its percentiles 0.5 and 99.5 to [0, 1], to the power gamma, perhaps as 1 - I, and
    0 beyond a field of view of its own.  Intensities by label, blur, gain, noise and gamma are what
    SynthMorph varies (Hoffmann et al., arXiv 2004.10282); textures, slices, inversion and cuts are
    added, and the ranges our own, chosen by looking at what they give.  They are uniform unless
    said otherwise.

    Args:
        texture: Range of an image's largest texture, over the range of intensities.
        dark: Share of images in which the outside of the body is exactly black.
        blur: Range of the standard deviation, voxels.
        thick: Range of the slices' thickness, voxels, in half of the images.
        bias: Range of the standard deviation of the log gain.
        noise: Range of the noise's standard deviation.
        gamma: Standard deviation of log gamma.
        inverted: Share of images that are turned.
        cut: Share of images of which some is outside the field of view.
        margin: Range of what is then cut on each side, over the image's side.
    """

    texture: Range = (0.0, 0.2)
    dark: float = 0.7
    blur: Range = (0.0, 1.0)
    thick: Range = (1.0, 3.0)
    bias: Range = (0.0, 0.3)
    noise: Range = (0.0, 0.06)
    gamma: float = 0.25
    inverted: float = 0.15
    cut: float = 0.4
    margin: Range = (0.0, 0.12)

    def look(self, rng: np.random.Generator, labels: int) -> Look:
        """Of labels from 0 to ``labels``."""
        intensity = torch.from_numpy(rng.uniform(0, 1, labels + 1)).float()
        intensity[0] *= float(rng.random() >= self.dark)
        strength = between(rng, self.texture)
        texture = strength * torch.from_numpy(rng.uniform(-1, 1, (labels + 1, TEXTURES))).float()
        texture[0] *= float(intensity[0] > 0)
        return Look(intensity, texture)

    def __call__(
        self, rng: np.random.Generator, look: Look, labels: Tensor, texture: Tensor
    ) -> Tensor:
        """Image of labels (both (1, 1, *spatial)) and textures (1, TEXTURES, *spatial)."""
        strength = look.texture[labels[0, 0]].movedim(-1, 0)
        image = look.intensity[labels] + (strength * texture[0]).sum(0)
        image = self.thickened(rng, self.blurred(rng, image))
        lattice = smooth_noise(rng, 1, between(rng, (0.15, 0.5)), [12] * (labels.ndim - 2))
        image = image * ops.resize(between(rng, self.bias) * lattice, labels.shape[2:]).exp()
        image = image + between(rng, self.noise) * normal(rng, image.shape)
        image = ranged(image) ** float(np.exp(self.gamma * rng.standard_normal()))
        image = 1 - image if rng.random() < self.inverted else image
        return image * self.view(rng, labels.shape[2:])

    def blurred(self, rng: np.random.Generator, image: Tensor) -> Tensor:
        """Through a Gaussian."""
        sigma = between(rng, self.blur)
        if sigma < 0.2:
            return image
        places = [torch.arange(n, dtype=torch.float64) for n in image.shape[2:]]
        kernels = [gaussian(x[:, None] - x, sigma, 3) for x in places]
        kernels = [(k / k.sum(1, keepdim=True)).float() for k in kernels]
        return separable(image[0], kernels)[None]

    def thickened(self, rng: np.random.Generator, image: Tensor) -> Tensor:
        """In thick slices across one axis, brought back to the grid."""
        thickness, axis = between(rng, self.thick), int(rng.integers(2, image.ndim))
        if rng.random() < 0.5:
            return image
        shape = list(image.shape)
        shape[axis] = max(round(shape[axis] / thickness), 2)
        return ops.resize(ops.resize(image, shape[2:]), image.shape[2:])

    def view(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """(*shape) 1 in the field of view."""
        seen = torch.ones(*shape)
        if rng.random() < self.cut:
            for axis, n in enumerate(shape):
                low, high = (round(n * between(rng, self.margin)) for _ in range(2))
                seen.narrow(axis, 0, low).zero_()
                seen.narrow(axis, n - high, high).zero_()
        return seen


def ranged(image: Tensor) -> Tensor:
    """To [0, 1] by the percentiles 0.5 and 99.5 of every few voxels."""
    values = image.flatten()[:: max(image.numel() // 20_000, 1)]
    low, high = torch.quantile(values, torch.tensor([0.005, 0.995]))
    return ((image - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
