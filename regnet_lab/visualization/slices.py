"""Planes through an image of any dimension, oriented as in a viewer.

Axes are shown as stored: of the two axes of a plane the lower one points right and the other one
up, with the first voxel at the lower left.  For a RAS volume this is the neurological convention:
right is right, anterior and superior are up.
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
    voxel: tuple[int, ...]

    @property
    def cuts(self) -> list[str]:
        """The plane's position along the axes it does not show."""
        return [f"axis {a} = {x}" for a, x in enumerate(self.voxel) if a not in self.axes]

    @property
    def description(self) -> str:
        """The plane's position and the direction of its axes."""
        right, up = self.axes
        return "\n".join([*self.cuts, f"axis {right} right, {up} up"])


def find_center_voxel(weight: Array) -> tuple[int, ...]:
    """Return the voxel nearest the center of mass of ``weight``; the middle one if it is all zero.

    >>> find_center_voxel(np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 1.0]]))
    (1, 1)
    """
    weight = np.nan_to_num(weight, posinf=0, neginf=0)
    if not weight.any():
        return tuple(n // 2 for n in weight.shape)
    center = np.rint(ndimage.center_of_mass(weight))
    return tuple(np.clip(center, 0, np.array(weight.shape) - 1).astype(int).tolist())


def get_orthogonal_planes(voxel: Sequence[int]) -> list[Plane]:
    """Return every plane of two axes through a voxel: one in 2D, three in 3D."""
    return [Plane(axes, tuple(voxel)) for axes in combinations(range(len(voxel)), 2)]


def space_evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices below ``count``, with the first and the last one.

    >>> space_evenly(10, 4)
    [0, 3, 6, 9]
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def extract_slice(volume: Array, plane: Plane) -> Array:
    """Extract a plane of ``volume`` (*channels, *spatial) as (*channels, right, up)."""
    index = [slice(None) if a in plane.axes else x for a, x in enumerate(plane.voxel)]
    return volume[(..., *index)]


def compute_grid_steps(
    shape: Sequence[int], spacing: Sequence[float], lines: int = 20
) -> list[int]:
    """Compute the voxels between the lines of a grid that is square in mm.

    Along the longest side are about ``lines`` lines; ``spacing`` is in mm per voxel.

    >>> compute_grid_steps([40, 80], [2.0, 1.0], lines=10)
    [4, 8]
    """
    step = max(n * mm for n, mm in zip(shape, spacing, strict=True)) / lines
    return [max(1, round(step / mm)) for mm in spacing]


def compute_warped_grid_lines(u: Array, plane: Plane, steps: Sequence[int]) -> list[Array]:
    """Map the regular grid lines of a plane by phi(x) = x + u(x), projected onto the plane.

    Args:
        u: (D, *spatial) displacement in voxels.
        plane: Plane of the fixed grid; the component of ``u`` across it is ignored.
        steps: Voxels between lines, for each axis of the volume.

    Returns:
        Polylines (points, 2) in voxels, right and up; the vertical lines come first.
    """
    in_plane = extract_slice(u, plane)[list(plane.axes)]  # (2, right, up)
    points = np.moveaxis(np.indices(in_plane.shape[1:]) + in_plane, 0, -1)
    right, up = (steps[axis] for axis in plane.axes)
    return [*points[::right], *points.swapaxes(0, 1)[::up]]
