"""The values that occur in a label file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nnssl.data.raw import listed


def present_values(voxels: Any) -> set[float]:  # noqa: ANN401 - an array view (D, H, W)
    """Return the values that occur, plane by plane: sorting a whole volume takes several times its memory."""
    found: set[float] = set()
    for plane in voxels:
        if plane.dtype.kind in "iu" and int(plane.max()) - int(plane.min()) < 1 << 16:
            low = int(plane.min())
            seen = np.zeros(int(plane.max()) - low + 1, dtype=bool)
            seen[plane.astype(np.int64) - low] = True
            found |= {float(value) for value in np.flatnonzero(seen) + low}
        else:
            found |= {float(value) for value in np.unique(plane)}
    return found


def describe_unknown_values(name: str, unknown: Sequence[float], expected: Iterable[int]) -> str:
    """Return the problem of a label file with values that the data set does not have.

    Args:
        name: name of the file.
        unknown: the values, sorted.
        expected: the values that the data set has; without any, these are all whole numbers of one byte.
    """
    found = listed([f"{value:g}" for value in unknown])
    known = ", ".join(map(str, sorted(expected))) or "whole numbers from 0 to 255"
    return f"{name} has the label value(s) {found}, expected are {known}"
