"""M&Ms: `Training/Labeled|Training/Unlabeled|Validation|Testing/CODE/CODE_sa.nii.gz`, `CODE_sa_gt.nii.gz` and a csv.

The csv names the vendor, A to D, and the positions of ED and ES on the fourth axis, counted from 0. The labels are 4-D
files too; their other frames are empty.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_folders
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord
from nnssl.dataset_conversion.engine.sources import Frame, UnreadableError, number_of_frames

PARTS: dict[str, Part] = {
    "Training/Labeled": "labelled",
    "Validation": "labelled",
    "Testing": "test",
    "Training/Unlabeled": "unlabelled",
}
TABLE = "*M&Ms*nformation*opendataset.csv"
LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
VENDORS = ("A", "B", "C", "D")
COLUMNS = ("External code", "Vendor", "ED", "ES")


@dataclass(frozen=True)
class Row:
    """One patient of the table."""

    vendor: str
    frames: tuple[int, ...]


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return the frames ED and ES of every patient, with the vendor as domain.

    `cine` adds the other frames of the training part as unlabelled scans.
    """
    start = folder / "OpenDataset" if (folder / "OpenDataset").is_dir() else folder
    expected = "Training/Labeled, Training/Unlabeled, Validation and Testing"
    root, problems = find_root(start, expected, lambda place: (place / "Training" / "Labeled").is_dir())
    if root is None:
        return Found((), ("cineMRI",), LABELS, problems=tuple(problems))
    table, problems = _table(root, folder)
    records: list[SourceRecord] = []
    ignored: list[Path] = []
    for place, part in PARTS.items() if table else ():
        if not (root / place).is_dir():
            problems.append(f"the folder {place} is missing")
            continue
        for patient in list_folders(root / place):
            if patient.name not in table:
                problems.append(f"{place}/{patient.name} has no row in the table")
                continue
            row = table[patient.name]
            records += [_record(patient, frame, part, row.vendor) for frame in row.frames]
            if options["cine"] and place.startswith("Training"):
                more, missing = _others(patient, row)
                records += more
                problems += missing
            if part == "unlabelled":
                ignored.append(patient / f"{patient.name}_sa_gt.nii.gz")
    return Found(tuple(records), ("cineMRI",), LABELS, problems=tuple(problems), ignored=tuple(ignored))


def _table(root: Path, folder: Path) -> tuple[dict[str, Row], list[str]]:
    """Return the rows of the table by patient, and problems."""
    paths = sorted({path for place in (root, root.parent, folder) for path in place.glob(TABLE)})
    if len(paths) != 1:
        return {}, [f"{len(paths)} tables '{TABLE}' were found, one is needed: the table names vendors and frames"]
    with paths[0].open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file, restval=""))
    lacking = [name for name in COLUMNS if not rows or name not in rows[0]]
    if lacking:
        return {}, [f"{paths[0].name} lacks the column(s) {', '.join(lacking)}"]
    found: dict[str, Row] = {}
    problems = []
    for row in rows:
        code, vendor = row["External code"].strip(), row["Vendor"].strip()
        frames = [row[name].strip() for name in ("ED", "ES")]
        if vendor not in VENDORS or not all(re.fullmatch(r"\d+", frame) for frame in frames):
            problems.append(f"{paths[0].name}: the row of {code} has the vendor '{vendor}' and the frames {frames}")
            continue
        found[code] = Row(vendor, tuple(dict.fromkeys(int(frame) for frame in frames)))
    return found, problems


def _record(patient: Path, frame: int, part: Part, vendor: str) -> SourceRecord:
    name = patient.name
    image = Frame(patient / f"{name}_sa.nii.gz", frame)
    label = Frame(patient / f"{name}_sa_gt.nii.gz", frame) if part != "unlabelled" else None
    return SourceRecord(f"{name}_frame{frame:02d}", (image,), part, label, name, vendor)


def _others(patient: Path, row: Row) -> tuple[list[SourceRecord], list[str]]:
    cine = patient / f"{patient.name}_sa.nii.gz"
    try:
        count = number_of_frames(cine)
    except UnreadableError as error:
        return [], [f"{patient.name}/{cine.name} {error}"] if cine.is_file() else []  # the check reports a missing file
    others = [frame for frame in range(count) if frame not in row.frames]
    return [_record(patient, frame, "unlabelled", row.vendor) for frame in others], []
