from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

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
    has_right_angles,
    relate_grids,
)
from tests.orientations import ORIENTATIONS, SAME, SIZES, Orientation, image_with_corner, name_of, reorient

DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
SCAN = Geometry((7, 6, 5), (0.5, 1.0, 2.0), (-12.5, 3.0, 40.0), DIRECTION)
INSIDE, OUTSIDE = 0.99, 1.01


def changed(name: str, axis: int, step: float) -> Geometry:
    values = list(getattr(SCAN, name))
    values[axis] += step
    return replace(SCAN, **{name: tuple(values)})


def quantities(found: Geometry, expected: Geometry = SCAN, **options: Any) -> list[str]:
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


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=name_of)
def test_every_order_and_flip_of_the_axes_is_turned_back(orientation: Orientation, size: tuple[int, ...]) -> None:
    expected = image_with_corner(size)
    found = reorient(expected, orientation)
    relation = relate_grids(geometry_of_image(found), geometry_of_image(expected))
    if orientation == SAME:
        assert relation.is_same
        return
    assert relation.turn is not None
    assert not relation.is_same
    assert not relation.header_may_be_replaced
    turned = relation.turn.turn_array(sitk.GetArrayFromImage(found))
    np.testing.assert_array_equal(turned, sitk.GetArrayFromImage(expected))
    assert quantities(relation.turn.turn_geometry(geometry_of_image(found)), geometry_of_image(expected)) == []


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=name_of)
def test_grids_in_another_place_are_not_turned(orientation: Orientation) -> None:
    expected = geometry_of_image(image_with_corner(SIZES["volume"]))
    found = geometry_of_image(reorient(image_with_corner(SIZES["volume"]), orientation))
    origin, spacing = found.origin_mm, found.spacing_mm
    a_degree = sitk.Euler3DTransform((0, 0, 0), np.deg2rad(1), 0, 0).GetMatrix()
    rotated = np.reshape(a_degree, (3, 3)) @ np.reshape(found.direction, (3, 3))
    for other in (
        replace(found, origin_mm=(origin[0] + 0.1, *origin[1:])),
        replace(found, spacing_mm=(spacing[0] * 1.01, *spacing[1:])),
        replace(found, direction=tuple(rotated.ravel())),
        replace(found, shape=(found.shape[0] + 1, *found.shape[1:])),
    ):
        relation = relate_grids(other, expected)
        assert (relation.is_same, relation.turn) == (False, None)
    moved = relate_grids(replace(found, origin_mm=(0.0, 0.0, 0.0)), expected)
    assert moved.header_may_be_replaced == (orientation == SAME)  # with another direction the header stays


@pytest.mark.parametrize("flips", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_dimensional_files_are_turned_in_their_plane(
    tmp_path: Path, order: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    expected = image_with_corner((7, 6, 5))[:, :, 2]
    found = sitk.PermuteAxes(expected, order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    volumes = []
    for name, one in (("found", found), ("expected", expected)):
        sitk.WriteImage(one, str(tmp_path / f"{name}.mha"))
        volumes.append(SimpleITKIO().read_seg(str(tmp_path / f"{name}.mha")))
    geometries = [geometry_of_array(voxels.shape[1:], properties) for voxels, properties in volumes]
    turn = relate_grids(*geometries).turn
    assert turn is not None
    np.testing.assert_array_equal(turn.turn_array(volumes[0][0][0]), volumes[1][0][0])


def test_a_two_dimensional_file_lies_in_the_plane_of_a_slice() -> None:
    plane = Geometry((7, 6, 1), (0.5, 1.0, 999.0), (1.0, 2.0), (1.0, 0.0, 0.0, 1.0))
    unit = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert relate_grids(plane, Geometry((7, 6, 1), (0.5, 1.0, 5.0), (1.0, 2.0, 70.0), unit)).is_same
    elsewhere = relate_grids(plane, Geometry((7, 6, 1), (0.5, 1.0, 5.0), (1.0, 3.0, 70.0), unit))
    assert [difference.quantity for difference in elsewhere.differences] == ["origin"]


def test_the_spacing_of_an_axis_of_one_voxel_counts_for_channels_only() -> None:
    slices = [replace(SCAN, shape=(7, 6, 1), spacing_mm=(0.5, 1.0, thickness)) for thickness in (2.0, 5.0)]
    assert relate_grids(*slices).is_same
    assert quantities(*slices, thin_axes=True) == ["spacing"]


@pytest.mark.parametrize(
    ("orientation", "words"),
    [
        (((1, 0, 2), (False, False, False)), "axes in the order y, x, z"),
        (((0, 1, 2), (True, False, True)), "x and z reversed"),
        (((2, 0, 1), (True, False, False)), "axes in the order y, z, x; z reversed"),
    ],
)
def test_a_turn_is_told_in_words(orientation: Orientation, words: str) -> None:
    expected = image_with_corner(SIZES["volume"])
    found = reorient(expected, orientation)
    assert str(relate_grids(geometry_of_image(found), geometry_of_image(expected)).turn) == words


def test_right_angles() -> None:
    assert has_right_angles(SCAN)
    assert has_right_angles(replace(SCAN, direction=()))
    assert has_right_angles(changed("direction", 0, 0.9 * DIRECTION_TOLERANCE))
    assert not has_right_angles(changed("direction", 0, 1.1 * DIRECTION_TOLERANCE))


GRIDS = st.fixed_dictionaries(
    {
        "size": st.tuples(*[st.integers(1, 12)] * 3),
        "spacing": st.tuples(*[st.floats(0.2, 8.0)] * 3),
        "origin": st.tuples(*[st.floats(-500.0, 500.0)] * 3),
        "angles": st.tuples(*[st.floats(-3.1, 3.1)] * 3),
        "orientation": st.sampled_from(ORIENTATIONS),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def check_random_grid(size, spacing, origin, angles, orientation, seed) -> None:
    """Turn a random structure away on a random grid, and check that it comes back voxel by voxel."""
    voxels = np.random.default_rng(seed).integers(0, 2, size[::-1], dtype=np.uint8)
    expected = sitk.GetImageFromArray(voxels)
    expected.SetSpacing(spacing)
    expected.SetOrigin(origin)
    expected.SetDirection(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix())
    found = reorient(expected, orientation)
    relation = relate_grids(geometry_of_image(found), geometry_of_image(expected))
    assert relation.is_same or relation.turn is not None
    turned = sitk.GetArrayFromImage(found)
    turned = relation.turn.turn_array(turned) if relation.turn else turned
    np.testing.assert_array_equal(turned, voxels)


@given(GRIDS)
@settings(max_examples=15, deadline=None)
def test_a_structure_on_a_random_grid_comes_back(grid) -> None:
    check_random_grid(**grid)


@pytest.mark.nightly
@given(GRIDS)
@settings(max_examples=200, deadline=None)
def test_a_structure_on_many_random_grids_comes_back(grid) -> None:
    check_random_grid(**grid)
