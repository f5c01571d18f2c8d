"""Where the scan, the reference and the predicted masks of a compared case stand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.comparison.sources import Compared
from nnssl.data.raw import read_raw_dataset
from nnssl.errors import NnsslError
from nnssl.names import (
    CHECKPOINT_PATTERN,
    FOLD_PREFIX,
    GT_FOLDER,
    IMAGES_TR,
    IMAGES_TS,
    IMAGES_UN,
    PLANS_JSON,
    PREDICTION_JSON,
    PREPROCESSED_VARIABLE,
    PSEUDO_FOLDER,
    RAW_VARIABLE,
    RUN_JSON,
    SEMI_KEY,
    SUMMARY_JSON,
    VALIDATION_FOLDER,
)
from nnssl.reports.volumes import case_of
from nnssl.system.files import read_object


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case: its name.
        image: first channel of the scan, None where no file is found.
        reference: None likewise.
        masks: name of a method -> its mask, of the first seed.
        pseudo_label: a stored pseudo-label of this scan, None without one.
    """

    case: str
    image: Path | None = None
    reference: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    pseudo_label: Path | None = None


def dataset_of(methods: list[Compared]) -> str:
    """Return the folder name of the data set that runs or predictions belong to; empty where no file tells."""
    for method in methods:
        if method.record:
            return method.record.dataset
        for source in method.sources:
            for folder in source.scores.folders:
                if name := object_of(folder / PLANS_JSON).get("dataset_name"):
                    return str(name)
    return ""


def run_folders(method: Compared) -> list[Path]:
    """Return the folders of the folds behind a method: its validated runs, or those that predicted its masks."""
    found: list[Path] = []
    for source in method.sources:
        for folder in source.scores.folders:
            if folder.name == VALIDATION_FOLDER:
                found.append(folder.parent)
            else:
                found += _folds_of_prediction(folder)
    return list(dict.fromkeys(found))


def files_of_cases(methods: list[Compared]) -> dict[str, CaseFiles]:
    """Return case -> its files, for the cases that the first method scored."""
    dataset = dataset_of(methods)
    images = _raw_images(dataset)
    references: dict[str, Path] = {}
    masks: dict[str, dict[str, Path]] = {}
    for method in methods:
        for folder in method.sources[0].scores.folders:
            for case, reference, mask in _rows(folder, dataset):
                if reference is not None:
                    references.setdefault(case, reference)
                if mask is not None:
                    masks.setdefault(case, {})[method.name] = mask
    pseudo = {case_of(file): file for method in methods for file in _pseudo_labels(method)}
    cases = [case for run in methods[0].runs[:1] for case in run.cases]
    return {
        case: CaseFiles(
            case,
            images.get(case) or _beside(references.get(case), case),
            references.get(case),
            masks.get(case, {}),
            pseudo.get(case),
        )
        for case in cases
    }


def object_of(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file, empty where there is none that can be read."""
    with contextlib.suppress(NnsslError):
        return read_object(file)
    return {}


def _rows(folder: Path, dataset: str) -> Iterator[tuple[str, Path | None, Path | None]]:
    """Yield case, reference and mask of a summary; a moved file is looked for where such files belong."""
    preprocessed = os.environ.get(PREPROCESSED_VARIABLE)
    truth = [Path(preprocessed) / dataset / GT_FOLDER] if preprocessed and dataset else []
    for row in object_of(folder / SUMMARY_JSON).get("metric_per_case", ()):
        named = str(row.get("reference_file") or row.get("prediction_file") or "")
        predicted = Path(str(row.get("prediction_file") or named)).name
        places = [Path(named), *(place / Path(named).name for place in truth)]
        mask = folder / predicted
        yield case_of(Path(named)), next(filter(Path.is_file, places), None), mask if mask.is_file() else None


def _raw_images(dataset: str) -> dict[str, Path]:
    """Return case -> first channel, for the scans of the raw data set; empty where it cannot be read."""
    if not (dataset and os.environ.get(RAW_VARIABLE)):
        return {}
    with contextlib.suppress(NnsslError, OSError):
        raw = read_raw_dataset(dataset)
        return {
            name: case.images[0] for part in (raw.test, raw.unlabelled, raw.labelled) for name, case in part.items()
        }
    return {}


def _beside(reference: Path | None, case: str) -> Path | None:
    """Return the scan in the images folder that belongs to the folder of a reference."""
    if reference is None:
        return None
    ending = reference.name.removeprefix(case)
    for folder in (reference.parent.name.replace("labels", "images"), IMAGES_TR, IMAGES_TS, IMAGES_UN):
        file = reference.parent.with_name(folder) / f"{case}_0000{ending}"
        if file.is_file():
            return file
    return None


def _folds_of_prediction(folder: Path) -> list[Path]:
    record = object_of(folder / PREDICTION_JSON).get(SEMI_KEY)
    model = record.get("model") if isinstance(record, Mapping) else None
    if not isinstance(model, str):
        return []
    folds = sorted(Path(model).glob(f"{FOLD_PREFIX}*"))
    return [fold for fold in folds if (fold / RUN_JSON).is_file() or any(fold.glob(CHECKPOINT_PATTERN))]


def _pseudo_labels(method: Compared) -> list[Path]:
    stored = [file for fold in run_folders(method) for file in sorted((fold / PSEUDO_FOLDER).glob("*"))]
    return [file for file in stored if file.suffix != ".json" and not case_of(file).endswith("_confidence")]
