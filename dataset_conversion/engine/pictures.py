"""Images with two axes, and TIFF volumes: what kind of data set they make, and how they are read and written.

nnU-Net keeps pictures with 8 or 16 bits as PNG files, one file for all colours. Other images with two axes become
volumes of one slice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl.data.raw import TIFF_ENDINGS
from nnssl.dataset_conversion.engine.layout import without_channel_number
from nnssl.dataset_conversion.engine.records import Source
from nnssl.dataset_conversion.engine.sources import ImageFile, UnreadableError, image_of, read_header, read_image
from nnssl.errors import DataError
from nnssl.system.files import read_object

PICTURE_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", *TIFF_ENDINGS)
LOSSY_ENDINGS = (".jpg", ".jpeg")
PNG = ".png"
COLOURS = ("R", "G", "B")
BIT_DEPTHS = (np.uint8, np.uint16)
WITH_ALPHA = 4  # components of a colour picture; ITK reads no grey pictures with an alpha channel
OTHER_KIND = "images with two axes and volumes need two data sets"


@dataclass(frozen=True)
class ImageKind:
    """What the images of a data set are.

    Attributes:
        name: `volume` has three axes, `plane` has two and becomes a volume of one slice, `picture` becomes a PNG file.
        colours: 3 for colour pictures, else 1.
    """

    name: Literal["volume", "plane", "picture"] = "volume"
    colours: int = 1

    def image(self, path: Path) -> Source:
        """Return the source of an image."""
        return PictureFile(path, self.colours) if self.name == "picture" else self._volume(path)

    def label(self, path: Path) -> Source:
        """Return the source of a label."""
        return PictureMask(path) if self.name == "picture" else self._volume(path)

    def _volume(self, path: Path) -> Source:
        if self.name == "plane":
            return PlaneFile(path)
        companion = voxel_size_file(path)
        return TiffVolume(path, companion) if companion else ImageFile(path)


def find_kind(paths: Iterable[Path]) -> ImageKind:
    """Return the kind of the first image whose header can be read; the check compares the other images with that."""
    for path in paths:
        try:
            header = read_header(path)
        except UnreadableError:
            continue
        if header.GetDimension() != 2:
            return ImageKind()
        colours = 3 if header.GetNumberOfComponents() >= 3 else 1
        few_bits = header.GetPixelID() in (
            sitk.sitkUInt8, sitk.sitkUInt16, sitk.sitkVectorUInt8, sitk.sitkVectorUInt16,
        )  # fmt: skip
        is_picture = path.name.lower().endswith(PICTURE_ENDINGS) and few_bits
        return ImageKind("picture", colours) if is_picture else ImageKind("plane")
    return ImageKind()


def voxel_size_file(path: Path) -> Path | None:
    """Return the file with the voxel size of a TIFF volume, `CASE.json` beside `CASE_0000.tif`, None without one."""
    if not path.name.lower().endswith(TIFF_ENDINGS):
        return None
    names = dict.fromkeys((path.stem, without_channel_number(path.stem)))
    return next((file for name in names if (file := path.with_name(f"{name}.json")).is_file()), None)


def without_voxel_size(paths: Iterable[Path]) -> list[Path]:
    """Return the TIFF volumes that have no file with their voxel size."""
    tiffs = [path for path in paths if path.name.lower().endswith(TIFF_ENDINGS) and not voxel_size_file(path)]
    return [path for path in tiffs if find_kind([path]).name == "volume"]


@dataclass(frozen=True)
class PictureFile:
    """A picture with 8 or 16 bits: one grey channel, or three colours with 8 bits each.

    Attributes:
        path: the file.
        colours: 1 or 3, as the first picture of the data set has.
    """

    path: Path
    colours: int

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the picture as a volume of one slice with the voxel size 1; an alpha channel must be opaque."""
        pixels = _pixels(self.path)
        if pixels.shape[-1] != self.colours:
            raise UnreadableError(
                f"has {pixels.shape[-1]} colour channel(s), the first image has {self.colours}: "
                "save all images as grey pictures, or all as colour pictures"
            )
        if self.colours > 1 and pixels.dtype != np.uint8:
            raise UnreadableError("has 16 bits a colour, nnU-Net reads 8 bits: save the image with 8 bits")
        return _slice_of(pixels)


