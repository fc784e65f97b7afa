"""Random augmentation of training pairs, exact for everything a pair contains.

An augmentation is called as ``augmentation(pair, generator)`` with an unbatched pair and returns a
new one.  Spatial ones sample an image through an affine map T of voxels, v'(x) = v(T x): landmarks
move to T^-1 p, and a known displacement u follows from moving'(x + u'(x)) = fixed'(x).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Subset

from regnet_lab import ops
from regnet_lab.data.datasets.base import PairDataset, describe_item
from regnet_lab.errors import UserError
from regnet_lab.types import Pair, update_pair

Augmentation = Callable[[Pair, Generator], Pair]


class AugmentedPairs(PairDataset):
    """Pairs augmented anew at every draw, the n-th draw being a function of (seed, n) alone.

    Items are requested as ``(n, index)``, so that it does not matter which process reads them.
    """

    def __init__(
        self, dataset: PairDataset | Subset[Pair], augment: Augmentation, seed: int
    ) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> Pair:
        number, index = draw
        state = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        return self.augment(self.dataset[index], torch.Generator().manual_seed(int(state)))

    def describe_item(self, index: int) -> str:
        return describe_item(self.dataset, index)


class Compose:
    """Several augmentations, given by name, in sequence."""

    def __init__(self, transforms: Mapping[str, Augmentation]) -> None:
        self.transforms = transforms

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        for transform in self.transforms.values():
            pair = transform(pair, generator)
        return pair


def draw_affine_matrix(
    generator: Generator,
    shape: Sequence[int],
    spacing: Tensor,
    rotation: float = 0,
    scale: float = 0,
    shear: float = 0,
    translation: float = 0,
    flip: Sequence[int] = (),
) -> Tensor:
    """Draw an affine map T x = c + S^-1 exp(W) F S (x - c) + t about the centre c of the grid.

    S = diag(spacing) converts to millimetres.  W is skew-symmetric by rotation, and symmetric with
    scales on its diagonal and shears beside it.  F reverses axes.  All numbers are uniform between
    plus and minus the given ranges.

    Args:
        generator: Source of random numbers.
        shape: Shape of the grid.
        spacing: (D,) millimetres per voxel.
        rotation: Degrees, in each plane of two axes.
        scale: Logarithm of the stretch of each axis.
        shear: Slope between each two axes.
        translation: Fraction of the field of view along each axis.
        flip: Axes that are reversed with a probability of one half.

    Returns:
        (D+1, D+1) matrix of voxels, the identity if all ranges are zero.
    """
    ndim = len(shape)
    if not {*flip} <= {*range(ndim)}:
        raise UserError(f"flip={list(flip)}: the images have axes 0 to {ndim - 1}.")
    numbers = 2 * torch.rand(ndim + 2, ndim, generator=generator) - 1
    turns, slopes, stretch = numbers[:-2].triu(1), numbers[:-2].tril(-1), numbers[:-2].diagonal()
    skew = math.radians(rotation) * (turns - turns.T)
    linear = torch.matrix_exp(skew + shear * (slopes + slopes.T) + scale * stretch.diag())
    reverse = torch.ones(ndim)
    reverse[list(flip)] -= 2.0 * (numbers[-2, list(flip)] < 0)
    center = (torch.tensor(shape) - 1) / 2
    matrix = torch.eye(ndim + 1)
    matrix[:-1, :-1] = linear * reverse * spacing / spacing[:, None]
    shift = translation * torch.tensor(shape) * numbers[-1]
    matrix[:-1, -1] = center + shift - matrix[:-1, :-1] @ center
    return matrix


def transform_side(pair: Pair, side: str, matrix: Tensor) -> dict[str, Tensor]:
    """Transform everything a pair has of one side: image(T x), labels(T x), mask(T x), T^-1 p.

    Outside its field of view the border of an image is continued, and labels and masks are 0;
    landmarks may leave the grid.
    """
    values: dict[str, Any] = dict(pair)
    u = ops.affine_field(matrix[None], values[side].shape[1:])
    changed = {side: ops.warp(values[side][None], u)[0]}
    for key in (f"{side}_labels", f"{side}_mask"):
        if key in values:
            changed[key] = ops.warp(values[key][None], u, "nearest", "zeros")[0]
    if f"{side}_points" in values:
        inverse = torch.linalg.inv(matrix)
        changed[f"{side}_points"] = ops.transform_points(inverse, values[f"{side}_points"])
    return changed


class RandomAffine(ABC):
    """Base class of augmentations by a random affine map.

    Args:
        **extent: Ranges of :func:`draw_affine_matrix`, from ``rotation`` on.
    """

    def __init__(self, **extent: Any) -> None:
        try:
            draw_affine_matrix(torch.Generator(), (2,) * 3, torch.ones(3), **extent)
        except TypeError as error:
            raise UserError(f"affine augmentation: {error}.") from error
        self.extent = extent

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        shape = pair["moving"].shape[1:]
        matrix = draw_affine_matrix(generator, shape, pair["spacing"], **self.extent)
        return update_pair(pair, **self.transform(pair, matrix))

    @abstractmethod
    def transform(self, pair: Pair, matrix: Tensor) -> dict[str, Tensor]:
        """Return what an affine map changes of a pair."""


class SharedAffine(RandomAffine):
    """The same random affine map and flip of both images and all that belongs to them.

    u'(x) = L^-1 u(T x) with the linear part L of T; where T x is outside the grid, u is that at
    its border.
    """

    def transform(self, pair: Pair, matrix: Tensor) -> dict[str, Tensor]:
        changed = transform_side(pair, "fixed", matrix) | transform_side(pair, "moving", matrix)
        if "displacement" in pair:
            u = pair["displacement"]
            moved = ops.warp(u[None], ops.affine_field(matrix[None], u.shape[1:]))[0]
            inverse = torch.linalg.inv(matrix[:-1, :-1])
            changed["displacement"] = torch.tensordot(inverse, moved, 1)
        return changed


class MovingAffine(RandomAffine):
    """A random affine map of the moving image alone: u'(x) = T^-1 (x + u(x)) - x."""

    def transform(self, pair: Pair, matrix: Tensor) -> dict[str, Tensor]:
        changed = transform_side(pair, "moving", matrix)
        if "displacement" in pair:
            u = pair["displacement"]
            x = ops.identity_grid(u.shape[1:], u)[0]
            points = (x + u).flatten(1).T  # (voxels, D)
            moved = ops.transform_points(torch.linalg.inv(matrix), points)
            changed["displacement"] = moved.T.view_as(u) - x
        return changed


