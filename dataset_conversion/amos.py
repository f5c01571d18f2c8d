"""AMOS22: `amos22/imagesTr|labelsTr|imagesVa|labelsVa|imagesTs/amos_0001.nii.gz`, `amos22_unlabeled_ct_*` beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import absent, files_in, folders_in, root_of
from nnssl.dataset_conversion.engine.records import Found, Record
from nnssl.dataset_conversion.engine.sources import ImageFile

IMAGE = re.compile(r"amos_(\d{4})\.nii\.gz")
PARTS = ("imagesTr", "imagesVa", "imagesTs")
ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
    "prostate/uterus",
)  # fmt: skip
LAST_CT, LAST_LABELLED = 500, 600  # 501 to 600 are MR; the scans without labels begin at 5000 and are CT


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return imagesTr and imagesVa with labels, imagesTs as test cases without, and every other scan unlabelled.

    With `modality` only CT or MR is converted.
    """
    start = folder / "amos22" if (folder / "amos22" / "imagesTr").is_dir() else folder
    root, problems = root_of(start, "amos22/imagesTr", lambda place: (place / "imagesTr").is_dir())
    records: list[Record] = []
    ignored: list[Path] = []
    for path in _scans(folder, root) if root else ():
        match = IMAGE.fullmatch(path.name)
        if not match:
            continue  # the check reports it
        domain = "MR" if LAST_CT < int(match[1]) <= LAST_LABELLED else "CT"
        record = _record(path, domain)
        if options["modality"] in (None, domain.lower()):
            records.append(record)
        else:
            ignored += [path, *(record.label.files() if record.label else ())]
    channel = {"ct": "CT", "mr": "MR"}.get(options["modality"], "image")  # one name: both modalities normalised alike
    labels = {"background": 0} | {name: value for value, name in enumerate(ORGANS, 1)}
    return Found(
        tuple(records),
        (channel,),
        labels,
        problems=tuple(problems),
        notes=absent(root, PARTS),
        ignored=tuple(ignored),
    )


def _scans(folder: Path, root: Path) -> list[Path]:
    known = [root / name for name in PARTS]
    beside = [place for start in {folder, root} for place in folders_in(start) if "unlabeled" in place.name]
    return [path for place in (*known, *sorted(beside)) for path in files_in(place, [".nii.gz"])]


def _record(path: Path, domain: str) -> Record:
    case, place = path.name.removesuffix(".nii.gz"), path.parent
    if place.name in ("imagesTr", "imagesVa"):
        label = place.with_name(place.name.replace("images", "labels")) / path.name
        return Record(case, (ImageFile(path),), "labelled", ImageFile(label), domain=domain)
    return Record(case, (ImageFile(path),), "test" if place.name == "imagesTs" else "unlabelled", domain=domain)
