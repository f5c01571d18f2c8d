"""MM-WHS 2017: `ct_train|mr_train/*_image.nii.gz` with `*_label.nii.gz`, and `ct_test|mr_test/*_image.nii.gz`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_files
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile

MODALITIES = {"ct": "CT", "mr": "MR"}
IMAGE = re.compile(r"(?P<case>(?P<folder>(?:ct|mr)_(?:train|test))_\d{4})_image\.nii\.gz")
LABELS = {
    "background": 0,
    "LV myocardium": 1,
    "left atrium": 2,
    "left ventricle": 3,
    "right atrium": 4,
    "right ventricle": 5,
    "ascending aorta": 6,
    "pulmonary artery": 7,
}
VALUES = {0: 0, 205: 1, 420: 2, 421: 2, 500: 3, 550: 4, 600: 5, 820: 6, 850: 7}  # 421: an error in mr_train_1010
FOUR = {0: 0, 205: 1, 420: 2, 421: 2, 500: 3, 550: 0, 600: 0, 820: 4, 850: 0}
FOUR_LABELS = {"background": 0, "LV myocardium": 1, "left atrium": 2, "left ventricle": 3, "ascending aorta": 4}


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return the training scans as labelled cases and the test scans, whose labels are not public, as unlabelled.

    `modality` restricts the conversion to CT or MR; `four_structures` keeps the labels of the adaptation papers.
    """
    expected = "the folders ct_train, ct_test, mr_train and mr_test"
    root, problems = find_root(folder, expected, lambda place: any(place.glob("*_train/*_train_*_image.nii.gz")))
    if root is None:
        return Found((), ("image",), LABELS, problems=tuple(problems))
    wanted = [options["modality"]] if options["modality"] else list(MODALITIES)
    records: list[SourceRecord] = []
    ignored: list[Path] = []
    for modality, domain in MODALITIES.items():
        places = [place for part in ("train", "test") if (place := root / f"{modality}_{part}").is_dir()]
        if modality not in wanted:
            ignored += places
            continue
        if not any(place.name.endswith("train") for place in places):
            problems.append(f"the folder {modality}_train is missing; -modality converts one modality only")
        for path in (path for place in places for path in list_files(place, ["_image.nii.gz"])):
            name = path.parent.name
            match = IMAGE.fullmatch(path.name)
            if not match or match["folder"] != name:
                problems.append(f"{name}/{path.name} is not of the form {name}_1001_image.nii.gz")
                continue
            case, image = match["case"], (ImageFile(path),)
            if name.endswith("train"):
                label = ImageFile(path.with_name(f"{case}_label.nii.gz"))
                records.append(SourceRecord(case, image, "labelled", label, domain=domain))
            else:
                records.append(SourceRecord(case, image, "unlabelled", domain=domain))
    return Found(
        tuple(records),
        ("image",),  # one name, so that both modalities are normalised alike
        FOUR_LABELS if options["four_structures"] else LABELS,
        label_values=FOUR if options["four_structures"] else VALUES,
        problems=tuple(problems),
        ignored=tuple(ignored),
    )