@dataclass(frozen=True)
class PictureMask:
    """A picture with one label value a pixel; three equal colours count as one grey channel."""

    path: Path

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401
        """Return the mask as a volume of one slice with the voxel size 1."""
        if self.path.name.lower().endswith(LOSSY_ENDINGS):
            raise UnreadableError("is a JPEG file, whose compression changes label values: save the mask as PNG")
        pixels = _pixels(self.path)
        if (pixels != pixels[..., :1]).any():
            raise UnreadableError("has colours: save the mask with one grey channel that holds the label values")
        return _slice_of(pixels[..., :1])


@dataclass(frozen=True)
class PlaneFile:
    """An image with two axes and one component, of any format and type; becomes a volume of one slice."""

    path: Path

    def files(self) -> tuple[Path, ...]:
        """Return the file."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401
        """Return the image as a volume of one slice, 1 mm thick."""
        image = read_image(self.path)
        if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 1:
            size, components = "x".join(map(str, image.GetSize())), image.GetNumberOfComponentsPerPixel()
            raise UnreadableError(
                f"holds {size} voxels of {components} component(s), two axes and one component are expected: "
                f"{OTHER_KIND}"
            )
        return sitk.JoinSeries(image)


@dataclass(frozen=True)
class TiffVolume:
    """A TIFF volume whose voxel size stands in a file beside the volume, as nnU-Net keeps it.

    Attributes:
        path: the TIFF file.
        voxel_size: JSON file with `spacing`, in mm, in the order of the slices, rows and columns.
    """

    path: Path
    voxel_size: Path

    def files(self) -> tuple[Path, ...]:
        """Return the TIFF file and the file with the voxel size."""
        return self.path, self.voxel_size

    def read(self) -> Any:  # noqa: ANN401
        """Return the volume with this voxel size."""
        image = ImageFile(self.path).read()
        try:
            spacing_mm = [float(mm) for mm in read_object(self.voxel_size, keys=("spacing",))["spacing"]]
            image.SetSpacing(spacing_mm[::-1])
        except (DataError, TypeError, ValueError, RuntimeError):
            raise UnreadableError(
                f"has no valid voxel size in {self.voxel_size.name}: write three positive numbers under 'spacing'"
            ) from None
        return image


def save_picture(image: Any, target: Path) -> None:  # noqa: ANN401
    """Write a volume of one slice as PNG, and check that the file holds the pixels.

    Raises:
        OSError: the file is not complete.
    """
    plane = image[:, :, 0]
    sitk.WriteImage(plane, str(target))
    try:
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(target)))
        complete = np.array_equal(written, sitk.GetArrayFromImage(plane))
    except RuntimeError:
        complete = False
    if not complete:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pixels(path: Path) -> NDArray[Any]:
    """Return the pixels (H, W, C) of a picture without its alpha channel."""
    image = read_image(path)
    if image.GetDimension() != 2:
        size = "x".join(map(str, image.GetSize()))
        raise UnreadableError(f"holds {size} voxels, the first image is a picture: {OTHER_KIND}")
    pixels: NDArray[Any] = sitk.GetArrayFromImage(image)
    if pixels.dtype not in BIT_DEPTHS:
        raise UnreadableError(
            f"holds values of the type {pixels.dtype}, a PNG file takes whole numbers of 8 or 16 bits"
        )
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[-1] == WITH_ALPHA:
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise UnreadableError("has transparent pixels: save the image without an alpha channel")
        pixels = pixels[..., :-1]
    return pixels


def _slice_of(pixels: NDArray[Any]) -> Any:  # noqa: ANN401
    """Return a volume of one slice for the pixels (H, W, C)."""
    if pixels.shape[-1] == 1:
        return image_of(pixels[None, ..., 0], (1.0, 1.0, 1.0))
    return sitk.GetImageFromArray(np.ascontiguousarray(pixels[None]), isVector=True)
