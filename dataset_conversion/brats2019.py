"""BraTS 2019: `MICCAI_BraTS_2019_Data_Training/HGG|LGG/BraTS19_*/BraTS19_*_flair|t1|t1ce|t2|seg.nii.gz`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import find_root, list_folders, note_absent_parts
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile

GRADES = ("HGG", "LGG")
CHANNELS = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
EDEMA, CORE, ENHANCING = 1, 2, 3  # nnU-Net's order: a later region paints over an earlier one
REGIONS: Mapping[str, int | tuple[int, ...]] = {
    "background": 0,
    "whole tumor": (EDEMA, CORE, ENHANCING),
    "tumor core": (CORE, ENHANCING),
    "enhancing tumor": (ENHANCING,),
}


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return one case for each patient; 1, 2 and 4 of the download become core, edema and enhancing tumor.

    `flair_only` keeps only the FLAIR channel; `whole_tumor` unites the labels.
    """
    expected = "'HGG/BraTS19_*' and 'LGG/BraTS19_*'"
    root, problems = find_root(folder, expected, lambda place: any(place.glob("HGG/BraTS19_*")))
    kept = {"flair": "FLAIR"} if options["flair_only"] else CHANNELS
    records: list[SourceRecord] = []
    ignored: list[Path] = []
    for grade in GRADES:
        for patient in list_folders(root / grade) if root else ():
            if not patient.name.startswith("BraTS19_"):
                problems.append(f"{grade}/{patient.name} is not of the form BraTS19_…")
                continue
            paths = {name: patient / f"{patient.name}_{name}.nii.gz" for name in (*CHANNELS, "seg")}
            channels = tuple(ImageFile(paths[name]) for name in kept)
            records.append(SourceRecord(patient.name, channels, "labelled", ImageFile(paths["seg"]), patient.name))
            ignored += [paths[name] for name in CHANNELS if name not in kept]
    whole = options["whole_tumor"]
    return Found(
        tuple(records),
        tuple(kept.values()),
        {"background": 0, "whole tumor": 1} if whole else REGIONS,
        label_values={0: 0, 1: 1, 2: 1, 4: 1} if whole else {0: 0, 1: CORE, 2: EDEMA, 4: ENHANCING},
        regions_class_order=() if whole else (EDEMA, CORE, ENHANCING),
        problems=tuple(problems),
        notes=note_absent_parts(root, GRADES),
        ignored=tuple(ignored),
    )
