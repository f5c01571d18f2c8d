"""Writes the files of one case, each under a temporary name before it is moved to its place."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl.data.geometry import Geometry, geometry_of_image, relate_grids
from nnssl.dataset_conversion.engine.checks import ConvertedCase, Job
from nnssl.dataset_conversion.engine.pictures import PNG, save_picture
from nnssl.dataset_conversion.engine.records import Part, Source, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile, image_of
from nnssl.errors import EnvironmentProblem
from nnssl.names import IMAGES_TR, IMAGES_TS, IMAGES_UN, LABELS_TR, LABELS_TS
from nnssl.system.files import RUN_AGAIN, content_hash, replacing, write_json

ENDING = ".nii.gz"
HEADER_BYTES = 352  # of a NIfTI-1 file, before the voxels
WORK = ".conversion"  # folder of unfinished files and of the records of completed cases
MANIFEST = "conversion.json"
FOLDERS: dict[Part, tuple[str, str]] = {
    "labelled": (IMAGES_TR, LABELS_TR),
    "unlabelled": (IMAGES_UN, ""),
    "test": (IMAGES_TS, LABELS_TS),
}


def write_case(task: tuple[SourceRecord, ConvertedCase], job: Job) -> None:
    """Write the files of one case and, when all are complete, a record of them into the work folder.

    Raises:
        EnvironmentProblem: the disk is full, or a file changed since the check.
    """
    record, entry = task
    images, labels = FOLDERS[record.part]
    outputs = {}
    try:
        for number, channel in enumerate(record.channels):
            name = f"{images}/{record.case}_{number:04d}{job.file_ending}"
            outputs[name] = _write_channel(job, name, channel, entry.grid if number in entry.turned_channels else None)
        if record.label:
            name = f"{labels}/{record.case}{job.file_ending}"
            label = _converted_label(record.label.read(), entry.grid, job.values)
            outputs[name] = _write_file(job, name, partial(_save, label))
    except (OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            "a case could not be written",
            where=f"{job.folder} {record.case}",
            why=(str(error).strip().splitlines() or [type(error).__name__])[-1],
            run=RUN_AGAIN,
        ) from error
    write_json(job.folder / WORK / f"{record.case}.json", dataclasses.replace(entry, outputs=outputs).as_record())


def _write_channel(job: Job, name: str, channel: Source, grid: Geometry | None) -> str:
    """Write a channel, brought to `grid` where one is given, and return the SHA-256 of the file."""
    if grid is None and _can_be_copied(channel):
        return _write_file(job, name, partial(shutil.copyfile, channel.files()[0]))
    image = channel.read()
    if grid:
        image = _bring_to(grid, geometry_of_image(image), sitk.GetArrayViewFromImage(image))
    return _write_file(job, name, partial(_save, image))


def _write_file(job: Job, name: str, save: Callable[[Path], object]) -> str:
    """Let `save` write a file of the data set in one piece, and return its SHA-256."""
    with replacing(job.folder / name, keep_ending=True, work_folder=job.folder / WORK) as temporary:
        save(temporary)
        return content_hash(temporary)


def _can_be_copied(channel: Source) -> bool:
    """Return whether a channel is a file that the data set can take as it is: one compressed 3-D NIfTI volume."""
    return isinstance(channel, ImageFile) and channel.path.name.endswith(ENDING) and _has_three_axes(channel.path)


def _has_three_axes(path: Path) -> bool:
    import nibabel

    return len(nibabel.load(path).shape) == 3


def _save(image: Any, target: Path) -> None:  # noqa: ANN401 - a SimpleITK image
    if target.name.endswith(PNG):
        save_picture(image, target)
        return
    sitk.WriteImage(image, str(target))
    voxel_bytes = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    if _unpacked_bytes(target) < HEADER_BYTES + voxel_bytes:  # ITK raises no error when a write falls short
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unpacked_bytes(path: Path) -> int:
    """Return the length of the decompressed file, 0 if the compressed data end too early."""
    try:
        with gzip.open(path) as file:
            return sum(len(block) for block in iter(partial(file.read, 1 << 20), b""))
    except EOFError:
        return 0


def _converted_label(label: Any, grid: Geometry | None, values: Mapping[int, int]) -> Any:  # noqa: ANN401
    """Return the label as bytes with the values of the data set, brought to `grid`; None leaves it in its own place."""
    voxels = sitk.GetArrayViewFromImage(label)
    mapping = values or {value: value for value in range(256)}
    low = min(mapping)
    table = np.zeros(max(mapping) - low + 1, dtype=np.uint8)
    for value, written in mapping.items():
        table[value - low] = written
    mapped = np.empty(voxels.shape, dtype=np.uint8)
    for source, target in zip(voxels, mapped, strict=True):
        target[...] = table[source.astype(np.int64) - low]
    place = geometry_of_image(label)
    return _bring_to(grid or place, place, mapped)


def _bring_to(grid: Geometry, place: Geometry, voxels: NDArray[Any]) -> Any:  # noqa: ANN401
    """Return the voxels (D, H, W) with the header of `grid`, turned where `place` is the grid on other axes."""
    turn = relate_grids(place, grid).turn
    turned = turn.turn_array(voxels) if turn else voxels
    return image_of(turned, grid.spacing_mm, grid.origin_mm, grid.direction)
