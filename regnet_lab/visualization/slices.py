"""Planes through an image of any dimension, as a viewer shows them.

Axes are shown as stored: of the two axes of a plane the lower one runs to the right, the other
one up, the first voxel at the lower left.  For a RAS volume that is the neurological view: right
is right, anterior and superior are up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import ndimage

Array = np.ndarray


@dataclass(frozen=True)
class Plane:
    """The plane spanned by two array axes through one voxel."""

    axes: tuple[int, int]  # to the right, up
    through: tuple[int, ...]

    @property
    def name(self) -> str:
        """Where the plane cuts the axes it does not show, and where those it shows point."""
        cuts = [f"axis {a} = {x}" for a, x in enumerate(self.through) if a not in self.axes]
        right, up = self.axes
        return "\n".join([*cuts, f"axis {right} right, {up} up"])


def centre(weight: Array) -> tuple[int, ...]:
    """Voxel nearest the centre of mass of ``weight`` (*spatial); the middle if that is zero."""
    weight = np.nan_to_num(weight, posinf=0, neginf=0)
    if not weight.any():
        return tuple(n // 2 for n in weight.shape)
    mass = ndimage.center_of_mass(weight)
    return tuple(int(np.clip(round(x), 0, n - 1)) for x, n in zip(mass, weight.shape, strict=True))


def planes(through: Sequence[int]) -> list[Plane]:
    """Every plane of two axes through a voxel: one in 2D, three in 3D."""
    return [Plane(axes, tuple(through)) for axes in combinations(range(len(through)), 2)]


def cut(volume: Array, plane: Plane) -> Array:
    """The plane of ``volume`` (*channels, *spatial), as (*channels, right, up)."""
    index = [slice(None) if a in plane.axes else x for a, x in enumerate(plane.through)]
    return volume[(..., *index)]


def grid_steps(shape: Sequence[int], spacing: Sequence[float], lines: int = 20) -> list[int]:
    """Voxels between lines of a grid that is square in mm, ``lines`` along the longest side."""
    step = max(n * mm for n, mm in zip(shape, spacing, strict=True)) / lines
    return [max(1, round(step / mm)) for mm in spacing]


def grid_lines(u: Array, plane: Plane, steps: Sequence[int]) -> list[Array]:
    """Regular lines of a plane carried by phi(x) = x + u(x), seen along the plane.

    Args:
        u: (D, *spatial) displacement in voxels.
        plane: Where to cut it; the component that leaves the plane is not seen.
        steps: Voxels between lines, for each axis of the volume.

    Returns:
        Polylines (points, 2) in voxels, right and up: first those that run up.
    """
    inside = cut(u, plane)[list(plane.axes)]  # (2, right, up)
    points = np.moveaxis(np.indices(inside.shape[1:]) + inside, 0, -1)
    right, up = (steps[axis] for axis in plane.axes)
    return [*points[::right], *points.swapaxes(0, 1)[::up]]
