"""Pancreas-CT: `PANCREAS_0001/STUDY/SERIES/*.dcm`, and `TCIA_pancreas_labels-02-05-2017/label0001.nii.gz`.

The labels are stored slice by slice like the DICOM pixel data: rows and columns in the same order, slices in the order
of their instance numbers. Their NIfTI header tells another orientation, so a program that follows the header sees
flipped labels. The converter keeps a label whose header agrees with the series. It matches the slices of every other
label by instance number and gives the label origin and direction of the series; the check then compares size and voxel
size.

Cases 25 and 70 repeat scan 2 with another crop. The archive withdrew their images in 2020, but the archive of labels
still holds their labels. The converter leaves both out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl.data.geometry import find_differences, geometry_of_image
from nnssl.dataset_conversion.engine.dicom import DicomSeries, ordered_slices, placement_of
from nnssl.dataset_conversion.engine.layout import find_root, list_files, list_folders
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile, UnreadableError, image_of

PATIENT = re.compile(r"PANCREAS_(\d{4})")
LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?")
LABELS = "TCIA_pancreas_labels-02-05-2017"
REPEATED = {"0025", "0070"}


@dataclass(frozen=True)
class PancreasLabel:
    """A label of Pancreas-CT at the place of its series; the docstring of the module explains how."""

    path: Path
    series: DicomSeries

    def files(self) -> tuple[Path, ...]:
        """Return the file of the label; the slices belong to the image."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the label with its slices in the order of the series' positions."""
        label = ImageFile(self.path).read()
        try:
            slices = ordered_slices(self.series.paths)
        except UnreadableError:
            return label  # the check of the image reports this
        origin, direction = placement_of(slices)
        found = geometry_of_image(label)
        expected = dataclasses.replace(found, origin_mm=tuple(origin), direction=tuple(direction))
        if not find_differences(found, expected):
            return label
        voxels = sitk.GetArrayFromImage(label)
        if len(voxels) == len(slices):
            voxels = voxels[np.argsort(np.argsort([one.instance for one in slices]))]
        return image_of(voxels, label.GetSpacing(), origin, direction)


def find_cases(folder: Path, options: dict[str, Any]) -> Found:  # noqa: ARG001 - this converter has no options
    """Return one case for each patient: the only series in the patient's folder, and the label of this series."""
    expected = "'PANCREAS_0001/STUDY/SERIES/*.dcm', directly or in 'Pancreas-CT', and the folder of the labels"
    root, problems = find_root(folder, expected, lambda place: _images(place) is not None)
    images = _images(root) if root else None
    if root is None or images is None:
        return Found((), ("CT",), {"background": 0, "pancreas": 1}, problems=tuple(problems))
    labels = {match[1]: path for path in _labels(root) if (match := LABEL.fullmatch(path.name))}
    records: list[SourceRecord] = []
    ignored = [path for number, path in labels.items() if number in REPEATED]
    repeated: list[str] = []
    seen = set(REPEATED)
    for patient in list_folders(images):
        match = PATIENT.fullmatch(patient.name)
        if not match:
            continue  # the folder of the labels, or a folder whose files the check reports
        slices = tuple(sorted(patient.rglob("*.dcm")))
        if match[1] in REPEATED:
            ignored += slices
            repeated.append(patient.name)
            continue
        seen.add(match[1])
        wrong = _series_problems(patient, slices)
        problems += wrong
        if wrong:
            ignored += slices
            continue
        label = labels.get(match[1], root / LABELS / f"label{match[1]}.nii.gz")
        series = DicomSeries(slices)
        records.append(SourceRecord(patient.name, (series,), "labelled", PancreasLabel(label, series), patient.name))
    problems += [f"{labels[number].name} has no folder PANCREAS_{number}" for number in sorted(set(labels) - seen)]
    ignored += [path for number, path in labels.items() if number not in {record.case[-4:] for record in records}]
    withdrawn = f"{' and '.join(repeated)} repeat scan 2 and are left out, as the archive has done since 2020"
    return Found(
        tuple(records),
        ("CT",),
        {"background": 0, "pancreas": 1},
        problems=tuple(problems),
        ignored=tuple(ignored),
        notes=(withdrawn,) if repeated else (),
    )


def _images(root: Path) -> Path | None:
    places = [root, root / "Pancreas-CT", *sorted(root.glob("manifest-*/Pancreas-CT"))]
    return next((place for place in places if any(place.glob("PANCREAS_*"))), None)


def _labels(root: Path) -> list[Path]:
    places = [root, *(place for place in list_folders(root) if not place.name.startswith("PANCREAS_"))]
    return [path for place in places for path in list_files(place, [".nii.gz", ".nii"]) if LABEL.fullmatch(path.name)]


def _series_problems(patient: Path, slices: Sequence[Path]) -> list[str]:
    folders = sorted({path.parent for path in slices})
    if not folders:
        return [f"{patient.name} holds no .dcm file"]
    if len(folders) > 1:
        listed = ", ".join(folder.relative_to(patient).as_posix() for folder in folders)
        return [f"{patient.name} holds {len(folders)} series ({listed}): keep the series that the label belongs to"]
    return []
