"""Sources of the voxels of a case: each source reads one volume when a caller needs the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl.data.completeness import check_complete
from nnssl.data.read_errors import explain_read_error
from nnssl.errors import EnvironmentProblem

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # else ITK writes a warning to stderr for every unusual header
NIFTI = (".nii", ".nii.gz")


class UnreadableError(Exception):
    """A file does not hold what its name promises. The message completes a sentence that begins with the file name."""


@dataclass(frozen=True)
class ImageFile:
    """A file with one 3-D volume, of any format that ITK reads."""

    path: Path

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the volume; a fourth axis of length 1 is dropped."""
        image = read_image(self.path)
        if image.GetDimension() == 4 and image.GetSize()[3] == 1:
            image = image[:, :, :, 0]
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            size, components = "x".join(map(str, image.GetSize())), image.GetNumberOfComponentsPerPixel()
            raise UnreadableError(f"holds {size} voxels of {components} component(s), one 3-D volume is expected")
        return image


@dataclass(frozen=True)
class Frame:
    """One volume of a 4-D NIfTI file; memory holds this volume only.

    Attributes:
        path: the file.
        index: position on the fourth axis, from 0.
    """

    path: Path
    index: int

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401
        """Return the volume with the geometry that ITK reads for the first three axes of the file."""
        import nibabel

        check_content(self.path)
        stored = nibabel.load(self.path).dataobj
        if len(stored.shape) != 4 or not 0 <= self.index < stored.shape[3]:
            shape = "x".join(map(str, stored.shape))
            raise UnreadableError(f"holds {shape} voxels, a fourth axis with a position {self.index} is expected")
        voxels = np.asarray(stored[..., self.index])
        scaled = voxels.dtype == np.float64 and stored.dtype != np.float64  # slope and intercept were applied
        voxels = voxels.astype(np.float32 if scaled else voxels.dtype.newbyteorder("="), copy=False)
        header = read_header(self.path)
        axes = np.reshape(header.GetDirection(), (4, 4))[:3, :3]
        return image_of(voxels.T, header.GetSpacing()[:3], header.GetOrigin()[:3], axes.ravel().tolist())


def number_of_frames(path: Path) -> int:
    """Return the length of the fourth axis of a NIfTI file.

    Raises:
        UnreadableError: the file cannot be read, or has no fourth axis.
    """
    size = read_header(path).GetSize()
    if len(size) != 4:
        raise UnreadableError(f"has {len(size)} axes, 4 are expected")
    return int(size[3])


@dataclass(frozen=True)
class H5Volume:
    """One array of an HDF5 file as float32, or a stack of slices, one file for each slice in the given order.

    Attributes:
        paths: one file with a 3-D array, or files with 2-D arrays that are stacked.
        key: name of the array.
        spacing_mm: voxel size in the order of the array's axes.
    """

    paths: tuple[Path, ...]
    key: str
    spacing_mm: tuple[float, ...]

    def files(self) -> tuple[Path, ...]:
        """Return the files."""
        return self.paths

    def read(self) -> Any:  # noqa: ANN401
        """Return the volume with the origin (0, 0, 0) and the axes of the file."""
        first = read_h5(self.paths[0], self.key)
        if first.ndim == 3 and len(self.paths) == 1:
            return image_of(first, self.spacing_mm[::-1])
        voxels = np.empty((len(self.paths), *first.shape), dtype=first.dtype)
        for number, path in enumerate(self.paths):
            plane = read_h5(path, self.key) if number else first
            if plane.ndim != 2 or plane.shape != first.shape:
                shapes = " and ".join("x".join(map(str, array.shape)) for array in (first, plane))
                raise UnreadableError(f"'{self.key}': one 3-D volume, or equal slices, are expected, not {shapes}")
            voxels[number] = plane
        return image_of(voxels, self.spacing_mm[::-1])


def read_h5(path: Path, key: str) -> NDArray[np.float32]:
    """Return an array of an HDF5 file as float32; the axes keep their order.

    Raises:
        UnreadableError: the file has no such array, or float32 cannot represent its values.
    """
    file = open_h5(path)
    with file:
        if key not in file:
            raise UnreadableError(f"has no array '{key}', it holds: {', '.join(file)}")
        stored = file[key][()]
    array: NDArray[np.float32] = np.asarray(stored, dtype=np.float32)
    if stored.dtype.kind in "iu" and not np.array_equal(array, stored):
        raise UnreadableError(f"'{key}' holds integers that float32 cannot represent")
    return array


def open_h5(path: Path) -> Any:  # noqa: ANN401 - h5py has no types
    """Return the opened HDF5 file.

    Raises:
        EnvironmentProblem: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise EnvironmentProblem(
            "h5 files need the package h5py", where=path, run='pip install "nnssl-semi[h5]"'
        ) from None
    return h5py.File(path, "r")


def image_of(
    voxels: NDArray[Any],
    spacing_mm: Sequence[float],
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    direction: Sequence[float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
) -> Any:  # noqa: ANN401
    """Return an image of the voxels (D, H, W); spacing, origin and direction are in ITK's order x, y, z."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing([float(mm) for mm in spacing_mm])
    image.SetOrigin([float(mm) for mm in origin])
    image.SetDirection([float(part) for part in direction])
    return image


def check_content(path: Path) -> None:
    """Check that a file is compressed exactly if its name ends in .gz, and that the data are complete.

    Raises:
        UnreadableError: name and content do not agree, or the data end too early.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    named = path.name.lower().endswith(".gz")
    if named and not compressed:
        raise UnreadableError(_with_hint("is named .gz but is not compressed"))
    status = path.stat()
    if compressed and not named:
        raise UnreadableError(_with_hint("is compressed but its name does not end in .gz"))
    if problem := _missing_data(path, status.st_size, status.st_mtime_ns):
        raise UnreadableError(_with_hint(f"is cut off: {problem}"))


@lru_cache(maxsize=64)  # the frames of a 4-D file share one entry
def _missing_data(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - keys of the cache
    """Return what the check of completeness says, empty for a complete file."""
    try:
        check_complete(path)
    except ValueError as error:
        return str(error)
    return ""


def read_image(path: Path) -> Any:  # noqa: ANN401
    """Return the image of a file, with as many axes and components as the file has.

    Raises:
        UnreadableError: ITK cannot read the file, or the data end too early.
        OSError: the file cannot be opened.
    """
    check_content(path)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UnreadableError(str(explain_read_error(error))) from error


def read_header(path: Path) -> Any:  # noqa: ANN401
    """Return an ITK reader that has read the header of a file.

    Raises:
        UnreadableError: ITK cannot read the header.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableError(str(explain_read_error(error))) from error
    return reader


def _with_hint(text: str) -> str:
    return f"{text}: {explain_read_error(ValueError(text)).hint}"
