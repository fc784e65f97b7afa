"""Values are clipped to the range of an integer type, never wrapped."""

import numpy as np
import pytest

from regnet_lab.utils.casts import cast_to_dtype


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]
)
def test_values_beyond_an_integer_type_become_its_limits(dtype, source):
    limits = np.iinfo(dtype)
    extremes = np.array([float(limits.max), float(limits.min), 1e30, -1e30, np.inf, -np.inf])
    expected = [limits.max, limits.min, limits.max, limits.min, limits.max, limits.min]
    assert cast_to_dtype(extremes.astype(source), dtype).tolist() == expected
    inner = np.array([0.4, 0.6, 99.5, np.nan], source)
    assert cast_to_dtype(inner, dtype).tolist() == [0, 1, 100, 0]


def test_floats_and_booleans_keep_their_meaning():
    assert cast_to_dtype(np.array([1.25, np.nan]), np.float32).tolist()[0] == 1.25
    assert cast_to_dtype(np.array([0.2, 0.5, 1.0]), bool).tolist() == [False, True, True]
    whole = np.array([2**62 + 1, -5])
    np.testing.assert_array_equal(cast_to_dtype(whole, np.int64), whole)
