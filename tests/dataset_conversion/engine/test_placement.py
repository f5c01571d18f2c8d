from __future__ import annotations

from dataclasses import replace

import pytest

from nnssl.data.geometry import Geometry, relate_grids
from nnssl.dataset_conversion.engine.placement import describe_differences

UNIT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
IMAGE = Geometry((7, 6, 5), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), UNIT)
MOVED = replace(IMAGE, origin_mm=(5.0, 0.0, 0.0), spacing_mm=(1.0, 1.0, 2.5))


@pytest.mark.parametrize(
    ("found", "may_be_fixed", "lines", "repair"),
    [
        (replace(MOVED, shape=(7, 6, 4)), True, 1, "its image has 7 x 6 x 5"),
        (MOVED, True, 2, "correct the header, or add --fix_geometry to take the image's"),
        (MOVED, False, 2, "correct the header that is wrong"),
        (replace(MOVED, direction=UNIT[3:] + UNIT[:3]), True, 3, "or resample the file to the grid of the image"),
    ],
)
def test_the_repair_fits_the_difference(found: Geometry, may_be_fixed: bool, lines: int, repair: str) -> None:
    described = describe_differences("gt", relate_grids(found, IMAGE), may_be_fixed)
    assert len(described) == lines
    assert all(line.startswith("gt has ") and line.endswith(repair) for line in described)
