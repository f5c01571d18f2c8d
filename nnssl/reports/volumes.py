"""Scans and masks as arrays on the same axes, whatever the order of the axes in the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.raw import IMAGE_ENDINGS
from nnssl.data.read_errors import explain_read_error
from nnssl.errors import DataError

Array = NDArray[Any]
Box = tuple[slice, slice, slice]
AXES = "LPS"  # the axes of the arrays, the last one first: left, posterior, superior
LOW, HIGH = 0.5, 99.5  # percentiles that become black and white
SAMPLED = 500_000  # voxels that the percentiles are taken from


@dataclass(frozen=True)
class Volume:
    """One channel of a scan, or a mask.

    Attributes:
        voxels: of shape (D, H, W); the axes lead to superior, posterior and left. A 2-D file has D = 1.
        spacing_mm: distances of voxels along these axes, mm.
        affine: of shape (4, 4), from the index (W, H, D) to mm towards right, anterior and superior, as in NIfTI.
    """

    voxels: Array
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000

    def cropped(self, box: Box, step: tuple[int, int, int] = (1, 1, 1)) -> Volume:
        """Return the part in a box, and of that every `step`-th voxel along each axis."""
        parts = tuple(slice(part.start, part.stop, every) for part, every in zip(box, step, strict=True))
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ [*(part.start for part in reversed(box)), 1])[:3]
        affine[:3, :3] *= list(reversed(step))
        spacing = tuple(size * every for size, every in zip(self.spacing_mm, step, strict=True))
        return Volume(self.voxels[parts], spacing, affine)  # type: ignore[arg-type]


def read_volume(file: Path) -> Volume:
    """Return the first channel of an image file.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    import SimpleITK as sitk

    if not file.is_file():
        raise DataError("the file is missing", where=file)
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        problem = explain_read_error(error)
        raise DataError("the file cannot be read", where=file, why=problem.cause, run=problem.hint) from error
    if image.GetDimension() == 4:
        image = image[..., 0]
    if image.GetNumberOfComponentsPerPixel() > 1:
        image = sitk.VectorIndexSelectionCast(image, 0)
    image = sitk.JoinSeries(image) if image.GetDimension() == 2 else sitk.DICOMOrient(image, AXES)
    spacing = np.array(image.GetSpacing())
    to_nifti = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = to_nifti @ np.array(image.GetDirection()).reshape(3, 3) @ np.diag(spacing)
    affine[:3, 3] = to_nifti @ np.array(image.GetOrigin())
    return Volume(sitk.GetArrayFromImage(image), tuple(map(float, spacing[::-1])), affine)  # type: ignore[arg-type]


def grey_levels(voxels: Array) -> NDArray[np.uint8]:
    """Return intensities as 0 to 255; the 0.5 and 99.5 percentiles become black and white, NaN becomes black."""
    values = np.nan_to_num(voxels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    sample = values.ravel()[:: max(1, values.size // SAMPLED)]
    low, high = np.percentile(sample, [LOW, HIGH])
    scaled = (values - low) * (255 / max(float(high - low), 1e-12))
    grey: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return grey


def occupied_box(masks: Iterable[Array], shape: tuple[int, ...], margin: tuple[int, int, int]) -> Box:
    """Return the box around every voxel that is not zero in a mask, with a margin; the whole where all are empty.

    Args:
        masks: each of shape (D, H, W).
        shape: (D, H, W).
        margin: voxels added on both sides of each axis, as far as the scan goes.
    """
    anywhere = np.zeros(shape, bool)
    for mask in masks:
        anywhere |= mask > 0
    box = []
    for axis, (size, more) in enumerate(zip(shape, margin, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(anywhere.any(axis=others))
        first, last = (places[0], places[-1]) if len(places) else (0, size - 1)
        box.append(slice(max(0, int(first) - more), min(size, int(last) + more + 1)))
    return tuple(box)  # type: ignore[return-value]


def case_of(file: Path) -> str:
    """Return a file's name without its ending."""
    for ending in IMAGE_ENDINGS:
        if file.name.lower().endswith(ending):
            return file.name[: -len(ending)]
    return file.stem
