"""Generators of displacement fields, and combinations of several generators."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab.errors import UserError

T = TypeVar("T")


class DisplacementGenerator(Protocol):
    """Samples a displacement (1, D, *shape) in voxels for a grid and its voxel size in mm."""

    def __call__(
        self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor: ...


Generators = Mapping[str, DisplacementGenerator] | Sequence[DisplacementGenerator]


def _to_named_dict(items: Mapping[str, T] | Sequence[T]) -> dict[str, T]:
    """Return items by name; those of a list are named 0, 1, ..."""
    if isinstance(items, Mapping):
        return dict(items)
    return {str(number): item for number, item in enumerate(items)}


class Choice:
    """A generator that samples each field from one of several, by name or in a list.

    ``weights`` are their relative frequencies, likewise; null for equal frequencies.
    """

    def __init__(
        self,
        fields: Generators,
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        named = _to_named_dict(fields)
        frequencies = _to_named_dict(weights) if weights else dict.fromkeys(named, 1.0)
        probability = np.array([frequencies.get(name, -1) for name in named], np.float64)
        if len(frequencies) != len(named) or (probability < 0).any() or not probability.sum() > 0:
            raise UserError(
                f"Choice: weights={weights} must give a frequency for each of {[*named]}."
            )
        self.fields = list(named.values())
        self.probability = probability / probability.sum()

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        index = rng.choice(len(self.fields), p=self.probability)
        return self.fields[index](rng, shape, spacing)


class Sum:
    """The sum of one field from each of several generators, by name or in a list."""

    def __init__(self, fields: Generators) -> None:
        self.fields = list(_to_named_dict(fields).values())
        if not self.fields:
            raise UserError("Sum: name at least one generator below 'fields'.")

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        return torch.stack([field(rng, shape, spacing) for field in self.fields]).sum(0)


class Zero:
    """A displacement of zero."""

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        return torch.zeros(1, len(shape), *shape)


def compute_gaussian_weights(distance: Tensor, sigma: float, radius: int) -> Tensor:
    """Compute Gaussian weights of integer distances, truncated at ``radius`` with sum 1; float64.

    >>> compute_gaussian_weights(torch.arange(-2, 3), 1.0, 1)
    tensor([0.0000, 0.2741, 0.4519, 0.2741, 0.0000], dtype=torch.float64)
    """
    support = torch.arange(-radius, radius + 1, dtype=torch.float64)
    bell, total = (torch.exp(-0.5 * (x / sigma) ** 2) for x in (distance.double(), support))
    return bell * (distance.abs() <= radius) / total.sum()


def apply_separable(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a matrix (new_k, n_k) along every spatial axis k of x (C, *n); gives (C, *new).

    Each product moves its axis to the end, so that the original order returns after all of them.
    :func:`regnet_lab.ops.bspline.apply_along_axes` sums in another order.
    """
    for matrix in matrices:
        x = (x.flatten(2).mT @ matrix.T).unflatten(1, x.shape[2:])
    return x
