"""ACDC: `database/training|testing/patientXXX` with Info.cfg, the 4-D cine, and the frames ED and ES with labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_files, list_folders, note_absent_parts
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord
from nnssl.dataset_conversion.engine.sources import Frame, ImageFile, UnreadableError, number_of_frames

PARTS: dict[str, Part] = {"training": "labelled", "testing": "test"}
PATIENT = re.compile(r"patient\d{3}")
LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return the frames ED and ES of every patient; `cine` adds the other frames of training patients, unlabelled."""
    start = folder / "database" if (folder / "database").is_dir() else folder
    root, problems = find_root(start, "training/patientXXX", lambda place: any(place.glob("training/patient*")))
    records: list[SourceRecord] = []
    ignored: list[Path] = []
    for part, kind in PARTS.items():
        for patient in list_folders(root / part) if root else ():
            if not PATIENT.fullmatch(patient.name):
                problems.append(f"{part}/{patient.name} is not of the form patientXXX")
                continue
            frames, missing = _frames(patient)
            problems += missing
            records += [_record(patient, frame, kind) for frame in frames]
            cine = patient / f"{patient.name}_4d.nii.gz"
            if options["cine"] and kind == "labelled":
                more, missing = _cine(patient, cine, frames)
                records += more
                problems += missing
            ignored.append(cine)
            ignored += list_files(patient, [".cfg"])
    return Found(
        tuple(records),
        ("cineMRI",),
        LABELS,
        problems=tuple(problems),
        notes=note_absent_parts(root, PARTS),
        ignored=tuple(ignored),
    )


def _frames(patient: Path) -> tuple[list[int], list[str]]:
    """Return the frame numbers of ED and ES from Info.cfg, counted from 1, and problems."""
    info = patient / "Info.cfg"
    name = f"{patient.parent.name}/{patient.name}/Info.cfg"
    if not info.is_file():
        return [], [f"{name} is missing"]
    text = info.read_text(encoding="utf-8", errors="replace")
    found = [re.search(rf"^{key}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for key in ("ED", "ES")]
    if not all(found):
        return [], [f"{name} does not name the frames ED and ES"]
    return [int(match[1]) for match in found if match], []


def _record(patient: Path, frame: int, kind: Part) -> SourceRecord:
    case = f"{patient.name}_frame{frame:02d}"
    image, label = patient / f"{case}.nii.gz", patient / f"{case}_gt.nii.gz"
    return SourceRecord(case, (ImageFile(image),), kind, ImageFile(label), patient.name)


def _cine(patient: Path, cine: Path, labelled: list[int]) -> tuple[list[SourceRecord], list[str]]:
    name = f"{patient.parent.name}/{patient.name}/{cine.name}"
    if not cine.is_file():
        return [], [f"{name} is missing"]
    try:
        count = number_of_frames(cine)
    except UnreadableError as error:
        return [], [f"{name} {error}"]
    others = [frame for frame in range(1, count + 1) if frame not in labelled]
    return [
        SourceRecord(f"{patient.name}_frame{frame:02d}", (Frame(cine, frame - 1),), "unlabelled", patient=patient.name)
        for frame in others
    ], []
