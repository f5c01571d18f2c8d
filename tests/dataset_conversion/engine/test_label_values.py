from __future__ import annotations

import numpy as np
import pytest

from nnssl.dataset_conversion.engine.label_values import describe_unknown_values, present_values


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_values_that_occur(dtype: type) -> None:
    voxels = np.zeros((3, 4, 5), dtype)
    voxels[1, 2, 3], voxels[2, 0, 0] = 7, 100
    assert present_values(voxels) == {0.0, 7.0, 100.0}
    if np.issubdtype(dtype, np.signedinteger):
        voxels[0, 0, 0] = -5
        assert present_values(voxels) == {-5.0, 0.0, 7.0, 100.0}


def test_unknown_values_are_told_with_the_known_ones() -> None:
    assert describe_unknown_values("a", [0.5], {1: 0, 0: 0}) == "a has the label value(s) 0.5, expected are 0, 1"
    assert describe_unknown_values("a", range(300, 306), ()) == (
        "a has the label value(s) 300, 301, 302, 303, 304 …, expected are whole numbers from 0 to 255"
    )