class IntensityAugmentation:
    """Random gamma, bias field and noise of each image independently, by MONAI.

    v -> exp(b) (v / range)^gamma + n, with a polynomial b of degree three and Gaussian noise n.

    Args:
        gamma: The exponent lies between 1 / (1 + gamma) and 1 + gamma.
        bias_field: Largest coefficient of the Legendre polynomials of b.
        noise: Largest standard deviation of n.
        probability: Probability of each of the three.
    """

    def __init__(
        self,
        gamma: float = 0.3,
        bias_field: float = 0.1,
        noise: float = 0.05,
        probability: float = 0.5,
    ) -> None:
        try:
            from monai import transforms
        except ImportError as error:
            raise UserError(
                "Intensity augmentation needs MONAI: install monai, or remove the transform."
            ) from error
        steps = [
            transforms.RandAdjustContrast(probability, (1 / (1 + gamma), 1 + gamma)),
            transforms.RandBiasField(prob=probability, coeff_range=(-bias_field, bias_field)),
            transforms.RandGaussianNoise(probability, std=noise),
        ]
        self.transform = transforms.Compose(steps)

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        fixed = self._transform_image(pair["fixed"], generator)
        moving = self._transform_image(pair["moving"], generator)
        return update_pair(pair, fixed=fixed, moving=moving)

    def _transform_image(self, image: Tensor, generator: Generator) -> Tensor:
        self.transform.set_random_state(int(torch.randint(2**31, (), generator=generator)))
        return self.transform(image.clone()).as_subclass(Tensor)
