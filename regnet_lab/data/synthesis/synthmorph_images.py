"""Synthesize images of label maps with random intensities, textures and artifacts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.base import apply_separable, compute_gaussian_weights
from regnet_lab.data.synthesis.phantom import sample_normal, sample_smooth_noise, sample_uniform
from regnet_lab.data.synthesis.synthmorph_labels import NUM_TEXTURES, Range, sample_in_range


@dataclass(frozen=True)
class LabelAppearance:
    """Appearance of labels: (K + 1,) intensities and (K + 1, NUM_TEXTURES) texture strengths."""

    intensity: Tensor
    texture: Tensor


@dataclass(frozen=True)
class RandomContrast:
    """Random appearances of labels, and images with such an appearance.

    An image starts as intensity[label] + sum_k texture[label, k] texture_k. It is then blurred,
    averaged along one axis into thick slices, multiplied by exp(bias b) with smooth unit noise b,
    degraded by normal noise, mapped from its percentiles 0.5 and 99.5 to [0, 1], raised to the
    power gamma, sometimes inverted, and set to 0 outside a random field of view. SynthMorph
    (Hoffmann et al., arXiv 2004.10282) varies intensities, blur, gain, noise and gamma; textures,
    slices, inversion and cropping are our additions. The ranges are our own, chosen by visual
    inspection; values are sampled uniformly unless stated otherwise.
    """

    texture: Range = (0.0, 0.2)  # range of an image's largest texture strength
    black_background_probability: float = 0.7  # probability that the background is exactly 0
    blur: Range = (0.0, 1.0)  # range of the Gaussian's standard deviation, voxels
    # range of the slice thickness, voxels, in half of the images
    slice_thickness: Range = (1.0, 3.0)
    bias_field: Range = (0.0, 0.3)  # range of the standard deviation of the log gain
    noise: Range = (0.0, 0.06)  # range of the noise's standard deviation
    gamma_std: float = 0.25  # standard deviation of log gamma
    invert_probability: float = 0.15  # probability of inverted intensities
    crop_probability: float = 0.4  # probability of a reduced field of view
    # range of the margin then cropped on each side, as a fraction of the axis
    crop_margin: Range = (0.0, 0.12)

    def sample_appearance(self, rng: Generator, labels: int) -> LabelAppearance:
        """Sample the appearance of labels 0 to ``labels``."""
        intensity = torch.from_numpy(rng.uniform(0, 1, labels + 1)).float()
        intensity[0] *= float(rng.random() >= self.black_background_probability)
        strength = sample_in_range(rng, self.texture)
        texture = strength * sample_uniform(rng, (labels + 1, NUM_TEXTURES))
        texture[0] *= float(intensity[0] > 0)
        return LabelAppearance(intensity, texture)

    def __call__(
        self, rng: Generator, appearance: LabelAppearance, labels: Tensor, texture: Tensor
    ) -> Tensor:
        """Synthesize the image of labels (1, 1, *spatial), textures (1, NUM_TEXTURES, *spatial)."""
        strength = appearance.texture[labels[0, 0]].movedim(-1, 0)
        image = appearance.intensity[labels] + (strength * texture[0]).sum(0)
        image = self._simulate_thick_slices(rng, self._blur(rng, image))
        width = sample_in_range(rng, (0.15, 0.5))
        lattice = sample_smooth_noise(rng, 1, width, [12] * (labels.ndim - 2))
        log_gain = ops.resize(sample_in_range(rng, self.bias_field) * lattice, labels.shape[2:])
        image = image * log_gain.exp()
        image = image + sample_in_range(rng, self.noise) * sample_normal(rng, image.shape)
        gamma = float(np.exp(self.gamma_std * rng.standard_normal()))
        image = normalize_percentiles(image) ** gamma
        image = 1 - image if rng.random() < self.invert_probability else image
        return image * self.sample_field_of_view(rng, labels.shape[2:])

    def _blur(self, rng: Generator, image: Tensor) -> Tensor:
        """Blur by a Gaussian of random width."""
        sigma = sample_in_range(rng, self.blur)
        if sigma < 0.2:
            return image
        positions = [torch.arange(n, dtype=torch.float64) for n in image.shape[2:]]
        kernels = [compute_gaussian_weights(x[:, None] - x, sigma, 3) for x in positions]
        kernels = [(k / k.sum(1, keepdim=True)).float() for k in kernels]
        return apply_separable(image[0], kernels)[None]

    def _simulate_thick_slices(self, rng: Generator, image: Tensor) -> Tensor:
        """Average into thick slices along a random axis and resample to the original grid."""
        thickness = sample_in_range(rng, self.slice_thickness)
        axis = int(rng.integers(2, image.ndim))
        if rng.random() < 0.5:
            return image
        shape = list(image.shape)
        shape[axis] = max(round(shape[axis] / thickness), 2)
        return ops.resize(ops.resize(image, shape[2:]), image.shape[2:])

    def sample_field_of_view(self, rng: Generator, shape: Sequence[int]) -> Tensor:
        """Sample a field of view: a (*shape) mask."""
        mask = torch.ones(*shape)
        if rng.random() < self.crop_probability:
            for axis, n in enumerate(shape):
                low, high = (round(n * sample_in_range(rng, self.crop_margin)) for _ in range(2))
                mask.narrow(axis, 0, low).zero_()
                mask.narrow(axis, n - high, high).zero_()
        return mask


def normalize_percentiles(image: Tensor) -> Tensor:
    """Map the percentiles 0.5 and 99.5, estimated on a subset of voxels, to 0 and 1."""
    values = image.flatten()[:: max(image.numel() // 20_000, 1)]
    low, high = torch.quantile(values, torch.tensor([0.005, 0.995]))
    return ((image - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
