"""AMOS22: `amos22/imagesTr|labelsTr|imagesVa|labelsVa|imagesTs/amos_0001.nii.gz` beside `amos22_unlabeled_ct_*`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_files, list_folders, note_absent_parts, stem
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile
from nnssl.names import IMAGES_TR, IMAGES_TS

IMAGE = re.compile(r"amos_(\d{4})\.nii\.gz")
PARTS = (IMAGES_TR, "imagesVa", IMAGES_TS)
ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
    "prostate/uterus",
)  # fmt: skip
LAST_CT, LAST_LABELLED = 500, 600  # 501 to 600 are MR; the unlabelled scans begin at 5000 and are CT


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return imagesTr and imagesVa as labelled cases, imagesTs as test cases without labels, other scans as unlabelled.

    `modality` restricts the conversion to CT or MR.
    """
    start = folder / "amos22" if (folder / "amos22" / IMAGES_TR).is_dir() else folder
    root, problems = find_root(start, f"amos22/{IMAGES_TR}", lambda place: (place / IMAGES_TR).is_dir())
    records: list[SourceRecord] = []
    ignored: list[Path] = []
    for path in _scans(folder, root) if root else ():
        match = IMAGE.fullmatch(path.name)
        if not match:
            continue  # the check reports this file
        domain = "MR" if LAST_CT < int(match[1]) <= LAST_LABELLED else "CT"
        record = _record(path, domain)
        if options["modality"] in (None, domain.lower()):
            records.append(record)
        else:
            ignored += [path, *(record.label.files() if record.label else ())]
    # Without a choice of modality all scans have one channel name, so that nnU-Net normalises both modalities alike.
    channel = {"ct": "CT", "mr": "MR"}.get(options["modality"], "image")
    labels = {"background": 0} | {name: value for value, name in enumerate(ORGANS, 1)}
    return Found(
        tuple(records),
        (channel,),
        labels,
        problems=tuple(problems),
        notes=note_absent_parts(root, PARTS),
        ignored=tuple(ignored),
    )


def _scans(folder: Path, root: Path) -> list[Path]:
    known = [root / name for name in PARTS]
    beside = [place for start in {folder, root} for place in list_folders(start) if "unlabeled" in place.name]
    return [path for place in (*known, *sorted(beside)) for path in list_files(place, [".nii.gz"])]


def _record(path: Path, domain: str) -> SourceRecord:
    case, place = stem(path), path.parent
    if place.name in (IMAGES_TR, "imagesVa"):
        label = place.with_name(place.name.replace("images", "labels")) / path.name
        return SourceRecord(case, (ImageFile(path),), "labelled", ImageFile(label), domain=domain)
    return SourceRecord(case, (ImageFile(path),), "test" if place.name == IMAGES_TS else "unlabelled", domain=domain)
