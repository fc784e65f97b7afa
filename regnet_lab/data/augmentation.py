"""Random changes of training pairs, each of them exact for everything a pair carries.

An augmentation is called as ``augment(pair, generator)`` with an unbatched pair and returns a new
one.  A geometric one looks at an image through an affine map T of voxels, v'(x) = v(T x); its
points then lie at T^-1 p, and known displacements follow from moving'(x + u'(x)) = fixed'(x).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

Augment = Callable[[Pair, Generator], Pair]

SIDES = ("fixed", "moving")


class Augmented(Dataset[Pair]):
    """Pairs changed anew at every draw, the n-th one as a function of (seed, n) alone.

    An item is asked for as ``(n, index)``, whatever process asks.
    """

    def __init__(self, pairs: Dataset[Pair], augment: Augment, seed: int) -> None:
        self.pairs, self.augment, self.seed = pairs, augment, seed

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, draw: tuple[int, int]) -> Pair:
        number, index = draw
        state = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        return self.augment(self.pairs[index], torch.Generator().manual_seed(int(state)))


class Compose:
    """One augmentation after another.

    Args:
        steps: By name, in order.
    """

    def __init__(self, steps: Mapping[str, Augment]) -> None:
        self.steps = steps

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        for step in self.steps.values():
            pair = step(pair, generator)
        return pair


def random_affine(
    generator: Generator,
    shape: Sequence[int],
    spacing: Tensor,
    rotation: float = 0,
    scale: float = 0,
    shear: float = 0,
    translation: float = 0,
    flip: Sequence[int] = (),
) -> Tensor:
    """T x = c + S^-1 exp(W) F S (x - c) + t, about the centre c of the grid.

    W is in millimetres, by S = diag(spacing): skew by rotation, and symmetric with the scales on
    its diagonal and shears beside it. F reverses axes. Numbers are uniform between plus and minus
    what is given.

    Args:
        generator: Source of the numbers.
        shape: Of the grid.
        spacing: (D,) millimetres per voxel.
        rotation: Degrees, in each plane of two axes.
        scale: Logarithm of the stretch of each axis.
        shear: Slope between each two axes.
        translation: Fraction of the field of view along each axis.
        flip: Axes reversed in every other draw.

    Returns:
        (D+1, D+1) matrix of voxels, the identity where nothing is given.

    Raises:
        UserError: The grid has no such axis to flip.
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
    centre = (torch.tensor(shape) - 1) / 2
    matrix = torch.eye(ndim + 1)
    matrix[:-1, :-1] = linear * reverse * spacing / spacing[:, None]
    shift = translation * torch.tensor(shape) * numbers[-1]
    matrix[:-1, -1] = centre + shift - matrix[:-1, :-1] @ centre
    return matrix


def seen(pair: Pair, side: str, matrix: Tensor) -> dict[str, Tensor]:
    """All that a pair has of one side through T: image(T x), labels(T x), mask(T x), T^-1 p.

    Outside its field of view an image continues its border, labels and masks are 0; points may
    come to lie outside the grid.
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


class SharedAffine:
    """The same random affine map and flip of both images and all that belongs to them.

    u'(x) = L^-1 u(T x) with the linear part L of T; where T x is outside the grid, u is that at
    its border.

    Args:
        **extent: As :func:`random_affine`, from ``rotation`` on.
    """

    def __init__(self, **extent: Any) -> None:
        self.extent = check_extent(extent)

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        shape = pair["fixed"].shape[1:]
        matrix = random_affine(generator, shape, pair["spacing"], **self.extent)
        changed = seen(pair, "fixed", matrix) | seen(pair, "moving", matrix)
        if "displacement" in pair:
            moved = ops.warp(pair["displacement"][None], ops.affine_field(matrix[None], shape))[0]
            back = torch.linalg.inv(matrix[:-1, :-1])
            changed["displacement"] = torch.tensordot(back, moved, 1)
        return Pair(**{**pair, **changed})  # type: ignore[typeddict-item]


class MovingAffine:
    """A random affine map of the moving image alone: u'(x) = T^-1 (x + u(x)) - x.

    Args:
        **extent: As :func:`random_affine`, from ``rotation`` on.
    """

    def __init__(self, **extent: Any) -> None:
        self.extent = check_extent(extent)

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        shape = pair["moving"].shape[1:]
        matrix = random_affine(generator, shape, pair["spacing"], **self.extent)
        changed = seen(pair, "moving", matrix)
        if "displacement" in pair:
            u = pair["displacement"]
            x = ops.identity_grid(shape, u)[0]
            places = (x + u).flatten(1).T  # (voxels, D)
            moved = ops.transform_points(torch.linalg.inv(matrix), places)
            changed["displacement"] = moved.T.view_as(u) - x
        return Pair(**{**pair, **changed})  # type: ignore[typeddict-item]


def check_extent(extent: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of :func:`random_affine`, tried once.

    Raises:
        UserError: There is no such argument.
    """
    try:
        random_affine(torch.Generator(), (2,) * 3, torch.ones(3), **extent)
    except TypeError as error:
        raise UserError(f"affine augmentation: {error}.") from error
    return extent


class Intensity:
    """Gamma, gain field and noise of each image on its own, by MONAI.

    v -> exp(b) (v / range)^gamma + n, with a polynomial b of degree three and Gaussian noise n.

    Args:
        gamma: The exponent lies between 1 / (1 + gamma) and 1 + gamma.
        bias: Greatest coefficient of the Legendre polynomials of b.
        noise: Greatest standard deviation of n.
        probability: With which each of the three is done.

    Raises:
        UserError: MONAI is not installed.
    """

    def __init__(
        self, gamma: float = 0.3, bias: float = 0.1, noise: float = 0.05, probability: float = 0.5
    ) -> None:
        try:
            from monai import transforms
        except ImportError as error:
            raise UserError(
                "Intensity augmentation needs MONAI: install monai, or leave the step out."
            ) from error
        self.transform = transforms.Compose(
            [
                transforms.RandAdjustContrast(probability, (1 / (1 + gamma), 1 + gamma)),
                transforms.RandBiasField(prob=probability, coeff_range=(-bias, bias)),
                transforms.RandGaussianNoise(probability, std=noise),
            ]
        )

    def __call__(self, pair: Pair, generator: Generator) -> Pair:
        return Pair(**{**pair, **{side: self._scanned(pair[side], generator) for side in SIDES}})  # type: ignore

    def _scanned(self, image: Tensor, generator: Generator) -> Tensor:
        self.transform.set_random_state(int(torch.randint(2**31, (), generator=generator)))
        changed = self.transform(image.clone())
        return changed.as_tensor() if hasattr(changed, "as_tensor") else changed
