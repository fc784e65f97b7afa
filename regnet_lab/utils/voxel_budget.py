"""The voxel size at which a grid has at most a given number of voxels."""

from collections.abc import Callable


def enlarge_voxels(size: float, count_voxels: Callable[[float], float], max_voxels: float) -> float:
    """Enlarge a voxel size in steps of 2 percent until a grid has at most ``max_voxels``.

    >>> round(enlarge_voxels(1.0, lambda size: (100 / size) ** 3, max_voxels=1e5), 2)
    2.16
    """
    while count_voxels(size) > max_voxels:
        size *= 1.02
    return size
