"""Images in memory: arrays, SimpleITK and nibabel images, converted to the axes of nnU-Net's readers and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from nnssl.errors import DataError, UsageError

if TYPE_CHECKING:
    import nibabel
    import SimpleITK as sitk
    from nibabel.spatialimages import SpatialImage

Array: TypeAlias = np.ndarray[Any, Any]
Image: TypeAlias = "Array | sitk.Image | SpatialImage"

FLAT_AXIS = 999
"""nnU-Net's spacing of the one slice of a 2-D image, in units of the largest spacing in the plane."""


@dataclass(frozen=True)
class LoadedImage:
    """An image in the form that the preprocessor takes.

    Attributes:
        array: voxels (C, z, y, x), float32.
        spacing_mm: voxel size in the order (z, y, x).
        restore: converts a mask (z, y, x) into an image of the original type, with the original geometry.
    """

    array: Array
    spacing_mm: tuple[float, ...]
    restore: Callable[[Array], Any]


def load_image(
    image: Image | Sequence[Image], spacing_mm: Sequence[float] | None = None, *, reorient: bool = False
) -> LoadedImage:
    """Return an image in nnU-Net's axes.

    Args:
        image: an array, a SimpleITK or a nibabel image, or a sequence of them with one channel each. A 3-D array has
            the axes (z, y, x) or (C, z, y, x), a 2-D array (y, x) or (C, y, x); the length of `spacing_mm` decides
            between 2-D and 3-D. A nibabel image has the axes (x, y, z) or (x, y, z, C). A SimpleITK image may have
            several components.
        spacing_mm: voxel size in the array's order of axes; for arrays only.
        reorient: turn images to RAS first, as nnU-Net's readers `…WithReorient` do. Arrays stay as they are.

    Raises:
        UsageError: the type is none of these, or `spacing_mm` does not fit an array.
        DataError: the channels differ in shape or spacing.
    """
    if isinstance(image, list | tuple):
        parts = [load_image(part, spacing_mm, reorient=reorient) for part in image]
        for part in parts:
            close = np.allclose(part.spacing_mm, parts[0].spacing_mm)
            if part.array.shape[1:] != parts[0].array.shape[1:] or not close:
                raise DataError("the channels do not lie on the same grid", where="image")
        return LoadedImage(np.vstack([part.array for part in parts]), parts[0].spacing_mm, parts[0].restore)
    if isinstance(image, np.ndarray):
        return _from_array(image, spacing_mm)
    import SimpleITK as sitk
    from nibabel.spatialimages import SpatialImage

    if isinstance(image, sitk.Image):
        return _from_sitk(image, reorient)
    if isinstance(image, SpatialImage):
        return _from_nibabel(image, reorient)
    raise UsageError(
        f"cannot predict a {type(image).__name__}", run="give a path, a numpy array, a SimpleITK or a nibabel image"
    )


def _from_array(image: Array, spacing_mm: Sequence[float] | None) -> LoadedImage:
    axes = 0 if spacing_mm is None else len(spacing_mm)
    if spacing_mm is None or axes not in (2, 3) or image.ndim not in (axes, axes + 1) or min(spacing_mm) <= 0:
        raise UsageError(
            "an array needs its spacing",
            where=f"array of shape {image.shape}, spacing_mm={spacing_mm}",
            why="spacing_mm takes one positive number of mm for each spatial axis, in the array's order (z, y, x)",
        )
    array = image if image.ndim == axes + 1 else image[None]
    if axes == 3:
        return LoadedImage(array.astype(np.float32), tuple(map(float, spacing_mm)), lambda mask: mask)
    flat = (FLAT_AXIS * max(spacing_mm), *spacing_mm)
    return LoadedImage(array[:, None].astype(np.float32), tuple(map(float, flat)), lambda mask: mask[0])


def _from_sitk(image: sitk.Image, reorient: bool) -> LoadedImage:
    import SimpleITK as sitk

    direction = image.GetDirection()
    if reorient:
        image = sitk.DICOMOrient(image, "RAS")
    array = sitk.GetArrayFromImage(image)
    grid = image
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() == 4:
        grid = image[:, :, :, 0]
    else:
        array = array[None]
    spacing = grid.GetSpacing()[::-1]
    flat = grid.GetDimension() == 2

    def restore(mask: Array) -> sitk.Image:
        restored = sitk.GetImageFromArray(mask[0] if flat else mask)
        restored.CopyInformation(grid)
        if reorient:
            code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)
            restored = sitk.DICOMOrient(restored, code)
        return restored

    if flat:
        return LoadedImage(array[:, None].astype(np.float32), (FLAT_AXIS * max(spacing), *spacing), restore)
    return LoadedImage(array.astype(np.float32), tuple(spacing), restore)


def _from_nibabel(image: SpatialImage, reorient: bool) -> LoadedImage:
    import nibabel
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if image.ndim not in (3, 4):
        raise UsageError(
            f"a nibabel image of shape {image.shape}", why="the axes must be (x, y, z) or (x, y, z, channel)"
        )
    turned = nibabel.as_closest_canonical(image) if reorient else image
    array = np.asarray(turned.dataobj).astype(np.float32)
    array = array.transpose(3, 2, 1, 0) if array.ndim == 4 else array.transpose(2, 1, 0)[None]

    def restore(mask: Array) -> nibabel.Nifti1Image:
        restored = nibabel.Nifti1Image(mask.transpose(2, 1, 0), turned.affine)
        if reorient:
            back = ornt_transform(axcodes2ornt("RAS"), io_orientation(image.affine))
            restored = restored.as_reoriented(back)
        restored = nibabel.Nifti1Image(np.asarray(restored.dataobj), image.affine)
        if isinstance(image, nibabel.Nifti1Image):
            restored.header.set_xyzt_units(*image.header.get_xyzt_units())
            restored.set_qform(*image.get_qform(coded=True), update_affine=False)
            restored.set_sform(*image.get_sform(coded=True), update_affine=False)
        return restored

    return LoadedImage(array, tuple(float(size) for size in turned.header.get_zooms()[:3][::-1]), restore)
