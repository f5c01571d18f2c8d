from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnssl.dataset_conversion.engine import pictures
from nnssl.dataset_conversion.engine.pictures import (
    ImageKind,
    PictureFile,
    PictureMask,
    PlaneFile,
    TiffVolume,
    find_kind,
    save_picture,
    voxel_size_file,
    without_voxel_size,
)
from nnssl.dataset_conversion.engine.sources import ImageFile, UnreadableError

SIZE = (6, 5)


def pixels(*more: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(np.uint8).max, (*SIZE, *more)).astype(dtype)


def write(path: Path, array: np.ndarray, *, colours: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=colours), str(path))
    return path


@pytest.mark.parametrize(
    ("name", "array", "colours", "kind"),
    [
        ("a.png", pixels(), False, ImageKind("picture")),
        ("a.png", pixels(dtype=np.uint16), False, ImageKind("picture")),
        ("a.png", pixels(3), True, ImageKind("picture", 3)),
        ("a.png", pixels(4), True, ImageKind("picture", 3)),
        ("a.jpg", pixels(3), True, ImageKind("picture", 3)),
        ("a.bmp", pixels(3), True, ImageKind("picture", 3)),
        ("a.tif", pixels(3), True, ImageKind("picture", 3)),
        ("a.tif", pixels(dtype=np.float32), False, ImageKind("plane")),
        ("a.tif", pixels()[None].repeat(4, 0), False, ImageKind()),
        ("a.mha", pixels(), False, ImageKind("plane")),
        ("a.nii.gz", pixels()[None].repeat(4, 0), False, ImageKind()),
    ],
)
def test_the_kind_of_an_image(tmp_path: Path, name: str, array: np.ndarray, colours: bool, kind: ImageKind) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert find_kind([broken, write(tmp_path / name, array, colours=colours)]) == kind


def test_without_a_readable_image_volumes_are_expected(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert find_kind([tmp_path / "broken.png"]) == ImageKind()


@pytest.mark.parametrize(
    ("array", "colours"), [(pixels(), 1), (pixels(dtype=np.uint16) * 257, 1), (pixels(3), 3)], ids=["8", "16", "rgb"]
)
def test_nnunet_reads_the_pixels_that_were_written(tmp_path: Path, array: np.ndarray, colours: int) -> None:
    source = write(tmp_path / "a.tif", array, colours=colours > 1)
    image = PictureFile(source, colours).read()
    assert image.GetSize() == (*SIZE[::-1], 1)
    save_picture(image, tmp_path / "b.png")
    found, _ = NaturalImage2DIO().read_images((str(tmp_path / "b.png"),))
    np.testing.assert_array_equal(found[:, 0], np.moveaxis(array.reshape(*SIZE, -1), -1, 0))


@pytest.mark.parametrize("opaque", [True, False])
def test_an_alpha_channel_must_be_opaque(tmp_path: Path, opaque: bool) -> None:
    array = np.concatenate([pixels(3), np.full((*SIZE, 1), 255, np.uint8)], axis=-1)
    array[0, 0, -1] = 255 if opaque else 254
    source = PictureFile(write(tmp_path / "a.png", array, colours=True), 3)
    if opaque:
        found = sitk.GetArrayFromImage(source.read())[0]
        np.testing.assert_array_equal(found, array[..., :3])
    else:
        with pytest.raises(UnreadableError, match="has transparent pixels: save the image without"):
            source.read()


@pytest.mark.parametrize(
    ("array", "colours", "expected", "message"),
    [
        (pixels(3), True, 1, r"has 3 colour channel\(s\), the first image has 1: save all images"),
        (pixels(), False, 3, r"has 1 colour channel\(s\), the first image has 3"),
        (pixels(3, dtype=np.uint16), True, 3, "has 16 bits a colour, nnU-Net reads 8 bits"),
        (pixels(dtype=np.float32), False, 1, "holds values of the type float32, a PNG file takes whole numbers"),
        (pixels()[None].repeat(4, 0), False, 1, "holds 5x6x4 voxels, the first image is a picture: .* two data sets"),
    ],
)
def test_pictures_that_cannot_be_taken(
    tmp_path: Path, array: np.ndarray, colours: bool, expected: int, message: str
) -> None:
    source = PictureFile(write(tmp_path / "a.tif", array, colours=colours), expected)
    with pytest.raises(UnreadableError, match=message):
        source.read()


def test_a_grey_picture_with_an_alpha_channel_is_refused_with_the_repair(tmp_path: Path) -> None:
    source = PictureFile(write(tmp_path / "a.png", pixels(2), colours=True), 1)
    with pytest.raises(UnreadableError, match="save the picture in grey or colour, without transparency"):
        source.read()


def test_a_mask_has_one_grey_channel(tmp_path: Path) -> None:
    grey = pixels()
    same = write(tmp_path / "same.png", np.stack([grey] * 3, axis=-1), colours=True)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(PictureMask(same).read())[0], grey)
    with pytest.raises(UnreadableError, match="has colours: save the mask with one grey channel"):
        PictureMask(write(tmp_path / "colours.png", pixels(3), colours=True)).read()
    with pytest.raises(UnreadableError, match="JPEG file, whose compression changes label values"):
        PictureMask(write(tmp_path / "lossy.jpg", grey)).read()


