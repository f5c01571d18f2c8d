"""Miniatures of downloads in their real formats, and the checks that every conversion of one must pass."""

from __future__ import annotations

import json
import locale
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.cli.convert import main
from nnssl.data.integrity import check_dataset
from nnssl.data.raw import RawDataset, read_raw_dataset

SIZE = (4, 6, 5)  # D, H, W
SPACING = (1.5, 1.25, 8.0)  # x, y, z
DICOM_SPACING = (1.5, 1.25, 2.0)  # x, y, z
ORIGIN = (-12.5, 3.0, 40.0)
ROTATED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # x and y change places: an orientation that must survive


def scan(seed: int, size: Sequence[int] = SIZE, dtype: Any = np.int16) -> np.ndarray:
    """Return an array (D, H, W) that no other seed has."""
    return np.random.default_rng(seed).integers(0, 1000, size).astype(dtype)


def label(values: Sequence[int], size: Sequence[int] = SIZE, dtype: Any = np.uint8) -> np.ndarray:
    """Return a label (D, H, W) with background and every one of the values."""
    array = np.zeros(size, dtype=dtype)
    for row, value in enumerate(values):
        array[row % size[0], 1 + row // size[0], 1:4] = value
    return array


def write(path: Path, array: np.ndarray, **geometry: Any) -> Path:
    """Write a 3-D array with the standard geometry, in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.get("spacing", SPACING))
    image.SetOrigin(geometry.get("origin", ORIGIN))
    image.SetDirection(geometry.get("direction", ROTATED))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def write_4d(path: Path, volumes: Sequence[np.ndarray]) -> Path:
    """Write volumes as one 4-D file with the standard geometry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for volume in volumes:
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing(SPACING)
        image.SetOrigin(ORIGIN)
        image.SetDirection(ROTATED)
        images.append(image)
    sitk.WriteImage(sitk.JoinSeries(images), str(path))
    return path


def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: Path, *options: str) -> RawDataset:
    """Convert a miniature as data set 27 and return it, after our integrity check and stock nnU-Net's."""
    use_raw(tmp_path, monkeypatch)
    assert main([name, "-i", str(source), "-d", "27", "-np", "1", *options]) == 0
    raw = read_raw_dataset(27)
    check_dataset(raw, 1)
    stock_check(raw.folder, monkeypatch)
    return raw


def convert_folder(source: Path, *options: str) -> int:
    """Convert images of a folder as data set 5 and return the exit code."""
    return main(["folder", "-i", str(source), "-d", "5", "-np", "1", *options])


def use_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty nnUNet_raw the one in use."""
    root = tmp_path / "nnUNet_raw"
    root.mkdir(exist_ok=True)
    monkeypatch.setenv("nnUNet_raw", str(root))
    return root


def stock_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` runs; its workers are forked to be quick."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as stock

    with monkeypatch.context() as patch:
        fork = multiprocessing.get_context("fork")
        patch.setattr(stock.multiprocessing, "get_context", lambda _: fork)
        stock.verify_dataset_integrity(str(folder), 1)


def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str, source: Path, *options: str
) -> str:
    """Convert a broken miniature; return the message, after checking the exit code and that nothing was written."""
    root = use_raw(tmp_path, monkeypatch)
    assert main([name, "-i", str(source), "-d", "27", "-np", "1", "--json", *options]) == 3
    assert list(root.iterdir()) == []
    return json.loads(capsys.readouterr().out)["why"]


def read(path: Path) -> tuple[np.ndarray, Any]:
    """Return the voxels (D, H, W) and the image of a file."""
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def assert_scan(path: Path, array: np.ndarray, spacing: Sequence[float] = SPACING) -> None:
    """Check voxels, type, spacing, origin and direction of a file."""
    voxels, image = read(path)
    np.testing.assert_array_equal(voxels, array)
    assert voxels.dtype == array.dtype
    np.testing.assert_allclose(image.GetSpacing(), spacing, rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-5)
    np.testing.assert_allclose(image.GetDirection(), ROTATED, atol=1e-6)


def names(folder: Path) -> list[str]:
    """Return the sorted file names in a folder, none where it does not exist."""
    return sorted(path.name for path in folder.glob("*"))


def write_dicom(folder: Path, array: np.ndarray, **changes: Any) -> Path:
    """Write a CT volume (D, H, W) as a series, one file a slice, with rescale intercept -1024.

    Args:
        folder: where the series goes; the files are 1-1.dcm, 1-2.dcm, … by instance number.
        array: Hounsfield units of at least -1024; slice 0 lies lowest.
        changes: `order` holds the slice of each instance number, `shifts_mm` moves slices (index -> mm) along z,
            `series` is the last part of the series' unique name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order, shifts_mm = list(changes.get("order", range(len(array)))), changes.get("shifts_mm", {})
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate(array):
        number = order.index(index) + 1
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing(DICOM_SPACING)
        z = ORIGIN[2] + index * DICOM_SPACING[2] + shifts_mm.get(index, 0.0)
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.4.{changes.get('series', 1)}.{number}",
            "0020|000d": "1.2.3.4",
            "0020|000e": f"1.2.3.4.{changes.get('series', 1)}",
            "0020|0013": str(number),
            "0020|0032": f"{ORIGIN[0]}\\{ORIGIN[1]}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{number}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM leaves "C", in which files are ASCII
    return folder
