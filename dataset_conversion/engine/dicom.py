"""A DICOM series as one volume: slices are ordered by position; gaps and mixed series are found before the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl.data.geometry import DIRECTION_TOLERANCE
from nnssl.dataset_conversion.engine.sources import UnreadableError, image_of

POSITION, ORIENTATION, INSTANCE, SERIES = "0020|0032", "0020|0037", "0020|0013", "0020|000e"
GAP_TOLERANCE = 0.1  # relative to the distance between slices, because headers round positions


@dataclass(frozen=True)
class Slice:
    """The header of one slice; `position_mm` and `axes` are in patient coordinates."""

    path: Path
    series: str
    instance: int
    position_mm: NDArray[np.float64]
    axes: NDArray[np.float64]

    @property
    def along_mm(self) -> float:
        """Position of the slice along the normal of its plane, mm."""
        return float(np.dot(np.cross(self.axes[:3], self.axes[3:]), self.position_mm))


@dataclass(frozen=True)
class DicomSeries:
    """The slices of one series in any order, one file for each slice."""

    paths: tuple[Path, ...]

    def files(self) -> tuple[Path, ...]:
        """Return the files."""
        return self.paths

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the volume in the units of the rescale slope and intercept, Hounsfield units for CT."""
        slices = ordered_slices(self.paths)
        try:
            voxels, spacing = _stacked(slices)
        except (RuntimeError, ValueError) as error:
            raise UnreadableError(f"and its series cannot be read ({str(error).strip().splitlines()[-1]})") from error
        distance_mm = (slices[-1].along_mm - slices[0].along_mm) / (len(slices) - 1)
        return image_of(voxels, [*spacing, distance_mm], *placement_of(slices))


def _stacked(slices: Sequence[Slice]) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Return the voxels (D, H, W) and the spacing in the plane, x and y, in mm.

    Integers become int16 if all of them fit: ITK reads stored 16-bit values with a rescale intercept as int32.

    Raises:
        RuntimeError: a slice cannot be read.
        ValueError: a slice has another size than the first, or colours.
    """
    voxels: NDArray[Any] = np.empty((0, 0, 0), dtype=np.int16)
    limits = np.iinfo(np.int16)
    spacing: tuple[float, ...] = ()
    for number, one in enumerate(slices):
        image = sitk.ReadImage(str(one.path), imageIO="GDCMImageIO")
        plane = sitk.GetArrayViewFromImage(image).squeeze(0)
        fits = plane.dtype.kind in "iu" and limits.min <= int(plane.min()) and int(plane.max()) <= limits.max
        if not number:
            voxels, spacing = np.empty((len(slices), *plane.shape), dtype=np.int16), image.GetSpacing()[:2]
        if plane.ndim != 2 or plane.shape != voxels.shape[1:]:
            raise ValueError(f"{one.path.name} has {plane.shape} voxels, {slices[0].path.name} {voxels.shape[1:]}")
        if not fits:
            voxels = voxels.astype(np.promote_types(voxels.dtype, plane.dtype), copy=False)
        voxels[number] = plane
    return voxels, spacing


def placement_of(slices: Sequence[Slice]) -> tuple[list[float], list[float]]:
    """Return origin and direction, in the order of ITK, of the volume that ordered slices form."""
    row, column = slices[0].axes[:3], slices[0].axes[3:]
    direction = np.stack([row, column, np.cross(row, column)], axis=1)
    return slices[0].position_mm.tolist(), direction.ravel().tolist()


def ordered_slices(paths: Sequence[Path]) -> list[Slice]:
    """Return the slices of a series along the normal of their planes.

    Raises:
        UnreadableError: a header cannot be read, the files belong to several series, or slices are missing or repeated.
    """
    if len(paths) < 2:
        raise UnreadableError("is the only slice of its series")
    slices = sorted((_header(path) for path in paths), key=lambda one: one.along_mm)
    if len({one.series for one in slices}) > 1:
        raise UnreadableError(f"lies in a folder with slices of {len({one.series for one in slices})} series")
    if not all(np.allclose(one.axes, slices[0].axes, rtol=0, atol=DIRECTION_TOLERANCE) for one in slices):
        raise UnreadableError("belongs to a series whose slices are not parallel")
    _check_gaps(slices)
    return slices


def _check_gaps(slices: list[Slice]) -> None:
    gaps_mm = np.diff([one.along_mm for one in slices])
    usual_mm = float(np.median(gaps_mm))
    double = [(a, b) for a, b, gap in _pairs(slices, gaps_mm) if gap < GAP_TOLERANCE * usual_mm or usual_mm == 0]
    if double:
        raise UnreadableError(f"belongs to a series in which {double[0][0]} and {double[0][1]} have the same position")
    missing = [
        f"{max(1, round(gap / usual_mm) - 1)} between {a} and {b}"
        for a, b, gap in _pairs(slices, gaps_mm)
        if abs(gap - usual_mm) > GAP_TOLERANCE * usual_mm
    ]
    if missing:
        raise UnreadableError(f"belongs to a series that lacks slices: {', '.join(missing)}")
    steps_mm = np.diff([one.position_mm for one in slices], axis=0)
    if np.abs(np.linalg.norm(steps_mm, axis=1) - gaps_mm).max() > GAP_TOLERANCE * usual_mm:
        raise UnreadableError("belongs to a series with a tilted gantry, whose slices do not form a box")


def _pairs(slices: list[Slice], gaps_mm: NDArray[np.float64]) -> list[tuple[str, str, float]]:
    """Return the names of neighbouring slices with the gap between them."""
    neighbours = zip(pairwise(slices), gaps_mm, strict=True)
    return [(first.path.name, second.path.name, float(gap)) for (first, second), gap in neighbours]


def _header(path: Path) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
        numbers = [np.array(reader.GetMetaData(tag).split("\\"), dtype=np.float64) for tag in (POSITION, ORIENTATION)]
        return Slice(path, reader.GetMetaData(SERIES).strip(), int(reader.GetMetaData(INSTANCE)), *numbers)
    except (RuntimeError, ValueError) as error:
        raise UnreadableError(
            f"and its series cannot be read: {path.name} is no DICOM slice with a position"
        ) from error
