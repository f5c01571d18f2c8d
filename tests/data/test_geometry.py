from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.data.geometry import (
    CHANNEL_SPACING_TOLERANCE,
    DIRECTION_TOLERANCE,
    ORIGIN_TOLERANCE,
    SMALLEST_ORIGIN_TOLERANCE_MM,
    SPACING_TOLERANCE,
    Geometry,
    axis_code,
    find_differences,
    geometry_of_array,
    geometry_of_image,
)

DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
SCAN = Geometry((7, 6, 5), (0.5, 1.0, 2.0), (-12.5, 3.0, 40.0), DIRECTION)
INSIDE, OUTSIDE = 0.99, 1.01


def changed(name: str, axis: int, step: float) -> Geometry:
    values = list(getattr(SCAN, name))
    values[axis] += step
    return replace(SCAN, **{name: tuple(values)})


def quantities(found: Geometry, expected: Geometry = SCAN, **options: float) -> list[str]:
    return [difference.quantity for difference in find_differences(found, expected, **options)]


def test_the_same_place() -> None:
    assert find_differences(SCAN, SCAN) == []


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "quantity", "limits"),
    [
        ("spacing_mm", "spacing", [SPACING_TOLERANCE * mm for mm in SCAN.spacing_mm]),
        ("origin_mm", "origin", [ORIGIN_TOLERANCE * min(SCAN.spacing_mm)] * 3),
        ("direction", "direction", [DIRECTION_TOLERANCE] * 3),
    ],
)
def test_limits(name: str, quantity: str, limits: list[float], axis: int, sign: int) -> None:
    assert quantities(changed(name, axis, sign * INSIDE * limits[axis])) == []
    (difference,) = find_differences(changed(name, axis, sign * OUTSIDE * limits[axis]), SCAN)
    assert difference.quantity == quantity
    assert difference.expected == getattr(SCAN, name)
    assert difference.found[axis] == pytest.approx(getattr(SCAN, name)[axis] + sign * OUTSIDE * limits[axis])


def test_channels_have_a_narrower_limit() -> None:
    step = 0.5 * CHANNEL_SPACING_TOLERANCE
    assert quantities(changed("spacing_mm", 0, 0.9 * step), spacing_tolerance=CHANNEL_SPACING_TOLERANCE) == []
    found = changed("spacing_mm", 0, 1.1 * step)
    assert quantities(found) == []
    (difference,) = find_differences(found, SCAN, spacing_tolerance=CHANNEL_SPACING_TOLERANCE)
    assert difference.tolerance == "1e-05, relative"


def test_origins_of_very_small_voxels_may_be_rounded() -> None:
    tiny = replace(SCAN, spacing_mm=(0.01, 0.01, 0.01))
    for factor, expected in ((INSIDE, []), (OUTSIDE, ["origin"])):
        moved = replace(tiny, origin_mm=(-12.5 + factor * SMALLEST_ORIGIN_TOLERANCE_MM, 3.0, 40.0))
        assert quantities(moved, tiny) == expected


def test_every_difference_is_told_in_order() -> None:
    other = Geometry((7, 6, 6), (0.6, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    assert quantities(other) == ["shape", "spacing", "origin", "direction"]
    assert quantities(replace(SCAN, shape=(7, 6))) == ["shape"]


def test_what_a_file_does_not_tell_is_not_compared() -> None:
    for name in ("origin_mm", "direction"):
        without = replace(SCAN, **{name: ()})
        assert quantities(without) == quantities(SCAN, without) == []


def test_not_a_number_is_a_difference() -> None:
    for name, quantity in (("spacing_mm", "spacing"), ("origin_mm", "origin"), ("direction", "direction")):
        assert quantities(changed(name, 1, float("nan"))) == [quantity]


def image(direction: tuple[float, ...] = DIRECTION) -> sitk.Image:
    made = sitk.GetImageFromArray(np.zeros((5, 6, 7), np.uint8))
    made.SetSpacing(SCAN.spacing_mm)
    made.SetOrigin(SCAN.origin_mm)
    made.SetDirection(direction)
    return made


def test_the_geometry_of_an_image_is_its_header() -> None:
    assert geometry_of_image(image()) == SCAN


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
def test_every_reader_gives_one_geometry(tmp_path: Path, name: str) -> None:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    sitk.WriteImage(image(), str(tmp_path / "a.nii.gz"))
    voxels, properties = recursive_find_reader_writer_by_name(name)().read_seg(str(tmp_path / "a.nii.gz"))
    found = geometry_of_array(voxels.shape[1:], properties)
    assert found.shape == SCAN.shape
    for quantity in ("spacing_mm", "origin_mm", "direction"):
        assert getattr(found, quantity) == pytest.approx(getattr(SCAN, quantity), abs=1e-5)
    assert find_differences(found, SCAN) == []


def test_a_reader_that_turns_the_array_turns_the_geometry(tmp_path: Path) -> None:
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    sitk.WriteImage(image(), str(tmp_path / "a.nii.gz"))
    voxels, properties = NibabelIOWithReorient().read_seg(str(tmp_path / "a.nii.gz"))
    found = geometry_of_array(voxels.shape[1:], properties)
    assert found.shape == (6, 7, 5)
    assert axis_code(found) == "RAS"


def test_a_reader_without_placement() -> None:
    assert geometry_of_array((4, 5), {"spacing": (2.0, 1.0)}) == Geometry((5, 4), (1.0, 2.0))


@pytest.mark.parametrize(
    ("direction", "code"),
    [
        (np.eye(3), "LPS"),
        (np.diag([-1.0, -1.0, 1.0]), "RAS"),
        (np.eye(3)[[2, 0, 1]], "PSL"),
        (np.eye(4), "LPS"),
        (np.eye(2), ""),
    ],
)
def test_axis_codes(direction: np.ndarray, code: str) -> None:
    assert axis_code(Geometry((1, 1, 1), (1.0, 1.0, 1.0), (), tuple(direction.ravel()))) == code
    assert axis_code(Geometry((1, 1, 1), (1.0, 1.0, 1.0))) == ""
