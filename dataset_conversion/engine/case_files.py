"""The files of one case, each written under another name and moved to its place."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl.dataset_conversion.engine.checks import CaseRecord, Job
from nnssl.dataset_conversion.engine.records import Record
from nnssl.dataset_conversion.engine.sources import ImageFile, image_of, placement
from nnssl.errors import EnvironmentProblem
from nnssl.system.files import content_hash, write_json

ENDING = ".nii.gz"
HEADER_BYTES = 352  # of a NIfTI-1 file, before the voxels
WORK = ".conversion"  # files on their way, and what each completed case was made from
FOLDERS = {
    "labelled": ("imagesTr", "labelsTr"),
    "unlabelled": ("imagesUn", ""),
    "test": ("imagesTs", "labelsTs"),
}


def write_case(task: tuple[Record, CaseRecord], job: Job) -> None:
    """Write the files of one case, and what they were made from into the work folder when all are there.

    Raises:
        EnvironmentProblem: the disk is full, or a file changed since it was checked.
    """
    record, entry = task
    images, labels = FOLDERS[record.part]
    outputs = {}
    try:
        for number, channel in enumerate(record.channels):
            name = f"{images}/{record.case}_{number:04d}{ENDING}"
            if isinstance(channel, ImageFile) and channel.path.name.endswith(ENDING) and _has_three_axes(channel.path):
                outputs[name] = _placed(job, name, partial(_copy, channel.path))
            else:
                outputs[name] = _placed(job, name, partial(_save, channel.read()))
        if record.label:
            name = f"{labels}/{record.case}{ENDING}"
            place = placement(record.channels[0].read()) if job.fix_geometry else None
            outputs[name] = _placed(job, name, partial(_save, _mapped(record.label.read(), place, job.values)))
    except (OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            "a case could not be written",
            where=f"{job.folder} {record.case}",
            why=str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__,
            run="free space or choose another folder, then run the same command again",
        ) from error
    write_json(
        job.folder / WORK / f"{record.case}.json", dataclasses.asdict(dataclasses.replace(entry, outputs=outputs))
    )


def _placed(job: Job, name: str, save: partial[None]) -> str:
    """Save a file under the work folder, sync it, move it to its place; return its SHA-256."""
    target = job.folder / name
    temporary = job.folder / WORK / target.name
    target.parent.mkdir(exist_ok=True)
    try:
        save(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        digest = content_hash(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _has_three_axes(path: Path) -> bool:
    import nibabel

    return len(nibabel.load(path).shape) == 3


def _copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)


def _save(image: Any, target: Path) -> None:  # noqa: ANN401 - a SimpleITK image
    sitk.WriteImage(image, str(target))
    voxel_bytes = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    if _unpacked_bytes(target) < HEADER_BYTES + voxel_bytes:  # ITK does not raise where a write falls short
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unpacked_bytes(path: Path) -> int:
    """Return the length of the decompressed file, 0 where the compressed data end too early."""
    try:
        with gzip.open(path) as file:
            return sum(len(block) for block in iter(partial(file.read, 1 << 20), b""))
    except EOFError:
        return 0


def _mapped(label: Any, place: Any, values: Mapping[int, int]) -> Any:  # noqa: ANN401 - SimpleITK images
    """Return the label as bytes with the values of the data set, at `place` or (None) where it is."""
    voxels = sitk.GetArrayViewFromImage(label)
    mapping = values or {value: value for value in range(256)}
    low = min(mapping)
    table = np.zeros(max(mapping) - low + 1, dtype=np.uint8)
    for value, written in mapping.items():
        table[value - low] = written
    mapped = np.empty(voxels.shape, dtype=np.uint8)
    for source, target in zip(voxels, mapped, strict=True):
        target[...] = table[source.astype(np.int64) - low]
    _, spacing, origin, direction = place or placement(label)
    return image_of(mapped, spacing, origin, direction)
