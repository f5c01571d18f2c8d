"""Synapse (BTCV): `Abdomen/RawData/Training/img/img0001.nii.gz`, `Training/label/label0001.nii.gz`, `Testing/img`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_files, stem
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile

IMAGE = re.compile(r"img(\d{4})\.nii\.gz")
ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
STARTS = ("", "RawData", "Abdomen/RawData")


def find_cases(folder: Path, options: dict[str, Any]) -> Found:  # noqa: ARG001 - this converter has no options
    """Return the training scans as labelled cases and the test scans, whose labels are not public, as unlabelled."""
    start = next((folder / start for start in STARTS if (folder / start / "Training" / "img").is_dir()), folder)
    expected = "Training/img, Training/label and Testing/img"
    root, problems = find_root(start, expected, lambda place: (place / "Training" / "img").is_dir())
    records: list[SourceRecord] = []
    for part in ("Training", "Testing"):
        for path in list_files(root / part / "img", [".nii.gz"]) if root else ():
            match = IMAGE.fullmatch(path.name)
            if not match:
                continue  # the check reports this file
            case, image = stem(path), (ImageFile(path),)
            if part == "Training":
                label = path.parents[1] / "label" / f"label{match[1]}.nii.gz"
                records.append(SourceRecord(case, image, "labelled", ImageFile(label)))
            else:
                records.append(SourceRecord(case, image, "unlabelled"))
    labels = {"background": 0} | {name: value for value, name in enumerate(ORGANS, 1)}
    return Found(tuple(records), ("CT",), labels, problems=tuple(problems))
