"""Conversion of computed values to the integer type of an image."""

import numpy as np
from numpy.typing import DTypeLike, NDArray


def cast_to_dtype(array: NDArray, dtype: DTypeLike) -> NDArray:
    """Convert an array to a dtype; for integers it is rounded and clipped to their range.

    Values that are not a number become 0 in an integer type.

    >>> cast_to_dtype(np.array([-0.6, 3.5, 255.7, 1e9]), np.uint8)
    array([  0,   4, 255, 255], dtype=uint8)
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.asarray(array) >= 0.5
    if dtype.kind not in "iu" or array.dtype == dtype:
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    values = np.nan_to_num(np.rint(array), nan=0.0, posinf=np.inf, neginf=-np.inf)
    inside = (values > limits.min) & (values < limits.max)  # as floats these may lie beyond
    result = np.where(inside, values, 0).astype(dtype)
    result[values >= limits.max] = limits.max
    result[values <= limits.min] = limits.min
    return result
