"""Left Atrium 2018: `Training Set/ID/lgemri.nrrd` with `laendo.nrrd`, and `Testing Set/ID/lgemri.nrrd`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_folders, note_absent_parts
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile

PARTS: dict[str, Part] = {"Training Set": "labelled", "Testing Set": "test"}
IMAGE, LABEL, WALL = "lgemri.nrrd", "laendo.nrrd", "lawall.nrrd"


def find_cases(folder: Path, options: dict[str, Any]) -> Found:  # noqa: ARG001 - this converter has no options
    """Return one case for each folder; the cavity, 255 in the download, becomes label 1."""
    root, problems = find_root(folder, "'Training Set/ID/lgemri.nrrd'", lambda place: (place / "Training Set").is_dir())
    records: list[SourceRecord] = []
    ignored: list[Path] = []
    for part, kind in PARTS.items():
        for case in list_folders(root / part) if root else ():
            label = case / LABEL
            has_label = kind == "labelled" or label.is_file()
            image, reference = ImageFile(case / IMAGE), ImageFile(label) if has_label else None
            records.append(SourceRecord(case.name, (image,), kind, reference))
            ignored.append(case / WALL)
    return Found(
        tuple(records),
        ("LGE-MRI",),
        {"background": 0, "LA": 1},
        label_values={0: 0, 1: 1, 255: 1},
        problems=tuple(problems),
        notes=note_absent_parts(root, PARTS),
        ignored=tuple(ignored),
    )
