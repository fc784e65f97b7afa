"""What makes displacement fields, and how several such makers become one."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from regnet_lab.errors import UserError

T = TypeVar("T")


class FieldGenerator(Protocol):
    """Draws a displacement (1, D, *shape) in voxels for a grid and its millimetres per voxel."""

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor: ...


def _named(items: Mapping[str, T] | Sequence[T]) -> dict[str, T]:
    """Items by name; those of a list are called 0, 1, ..."""
    if isinstance(items, Mapping):
        return dict(items)
    return {str(number): item for number, item in enumerate(items)}


class Choice:
    """One of several generators for each field.

    Args:
        fields: The generators, by name or in a list.
        weights: Their relative frequencies, likewise; null: all alike.
    """

    def __init__(
        self,
        fields: Mapping[str, FieldGenerator] | Sequence[FieldGenerator],
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        named = _named(fields)
        share = _named(weights) if weights else dict.fromkeys(named, 1.0)
        frequency = np.array([share.get(name, -1) for name in named], np.float64)
        if len(share) != len(named) or (frequency < 0).any() or not frequency.sum() > 0:
            raise UserError(f"Choice: weights={weights} must give a share to each of {[*named]}.")
        self.fields = list(named.values())
        self.frequency = frequency / frequency.sum()

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        chosen = rng.choice(len(self.fields), p=self.frequency)
        return self.fields[chosen](rng, shape, spacing)


class Sum:
    """Several fields, one from each generator, added.

    Args:
        fields: The generators, by name or in a list.
    """

    def __init__(self, fields: Mapping[str, FieldGenerator] | Sequence[FieldGenerator]) -> None:
        self.fields = list(_named(fields).values())
        if not self.fields:
            raise UserError("Sum: name at least one generator below 'fields'.")

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        return torch.stack([field(rng, shape, spacing) for field in self.fields]).sum(0)


class Zero:
    """No displacement at all."""

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        return torch.zeros(1, len(shape), *shape)


def gaussian(distance: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian at whole distances, zero beyond ``radius`` and with sum 1 up to there; float64."""
    support = torch.arange(-radius, radius + 1, dtype=torch.float64)
    bell, total = (torch.exp(-0.5 * (x / sigma) ** 2) for x in (distance.double(), support))
    return bell * (distance.abs() <= radius) / total.sum()


def separable(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a matrix (new_k, n_k) along every spatial axis k of x (C, *n); gives (C, *new).

    Each product moves its axis to the end, so that after all of them the order is the old one.
    """
    for matrix in matrices:
        x = (x.flatten(2).mT @ matrix.T).unflatten(1, x.shape[2:])
    return x
