"""Left Atrium 2018: `Training Set/ID/lgemri.nrrd` with `laendo.nrrd`, and `Testing Set/ID/lgemri.nrrd`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import absent, folders_in, root_of
from nnssl.dataset_conversion.engine.records import Found, Part, Record
from nnssl.dataset_conversion.engine.sources import ImageFile

PARTS: dict[str, Part] = {"Training Set": "labelled", "Testing Set": "test"}
IMAGE, LABEL, WALL = "lgemri.nrrd", "laendo.nrrd", "lawall.nrrd"


def find_cases(folder: Path, options: dict[str, Any]) -> Found:  # noqa: ARG001 - it has no options
    """Return one case a folder; the cavity, 255 in the download, becomes label 1."""
    root, problems = root_of(folder, "'Training Set/ID/lgemri.nrrd'", lambda place: (place / "Training Set").is_dir())
    records: list[Record] = []
    ignored: list[Path] = []
    for part, kind in PARTS.items():
        for case in folders_in(root / part) if root else ():
            label = case / LABEL
            has_label = kind == "labelled" or label.is_file()
            records.append(Record(case.name, (ImageFile(case / IMAGE),), kind, ImageFile(label) if has_label else None))
            ignored.append(case / WALL)
    return Found(
        tuple(records),
        ("LGE-MRI",),
        {"background": 0, "LA": 1},
        label_values={0: 0, 1: 1, 255: 1},
        problems=tuple(problems),
        notes=absent(root, PARTS),
        ignored=tuple(ignored),
    )
