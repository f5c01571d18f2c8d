from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.data.read_errors import COPY_AGAIN, RIGHT_ANGLES, SHEARED, TABLE, explain_read_error
from nnssl.dataset_conversion.engine.sources import UnreadableError, check_content
from tests.sheared import write_sheared

SCAN = sitk.GetImageFromArray(np.arange(210, dtype=np.float32).reshape(5, 6, 7))


def scan(path: Path) -> Path:
    sitk.WriteImage(SCAN, str(path))
    return path


def changed(path: Path, old: bytes, new: bytes) -> Path:
    content = scan(path).read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def cut(path: Path) -> Path:
    path.write_bytes(scan(path).read_bytes()[:-200])
    return path


def holding(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zipped(path: Path) -> Path:
    return holding(path, gzip.compress(scan(path).read_bytes()))


AXES = b"TransformMatrix = 1 0 0 0 1 0 0 0 1"
BROKEN: dict[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "sheared axes": (write_sheared, "a.nii.gz", SHEARED, RIGHT_ANGLES),
    "axes in one plane": (
        lambda path: changed(path, AXES, b"TransformMatrix = 1 0 0 1 0 0 0 0 1"),
        "a.mha",
        "the axes of the image do not span a volume",
        "repair the direction in the header",
    ),
    "voxel size 0": (
        lambda path: changed(path, b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1"),
        "a.mha",
        "a voxel size in the header is not positive",
        "correct the voxel size",
    ),
    "cut mha": (cut, "a.mha", "the voxels cannot be read completely", COPY_AGAIN),
    "cut nrrd": (cut, "a.nrrd", "the data end too early", COPY_AGAIN),
    "text": (
        lambda path: holding(path, b"hello"),
        "a.nii.gz",
        "the content is no image of the type that the file name promises",
        f"give the file the ending of its type, or {COPY_AGAIN}",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_messages_of_the_reader_are_known(tmp_path: Path, name: str) -> None:
    write, file, cause, hint = BROKEN[name]
    path = write(tmp_path / file)
    with pytest.raises(RuntimeError) as caught:
        sitk.ReadImage(str(path))
    found = explain_read_error(caught.value)
    assert (found.cause, found.hint) == (cause, hint)
    assert str(found) == f"cannot be read ({cause}): {hint}"


def test_the_messages_of_nibabel_are_known(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="damaged") as caught:
        nibabel.load(cut(tmp_path / "a.nii")).get_fdata()
    assert explain_read_error(caught.value).hint == COPY_AGAIN


@pytest.mark.parametrize(
    ("write", "file", "words"),
    [
        (scan, "a.mha.gz", "is named .gz but is not compressed: remove .gz from the name"),
        (zipped, "a.mha", "is compressed but its name does not end in .gz: add .gz to the name"),
    ],
)
def test_compression_that_does_not_fit_the_name(
    tmp_path: Path, write: Callable[[Path], Path], file: str, words: str
) -> None:
    path = write(tmp_path / "b.mha").rename(tmp_path / file)
    with pytest.raises(UnreadableError) as caught:
        check_content(path)
    assert str(caught.value).startswith(words)


def test_other_errors() -> None:
    assert explain_read_error(PermissionError(13, "Permission denied", "a.nii")).hint.endswith("permission to read it")
    assert "-np" in explain_read_error(MemoryError()).hint
    assert explain_read_error(EOFError("Compressed file ended before the end-of-stream marker")).hint == COPY_AGAIN
    unknown = explain_read_error(RuntimeError("many words\n  the cause "))
    assert unknown.cause == "the cause"
    assert unknown.hint.startswith("open the file in a viewer")
    assert explain_read_error(KeyError()).cause == "KeyError"


def test_each_cause_is_found_by_one_row() -> None:
    texts = [row.text for row in TABLE]
    assert len(set(texts)) == len(texts)
    assert all(text == text.lower() and row.hint for text, row in zip(texts, TABLE, strict=True))
