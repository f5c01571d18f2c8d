"""Whether an image file holds all its data: some readers fill a cut file up with zeros, or leave its end out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

BLOCK_BYTES = 1 << 16
GIPL_HEADER_BYTES = 256
NIFTI2_HEADER_BYTES = 540
# length of the header (its first number) -> place of the bits a voxel; form and place of the lengths of the axes; form
# and place of the first voxel's place
NIFTI_FIELDS = {348: (72, ("8h", 40), ("f", 108)), NIFTI2_HEADER_BYTES: (12, ("8q", 16), ("q", 168))}
TIFF, BIG_TIFF = 42, 43
PLACES, LENGTHS = {273, 324}, {279, 325}  # tags of the strips and tiles of a TIFF page
WHOLE_NUMBERS = {3: "H", 4: "I", 16: "Q"}  # types of TIFF


def check_complete(path: Path) -> None:
    """Check that a file is not cut off; the readers find the other damages.

    The check covers gzip, NIfTI and Analyze, GIPL, TIFF, BMP and JPEG. The readers of MetaImage, NRRD, PNG, DICOM and
    HDF5 report a cut file themselves.

    Raises:
        ValueError: the data end too early; where the header tells their length, the message has both numbers of bytes.
        OSError: the file cannot be opened.
    """
    name = path.name.lower()
    if name.endswith(".gz") and unpacked_bytes(path) is None:
        raise ValueError("the compressed data end too early")
    for endings, check in CHECKS.items():
        if name.endswith(endings):
            check(path)


def unpacked_bytes(path: Path) -> int | None:
    """Return the length of the decompressed content of a gzip file in bytes, None where a gzip member is cut off."""
    decoder, total = zlib.decompressobj(wbits=31), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            while block:
                total += len(decoder.decompress(block))
                block = decoder.unused_data
                if decoder.eof:
                    if not block.strip(b"\0"):
                        break
                    decoder = zlib.decompressobj(wbits=31)
    return total if decoder.eof else None


def _check_length(path: Path, needed: int) -> None:
    """Compare the length of a file, decompressed, with the number of bytes that its header needs."""
    held = unpacked_bytes(path) if path.name.lower().endswith(".gz") else path.stat().st_size
    if held is None or held < needed:
        raise ValueError(f"the data end too early: {held} of {needed} bytes")


def _check_nifti(path: Path) -> None:
    """Compare header and voxels of NIfTI-1, NIfTI-2 and Analyze; the voxels of `X.hdr` lie in `X.img`."""
    pair = {".hdr": ".img", ".img": ".hdr"}.get(path.suffix.lower())
    other = path.with_suffix(pair.upper() if path.suffix.isupper() else pair) if pair else path
    header, voxels = (path, other) if path.suffix.lower() == ".hdr" else (other, path)
    if header.is_file() and voxels.is_file() and (needed := _nifti_bytes(_first_bytes(header, NIFTI2_HEADER_BYTES))):
        _check_length(voxels, needed)


def _nifti_bytes(header: bytes) -> int:
    """Return the length of the file with the voxels that a header describes, 0 for other contents."""
    for order, (size, (bits, dim, offset)) in product("<>", NIFTI_FIELDS.items()):
        if len(header) >= size and struct.unpack_from(f"{order}i", header)[0] == size:
            axes, *lengths = struct.unpack_from(order + dim[0], header, dim[1])
            (voxel_bits,) = struct.unpack_from(f"{order}h", header, bits)
            (start,) = struct.unpack_from(order + offset[0], header, offset[1])
            return int(start + prod(lengths[: max(0, min(axes, 7))]) * voxel_bits // 8)
    return 0


def _first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of the content, decompressed where the name ends in `.gz`."""
    with path.open("rb") as file:
        content = file.read(count if path.suffix.lower() != ".gz" else BLOCK_BYTES)
    if path.suffix.lower() != ".gz":
        return content
    try:
        return zlib.decompressobj(wbits=31).decompress(content, count)
    except zlib.error:
        return b""


def _check_gipl(path: Path) -> None:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with suppress(RuntimeError):
        reader.ReadImageInformation()
        image = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
        pixel_bytes = image.GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
        _check_length(path, GIPL_HEADER_BYTES + prod(reader.GetSize()) * pixel_bytes)


def _check_bmp(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(6)
    if header[:2] == b"BM" and len(header) == 6:
        _check_length(path, struct.unpack("<I", header[2:])[0])


def _check_tiff(path: Path) -> None:
    with path.open("rb") as file:
        try:
            _follow_tiff_pages(file, path.stat().st_size)
        except struct.error:
            raise ValueError("a page lies behind the end of the file: the data end too early") from None


def _follow_tiff_pages(file: BinaryIO, length: int) -> None:
    """Read the chain of pages to its end; each page has the place of the next one, and the last page has 0.

    Args:
        file: the opened file.
        length: its number of bytes.

    Raises:
        struct.error: a page, or the pixels of a page, lie behind the end of the file.
    """
    header = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    if order is None or (version := struct.unpack_from(f"{order}H", header, 2)[0]) not in (TIFF, BIG_TIFF):
        return
    is_big = version == BIG_TIFF
    place, count = (f"{order}Q", f"{order}Q") if is_big else (f"{order}I", f"{order}H")
    (offset,) = struct.unpack_from(place, header, 8 if is_big else 4)
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        file.seek(offset)
        (number,) = _read(file, count)
        entries = [(*_read(file, f"{order}HH{place[1]}"), file.read(struct.calcsize(place))) for _ in range(number)]
        (offset,) = _read(file, place)
        numbers = {tag: _numbers(file, order, *entry) for tag, *entry in entries if tag in PLACES | LENGTHS}
        starts = [start for tag in sorted(PLACES & numbers.keys()) for start in numbers[tag]]
        sizes = [size for tag in sorted(LENGTHS & numbers.keys()) for size in numbers[tag]]
        if len(starts) == len(sizes) and any(sum(part) > length for part in zip(starts, sizes, strict=True)):
            raise struct.error


def _numbers(file: BinaryIO, order: str, kind: int, number: int, value: bytes) -> tuple[int, ...]:
    """Return the whole numbers of a field of a TIFF page; `value` holds them, or their place if they are many."""
    if kind not in WHOLE_NUMBERS:
        return ()
    form = f"{order}{number}{WHOLE_NUMBERS[kind]}"
    if struct.calcsize(form) > len(value):
        file.seek(struct.unpack(f"{order}{'Q' if len(value) == 8 else 'I'}", value)[0])
        return _read(file, form)
    return struct.unpack_from(form, value)


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    """Return the numbers at the present place; the end of the file raises `struct.error`."""
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _check_jpeg(path: Path) -> None:
    """Look for the end marker behind the header segments, which may hold a preview picture with its own marker."""
    content = path.read_bytes()
    if content[:2] != b"\xff\xd8":
        return
    position = 2
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    if content.find(b"\xff\xd9", position) < 0:
        raise ValueError("the end marker is missing: the data end too early")


CHECKS: dict[tuple[str, ...], Callable[[Path], None]] = {
    (".nii", ".nii.gz", ".hdr", ".img"): _check_nifti,
    (".gipl", ".gipl.gz"): _check_gipl,
    (".tif", ".tiff"): _check_tiff,
    (".bmp",): _check_bmp,
    (".jpg", ".jpeg"): _check_jpeg,
}
