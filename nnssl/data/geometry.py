"""Where a voxel grid lies in space, and the one rule that says whether two grids lie in the same place.

The check of a raw data set, the converters and the evaluation all use this rule, so that data which one of them accepts
is accepted by the others.

The tolerances lie far above the rounding of file headers (NIfTI stores 32-bit numbers, text headers a few digits) and
below what moves a voxel. A relative spacing of 1e-3, or a direction cosine of 1e-3 (0.06 degrees), shifts the far end
of an axis of 500 voxels by half a voxel. An origin may be off by a hundredth of a voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SPACING_TOLERANCE = 1e-3  # relative
CHANNEL_SPACING_TOLERANCE = 1e-5  # relative; nnU-Net's readers refuse channels of a case that differ by more
ORIGIN_TOLERANCE = 0.01  # in units of the smallest voxel edge
SMALLEST_ORIGIN_TOLERANCE_MM = 1e-3  # 32-bit headers round a position of some metres by this much
DIRECTION_TOLERANCE = 1e-3  # for each cosine

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # nibabel's world coordinates to those of ITK and DICOM

Quantity = Literal["shape", "spacing", "origin", "direction"]


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in space. Axes are in the order of the file (x, y, z), world coordinates are LPS, as in ITK.

    Attributes:
        shape: voxels along each axis.
        spacing_mm: voxel size along each axis, mm.
        origin_mm: centre of the first voxel, mm; empty where the file does not tell it.
        direction: direction cosines, the rows of the matrix one after another; column k is the direction of axis k.
            Empty where the file does not tell them.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One quantity in which two geometries differ.

    Attributes:
        quantity: `shape`, `spacing`, `origin` or `direction`.
        found: the value of the compared geometry, axes in the order of the file.
        expected: the value of the geometry that it should agree with.
        tolerance: how far the two may differ, in words.
    """

    quantity: Quantity
    found: tuple[float, ...]
    expected: tuple[float, ...]
    tolerance: str


def geometry_of_image(image: Any) -> Geometry:  # noqa: ANN401 - SimpleITK has no types
    """Return the geometry of a SimpleITK image."""
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def geometry_of_array(shape: Sequence[int], properties: Mapping[str, Any]) -> Geometry:
    """Return the geometry of an array that one of nnU-Net's readers read.

    Args:
        shape: spatial shape of the array; its axes are in the reverse order of the file's axes.
        properties: what the reader tells about the file; `spacing` has the order of the array's axes.
    """
    spacing_mm = tuple(float(mm) for mm in reversed(properties["spacing"]))
    size = tuple(int(voxels) for voxels in reversed(shape))
    if "sitk_stuff" in properties:
        stored = properties["sitk_stuff"]
        return Geometry(size, spacing_mm, tuple(map(float, stored["origin"])), tuple(map(float, stored["direction"])))
    if "nibabel_stuff" in properties:
        stored = properties["nibabel_stuff"]
        affine = np.asarray(stored.get("reoriented_affine", stored["original_affine"]), dtype=np.float64)
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        origin = RAS_TO_LPS @ affine[:3, 3]
        return Geometry(size, spacing_mm, tuple(origin.tolist()), tuple((RAS_TO_LPS @ cosines).ravel().tolist()))
    return Geometry(size, spacing_mm)


def axis_code(geometry: Geometry) -> str:
    """Return where the axes of the grid point to, `RAS` for instance; empty without a direction in three dimensions."""
    import nibabel

    axes = round(len(geometry.direction) ** 0.5)
    if axes < 3:
        return ""
    affine = np.eye(4)
    affine[:3, :3] = RAS_TO_LPS @ np.reshape(geometry.direction, (axes, axes))[:3, :3]  # its own inverse
    return "".join(map(str, nibabel.aff2axcodes(affine)))


def find_differences(
    found: Geometry, expected: Geometry, *, spacing_tolerance: float = SPACING_TOLERANCE
) -> list[Difference]:
    """Return the quantities in which two geometries differ, in the order shape, spacing, origin, direction.

    An empty list means that both grids lie in the same place. Origin and direction are compared where both geometries
    have them.

    Args:
        found: the geometry to check.
        expected: the geometry that it should agree with; the tolerances are relative to its voxel size.
        spacing_tolerance: relative tolerance of the spacing; only the channels of one case need another one.
    """
    spacing = np.asarray(expected.spacing_mm, dtype=np.float64)
    origin_mm = max(SMALLEST_ORIGIN_TOLERANCE_MM, ORIGIN_TOLERANCE * float(spacing.min(initial=np.inf)))
    origin_words = (
        f"{origin_mm:.3g} mm: {ORIGIN_TOLERANCE:.0%} of the smallest voxel edge, "
        f"at least {SMALLEST_ORIGIN_TOLERANCE_MM:g} mm"
    )
    checks: tuple[tuple[Quantity, Sequence[float], Sequence[float], float | NDArray[np.float64], str], ...] = (
        ("shape", found.shape, expected.shape, 0.0, "0"),
        (
            "spacing",
            found.spacing_mm,
            expected.spacing_mm,
            spacing_tolerance * spacing,
            f"{spacing_tolerance:g}, relative",
        ),
        ("origin", found.origin_mm, expected.origin_mm, origin_mm, origin_words),
        ("direction", found.direction, expected.direction, DIRECTION_TOLERANCE, f"{DIRECTION_TOLERANCE:g} each"),
    )
    return [
        Difference(quantity, tuple(ours), tuple(theirs), words)
        for quantity, ours, theirs, tolerance, words in checks
        if len(ours) and len(theirs) and not _agree(ours, theirs, tolerance)
    ]


def _agree(first: Sequence[float], second: Sequence[float], tolerance: float | NDArray[np.float64]) -> bool:
    """Return whether two lists of numbers agree; NaN agrees with nothing."""
    if len(first) != len(second):
        return False
    distance = np.abs(np.subtract(first, second, dtype=np.float64))
    return bool((distance <= tolerance).all())
