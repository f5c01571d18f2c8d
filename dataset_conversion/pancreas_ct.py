"""Pancreas-CT: `PANCREAS_0001/STUDY/SERIES/*.dcm`, and `TCIA_pancreas_labels-02-05-2017/label0001.nii.gz`.

The labels are stored slice by slice as the DICOM pixel data are: rows and columns in the same order, slices in the
order of their instance numbers. The orientation in their NIfTI header is another one, so a program that goes by it sees
them flipped. Here a label whose header agrees with the series is taken as it is; every other one is matched by instance
number and gets the placement of the series, provided that size and voxel size are those of the series.

Cases 25 and 70 were scan 2 once more, cropped otherwise; the archive withdrew their images in 2020, their labels are
still in the archive of labels. They are never converted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl.data.scans import PLACEMENT_TOLERANCE
from nnssl.dataset_conversion.engine.dicom import DicomSeries, ordered_slices, placement_of
from nnssl.dataset_conversion.engine.layout import files_in, folders_in, root_of
from nnssl.dataset_conversion.engine.records import Found, Record
from nnssl.dataset_conversion.engine.sources import ImageFile, UnreadableError, image_of

PATIENT = re.compile(r"PANCREAS_(\d{4})")
LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?")
LABELS = "TCIA_pancreas_labels-02-05-2017"
REPEATED = {"0025", "0070"}


@dataclass(frozen=True)
class PancreasLabel:
    """A label of Pancreas-CT in the placement of its series; see the module's docstring."""

    path: Path
    series: DicomSeries

    def files(self) -> tuple[Path, ...]:
        """Return the label's file; the slices are those of the image."""
        return (self.path,)

    def read(self) -> Any:  # noqa: ANN401 - SimpleITK has no types
        """Return the label with its slices in the order of the series' positions."""
        label = ImageFile(self.path).read()
        try:
            slices = ordered_slices(self.series.paths)
        except UnreadableError:
            return label  # the image reports it
        origin, direction = placement_of(slices)
        tolerance_mm = max(PLACEMENT_TOLERANCE, 0.01 * min(label.GetSpacing()))
        if np.allclose(label.GetDirection(), direction, rtol=0, atol=PLACEMENT_TOLERANCE) and np.allclose(
            label.GetOrigin(), origin, rtol=0, atol=tolerance_mm
        ):
            return label
        voxels = sitk.GetArrayFromImage(label)
        if len(voxels) == len(slices):
            voxels = voxels[np.argsort(np.argsort([one.instance for one in slices]))]
        return image_of(voxels, label.GetSpacing(), origin, direction)


def find_cases(folder: Path, options: dict[str, Any]) -> Found:  # noqa: ARG001 - it has no options
    """Return one case a patient: the one series of the patient's folder, and its label."""
    expected = "'PANCREAS_0001/STUDY/SERIES/*.dcm', itself or in 'Pancreas-CT', and the labels' folder"
    root, problems = root_of(folder, expected, lambda place: _images(place) is not None)
    images = _images(root) if root else None
    if root is None or images is None:
        return Found((), ("CT",), {"background": 0, "pancreas": 1}, problems=tuple(problems))
    labels = {match[1]: path for path in _labels(root) if (match := LABEL.fullmatch(path.name))}
    records: list[Record] = []
    ignored = [path for number, path in labels.items() if number in REPEATED]
    repeated: list[str] = []
    seen = set(REPEATED)
    for patient in folders_in(images):
        match = PATIENT.fullmatch(patient.name)
        if not match:
            continue  # the folder of the labels, or one whose files the check reports
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
        records.append(Record(patient.name, (series,), "labelled", PancreasLabel(label, series), patient.name))
    problems += [f"{labels[number].name} has no folder PANCREAS_{number}" for number in sorted(set(labels) - seen)]
    ignored += [path for number, path in labels.items() if number not in {record.case[-4:] for record in records}]
    notes = [f"{' and '.join(repeated)} repeat scan 2 and are left out, as the archive did in 2020"] if repeated else []
    return Found(
        tuple(records),
        ("CT",),
        {"background": 0, "pancreas": 1},
        problems=tuple(problems),
        ignored=tuple(ignored),
        notes=tuple(notes),
    )


def _images(root: Path) -> Path | None:
    places = [root, root / "Pancreas-CT", *sorted(root.glob("manifest-*/Pancreas-CT"))]
    return next((place for place in places if any(place.glob("PANCREAS_*"))), None)


def _labels(root: Path) -> list[Path]:
    places = [root, *(place for place in folders_in(root) if not place.name.startswith("PANCREAS_"))]
    return [path for place in places for path in files_in(place, [".nii.gz", ".nii"]) if LABEL.fullmatch(path.name)]


def _series_problems(patient: Path, slices: Sequence[Path]) -> list[str]:
    folders = sorted({path.parent for path in slices})
    if not folders:
        return [f"{patient.name} holds no .dcm file"]
    if len(folders) > 1:
        listed = ", ".join(folder.relative_to(patient).as_posix() for folder in folders)
        return [f"{patient.name} holds {len(folders)} series ({listed}): keep the one that the label belongs to"]
    return []
