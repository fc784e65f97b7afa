"""Smooth random images."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter


def smooth(shape, seed, batch=1, channels=1, sigma=2.0):
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()
