"""Where a voxel grid lies in space, and the one rule that says how two grids relate.

Two grids lie in the same place; or one grid is the other with flipped or reordered axes, so that the same voxels lie in
the same places and only their order in the array differs; or the grids differ. The check of a raw data set, the
converters and the evaluation all use this rule, so that data which one of them accepts is accepted by the others.

The tolerances lie far above the rounding of file headers (NIfTI stores 32-bit numbers, text headers a few digits) and
below what moves a voxel. A relative spacing of 1e-3, or a direction cosine of 1e-3 (0.06 degrees), shifts the far end
of an axis of 500 voxels by half a voxel. An origin may be off by a hundredth of a voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

SPACING_TOLERANCE = 1e-3  # relative
CHANNEL_SPACING_TOLERANCE = 1e-5  # relative; nnU-Net's readers refuse channels of a case that differ by more
ORIGIN_TOLERANCE = 0.01  # in units of the smallest voxel edge
SMALLEST_ORIGIN_TOLERANCE_MM = 1e-3  # 32-bit headers round a position of some metres by this much
DIRECTION_TOLERANCE = 1e-3  # for each cosine
AXIS_NAMES = "xyzt"  # of the file's axes

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # nibabel's world coordinates to those of ITK and DICOM

Quantity = Literal["shape", "spacing", "origin", "direction"]
ScalarT = TypeVar("ScalarT", bound=np.generic)


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


@dataclass(frozen=True)
class AxisTurn:
    """How to bring an array to the axes of another grid: in three dimensions one of 48 orders and flips of the axes.

    Attributes:
        order: for each axis of the other grid, the axis of the array's own grid that runs along it. All axes are in the
            order of the file (x, y, z).
        reversed_axes: for each axis of the other grid, whether the own axis runs the other way.
    """

    order: tuple[int, ...]
    reversed_axes: tuple[bool, ...]

    def __str__(self) -> str:
        steps = []
        if list(self.order) != sorted(self.order):
            steps.append(f"axes in the order {', '.join(AXIS_NAMES[axis] for axis in self.order)}")
        names = [AXIS_NAMES[axis] for axis, is_reversed in enumerate(self.reversed_axes) if is_reversed]
        if names:
            steps.append(f"{' and '.join(names)} reversed")
        return "; ".join(steps) or "nothing to turn"

    def turn_array(self, array: NDArray[ScalarT]) -> NDArray[ScalarT]:
        """Return a view of the array on the axes of the other grid.

        Args:
            array: voxels (*S), one array axis for each axis of the grid, in the reverse order of the file's axes.
        """
        last = array.ndim - 1
        turned = array.transpose([last - axis for axis in reversed(self.order)])
        steps = [-1 if is_reversed else 1 for is_reversed in reversed(self.reversed_axes)]
        return turned[tuple(slice(None, None, step) for step in steps)]

    def turn_geometry(self, geometry: Geometry) -> Geometry:
        """Return the geometry of the turned array; the first voxel lies at another corner where an axis is reversed."""
        cosines, origin = _direction_matrix(geometry), np.asarray(geometry.origin_mm, dtype=np.float64)
        axes = self.order[: len(cosines)]
        signs = np.where(self.reversed_axes[: len(cosines)], -1.0, 1.0)
        shape = tuple(geometry.shape[axis] for axis in self.order)
        spacing = tuple(geometry.spacing_mm[axis] for axis in self.order)
        for axis, sign in zip(axes, signs, strict=True):
            if sign < 0:
                origin = origin + (geometry.shape[axis] - 1) * geometry.spacing_mm[axis] * cosines[:, axis]
        turned = cosines[:, list(axes)] * signs
        return Geometry(shape, spacing, tuple(origin.tolist()), tuple(turned.ravel().tolist()))


@dataclass(frozen=True)
class GridRelation:
    """How one grid relates to another.

    Attributes:
        differences: the quantities in which the grids differ as they are; without any, both lie in the same place.
        turn: brings the array of the compared grid to the axes of the other grid; None where the grids lie in the same
            place, and where no turn makes them agree.
    """

    differences: tuple[Difference, ...]
    turn: AxisTurn | None = None

    @property
    def is_same(self) -> bool:
        """Whether both grids lie in the same place, voxel by voxel."""
        return not self.differences

    @property
    def header_may_be_replaced(self) -> bool:
        """Whether the array may take the header of the other grid.

        This needs the same shape and the same direction. With another direction nobody can know whether the header is
        wrong or the array is stored on other axes, and a wrong guess mirrors or turns a structure.
        """
        return self.turn is None and not {"shape", "direction"} & {found.quantity for found in self.differences}


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


def has_right_angles(geometry: Geometry) -> bool:
    """Return whether the axes of the grid are at right angles; True where the file does not tell their direction.

    Headers with sheared axes exist. Voxel sizes and distances along such axes are not those in space.
    """
    cosines = _direction_matrix(geometry)
    return bool((np.abs(cosines.T @ cosines - np.eye(len(cosines))) <= DIRECTION_TOLERANCE).all())


def relate_grids(found: Geometry, expected: Geometry) -> GridRelation:
    """Return how two grids relate: the same place, the same place on flipped or reordered axes, or another place.

    Args:
        found: the geometry to check.
        expected: the geometry that it should agree with; the tolerances are relative to its voxel size.
    """
    differences = tuple(find_differences(found, expected))
    if not differences:
        return GridRelation(())
    compared, target = _cut_to_common_axes(found, expected)
    turn = _closest_turn(compared, target)
    agrees = turn is not None and not find_differences(turn.turn_geometry(compared), target)
    return GridRelation(differences, turn if agrees else None)


def find_differences(
    found: Geometry, expected: Geometry, *, spacing_tolerance: float = SPACING_TOLERANCE, thin_axes: bool = False
) -> list[Difference]:
    """Return the quantities in which two geometries differ, in the order shape, spacing, origin, direction.

    An empty list means that both grids lie in the same place. Origin and direction are compared where both geometries
    have them, and along the two axes of the plane where one of the files is two-dimensional. The spacing along an axis
    of one voxel moves no voxel, so that it does not count.

    Args:
        found: the geometry to check.
        expected: the geometry that it should agree with; the tolerances are relative to its voxel size.
        spacing_tolerance: relative tolerance of the spacing; only the channels of one case need another one.
        thin_axes: compare the spacing along axes of one voxel too, as nnU-Net's readers do for the channels of a case.
    """
    found, expected = _cut_to_common_axes(found, expected)
    spacing = np.asarray(expected.spacing_mm, dtype=np.float64)
    counts = np.ones(len(spacing), dtype=bool) if thin_axes else np.asarray(expected.shape) > 1
    limits = np.where(counts, spacing_tolerance * spacing, np.inf)
    edges = spacing[counts] if counts.any() else spacing
    origin_mm = max(SMALLEST_ORIGIN_TOLERANCE_MM, ORIGIN_TOLERANCE * float(edges.min(initial=np.inf)))
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
            limits,
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


def _direction_matrix(geometry: Geometry) -> NDArray[np.float64]:
    """Return the direction cosines, one column for each axis; no rows and columns where the file does not tell them."""
    axes = round(len(geometry.direction) ** 0.5)
    return np.reshape(np.asarray(geometry.direction, dtype=np.float64), (axes, axes))


def _cut_to_common_axes(first: Geometry, second: Geometry) -> tuple[Geometry, Geometry]:
    """Return both geometries with as many dimensions of origin and direction as both files have.

    A two-dimensional file does not tell where its plane lies along the third axis, nor how the plane is turned.
    """
    known = [round(len(geometry.direction) ** 0.5) for geometry in (first, second)]
    axes = min(known)
    if not axes or known[0] == known[1]:
        return first, second
    cut = [
        replace(
            geometry,
            origin_mm=geometry.origin_mm[:axes],
            direction=tuple(_direction_matrix(geometry)[:axes, :axes].ravel().tolist()),
        )
        for geometry in (first, second)
    ]
    return cut[0], cut[1]


def _closest_turn(found: Geometry, expected: Geometry) -> AxisTurn | None:
    """Return the turn that pairs each axis of `expected` with the most parallel axis of `found`, if a turn does."""
    cosines = _direction_matrix(expected).T @ _direction_matrix(found)
    if not len(cosines) or not np.isfinite(cosines).all() or len(found.shape) != len(expected.shape):
        return None
    nearest = [int(axis) for axis in np.abs(cosines).argmax(axis=1)]
    if len(set(nearest)) < len(nearest):
        return None
    rest = range(len(nearest), len(found.shape))  # the slice of a two-dimensional file stays where it is
    reversed_axes = [bool(cosines[axis, other] < 0) for axis, other in enumerate(nearest)]
    return AxisTurn((*nearest, *rest), (*reversed_axes, *(False for _ in rest)))
