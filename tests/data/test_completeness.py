from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage import io

from nnssl.data.completeness import check_complete, unpacked_bytes

VOLUME = np.random.default_rng(0).integers(0, 200, (6, 20, 24)).astype(np.uint8)
PICTURE = np.repeat(VOLUME[0][..., None], 3, axis=2)


def write_image(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(path), useCompression=True)


def write_frames(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.stack([VOLUME.T] * 2, axis=-1), np.eye(4)), path)
    return path


def write_long_header(path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME.T, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"words" * 100))
    nibabel.save(image, path)


def write_second_version(path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(VOLUME.T.astype(np.float64), np.eye(4)), path)


def write_big_endian(path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.save(nibabel.Nifti1Image(VOLUME.T.astype(np.int16), np.eye(4), header), path)


def write_strips(path: Path) -> None:
    tifffile.imwrite(path, VOLUME, rowsperstrip=3, compression="zlib")


def write_tiff(**options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, VOLUME, **options)


def write_picture(path: Path) -> None:
    io.imsave(path, PICTURE, check_contrast=False)


def pixels_are_whole(path: Path) -> bool:
    try:
        return np.array_equal(tifffile.imread(path), VOLUME)
    except Exception:
        return False


FORMATS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "NIfTI": ("a.nii", write_image),
    "NIfTI, compressed": ("a.nii.gz", write_image),
    "NIfTI, four axes": ("a.nii", write_frames),
    "NIfTI with an extension": ("a.nii", write_long_header),
    "NIfTI-2": ("a.nii", write_second_version),
    "NIfTI, big-endian": ("a.nii", write_big_endian),
    "NIfTI pair": ("a.img", write_image),
    "upper case": ("A.NII", lambda path: write_frames(path.with_suffix(".nii")).rename(path)),
    "GIPL": ("a.gipl", write_image),
    "GIPL, compressed": ("a.gipl.gz", write_image),
    "TIFF": ("a.tif", write_tiff()),
    "TIFF, compressed": ("a.tiff", write_tiff(compression="zlib")),
    "TIFF, 64-bit places": ("a.tif", write_tiff(bigtiff=True, compression="zlib")),
    "TIFF, big-endian": ("a.tif", write_tiff(byteorder=">", compression="zlib")),
    "TIFF in strips": ("a.tif", write_strips),
    "TIFF of ITK": ("a.tif", write_image),
    "BMP": ("a.bmp", write_picture),
    "JPEG": ("a.jpg", write_picture),
}


@pytest.mark.parametrize("name", FORMATS)
def test_cut_files_are_found_and_whole_files_pass(tmp_path: Path, name: str) -> None:
    file, write = FORMATS[name]
    path = tmp_path / file
    write(path)
    check_complete(path)
    content = path.read_bytes()
    for length in (len(content) // 2, len(content) - 200, len(content) - 5):
        path.write_bytes(content[:length])
        if path.suffix in (".tif", ".tiff") and length > len(content) // 2 and pixels_are_whole(path):
            continue  # tables may follow the pixels, and nobody needs the last entries
        with pytest.raises(ValueError, match="end too early"):
            check_complete(path)


def test_the_message_has_both_numbers_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_image(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{352 + VOLUME.size - 100} of {352 + VOLUME.size} bytes"):
        check_complete(path)


def test_a_cut_volume_that_was_compressed_afterwards_is_found(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    write_image(plain)
    packed.write_bytes(gzip.compress(plain.read_bytes()[:-100]))
    with pytest.raises(ValueError, match="end too early"):
        check_complete(packed)


def test_the_header_of_a_pair_finds_the_cut_voxels(tmp_path: Path) -> None:
    write_image(tmp_path / "a.img")
    check_complete(tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes(VOLUME.tobytes()[:-1])
    with pytest.raises(ValueError, match=f"{VOLUME.size - 1} of {VOLUME.size} bytes"):
        check_complete(tmp_path / "a.hdr")


def test_a_picture_in_the_header_of_a_jpeg_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_picture(path)
    content = path.read_bytes()
    preview = b"\xff\xe1" + (4 + 2).to_bytes(2, "big") + b"\xff\xd8\xff\xd9"
    path.write_bytes(content[:2] + preview + content[2:])
    check_complete(path)
    path.write_bytes(content[:2] + preview + content[2:-2])
    with pytest.raises(ValueError, match="end marker"):
        check_complete(path)


@pytest.mark.parametrize("file", ["a.nii", "a.gipl", "a.tif", "a.bmp", "a.jpg", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 1000])
def test_files_of_another_kind_are_left_to_the_reader(tmp_path: Path, file: str, content: bytes) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    check_complete(path)


def test_length_of_gzip_files(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.gz", bytes(range(256)) * 500
    content = gzip.compress(plain)
    lengths = {content: len(plain), content * 2: 2 * len(plain), content + b"\0" * 512: len(plain), content[:-1]: None}
    for data, length in lengths.items():
        path.write_bytes(data)
        assert unpacked_bytes(path) == length