def test_a_plane_becomes_one_slice(tmp_path: Path) -> None:
    array = pixels(dtype=np.float32)
    image = PlaneFile(write(tmp_path / "a.mha", array)).read()
    assert image.GetSize() == (*SIZE[::-1], 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0], array)
    with pytest.raises(UnreadableError, match="two axes and one component are expected"):
        PlaneFile(write(tmp_path / "b.mha", array[None].repeat(4, 0))).read()


def test_the_sources_of_a_kind(tmp_path: Path) -> None:
    path = tmp_path / "a_0000.tif"
    assert ImageKind().image(path) == ImageFile(path)
    assert ImageKind("plane").label(path) == PlaneFile(path)
    assert ImageKind("picture", 3).image(path) == PictureFile(path, 3)
    assert ImageKind("picture", 3).label(path) == PictureMask(path)
    (tmp_path / "a.json").touch()
    assert ImageKind().image(path) == TiffVolume(path, tmp_path / "a.json")


def test_the_voxel_size_of_a_tiff_volume(tmp_path: Path) -> None:
    volume = write(tmp_path / "a_0000.tif", pixels()[None].repeat(4, 0))
    write(tmp_path / "flat.tif", pixels())
    assert voxel_size_file(volume) is None
    assert without_voxel_size([volume, tmp_path / "flat.tif", tmp_path / "b.nii.gz"]) == [volume]
    companion = tmp_path / "a.json"
    companion.write_text(json.dumps({"spacing": [4, 2, 1]}))
    assert voxel_size_file(volume) == companion
    source = TiffVolume(volume, companion)
    assert source.files() == (volume, companion)
    assert source.read().GetSpacing() == (1.0, 2.0, 4.0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spacing": [1, 2]}', '{"spacing": 1}', '{"spacing": [1, 1, 0]}'])
def test_a_wrong_voxel_size(tmp_path: Path, content: str) -> None:
    volume = write(tmp_path / "a.tif", pixels()[None].repeat(4, 0))
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UnreadableError, match=r"has no valid voxel size in a\.json"):
        TiffVolume(volume, tmp_path / "a.json").read()


@pytest.mark.parametrize("end", [b"", b"no picture"])
def test_a_picture_that_was_not_written_completely_is_an_error(tmp_path: Path, monkeypatch, end: bytes) -> None:
    image = PictureFile(write(tmp_path / "a.png", pixels()), 1).read()
    original = sitk.WriteImage

    def write_in_part(plane: Any, path: str) -> None:
        original(plane, path)
        Path(path).write_bytes(Path(path).read_bytes()[:40] + end)

    monkeypatch.setattr(pictures.sitk, "WriteImage", write_in_part)
    with pytest.raises(OSError, match="No space left"):
        save_picture(image, tmp_path / "b.png")
