"""BraTS 2019: `MICCAI_BraTS_2019_Data_Training/HGG|LGG/BraTS19_*/BraTS19_*_flair|t1|t1ce|t2|seg.nii.gz`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import absent, folders_in, root_of
from nnssl.dataset_conversion.engine.records import Found, Record
from nnssl.dataset_conversion.engine.sources import ImageFile

GRADES = ("HGG", "LGG")
CHANNELS = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
EDEMA, CORE, ENHANCING = 1, 2, 3  # nnU-Net's order: every region is what a later one does not paint over
REGIONS: Mapping[str, int | tuple[int, ...]] = {
    "background": 0,
    "whole tumor": (EDEMA, CORE, ENHANCING),
    "tumor core": (CORE, ENHANCING),
    "enhancing tumor": (ENHANCING,),
}


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return one case a patient; 1, 2 and 4 of the download become core, edema and enhancing tumor.

    With `flair_only` the case has the FLAIR alone, with `whole_tumor` one label.
    """
    expected = "'HGG/BraTS19_*' and 'LGG/BraTS19_*'"
    root, problems = root_of(folder, expected, lambda place: any(place.glob("HGG/BraTS19_*")))
    kept = {"flair": "FLAIR"} if options["flair_only"] else CHANNELS
    records: list[Record] = []
    ignored: list[Path] = []
    for grade in GRADES:
        for patient in folders_in(root / grade) if root else ():
            if not patient.name.startswith("BraTS19_"):
                problems.append(f"{grade}/{patient.name} is not of the form BraTS19_…")
                continue
            paths = {name: patient / f"{patient.name}_{name}.nii.gz" for name in (*CHANNELS, "seg")}
            channels = tuple(ImageFile(paths[name]) for name in kept)
            records.append(Record(patient.name, channels, "labelled", ImageFile(paths["seg"]), patient.name))
            ignored += [paths[name] for name in CHANNELS if name not in kept]
    whole = options["whole_tumor"]
    return Found(
        tuple(records),
        tuple(kept.values()),
        {"background": 0, "whole tumor": 1} if whole else REGIONS,
        label_values={0: 0, 1: 1, 2: 1, 4: 1} if whole else {0: 0, 1: CORE, 2: EDEMA, 4: ENHANCING},
        regions_class_order=() if whole else (EDEMA, CORE, ENHANCING),
        problems=tuple(problems),
        notes=absent(root, GRADES),
        ignored=tuple(ignored),
    )
