"""The scores of a run as comparisons read them: the cases of a `summary.json` of nnssl or nnU-Net, and their patients.

Neither torch nor nnU-Net is imported, and no mask is opened.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.raw import IMAGE_ENDINGS
from nnssl.errors import DataError, NnsslError
from nnssl.names import (
    CASES_KEY,
    DATASET_JSON,
    FILE_ENDING_KEY,
    LABELS_KEY,
    PLANS_JSON,
    PREPROCESSED_VARIABLE,
)
from nnssl.system.files import read_object

BACKGROUND = "0"
Metrics = Mapping[str, float]
CaseScores = Mapping[str, Metrics]


@dataclass(frozen=True)
class Metric:
    """A metric that runs can be compared by.

    Attributes:
        title: name in tables.
        unit: of the printed differences.
        factor: printed differences are the stored ones times this factor.
        best: the best value, which a correctly empty mask has.
        higher_is_better: False for distances.
    """

    title: str
    unit: str
    factor: float = 100.0
    best: float = 1.0
    higher_is_better: bool = True


def _distance(title: str, unit: str) -> Metric:
    return Metric(title, unit, factor=1.0, best=0.0, higher_is_better=False)


METRICS = {
    "Dice": Metric("Dice", "Dice points"),
    "IoU": Metric("Jaccard", "Jaccard points"),
    "nsd": Metric("NSD", "NSD points"),
    "hd95_mm": _distance("HD95 mm", "mm HD95"),
    "assd_mm": _distance("ASSD mm", "mm ASSD"),
    "hd95_vox_pooled": _distance("HD95 vox", "voxels HD95"),
    "asd_vox": _distance("ASD vox", "voxels ASD"),
}


@dataclass(frozen=True)
class Scores:
    """The scores of one or more prediction folders that share no case.

    Attributes:
        folders: where the summaries stand.
        cases: case -> label or region as text -> metric -> value; NaN if a case has no value.
        structures: label -> name of the structure.
        patients: case -> patient, for the cases that a dataset.json names.
    """

    folders: tuple[Path, ...]
    cases: Mapping[str, CaseScores]
    structures: Mapping[str, str]
    patients: Mapping[str, str]


def read_scores(summary: Path) -> Scores:
    """Return the scores in a `summary.json`, of nnssl or stock nnU-Net; the background does not count.

    Raises:
        DataError: the file is missing, is no summary, names a case twice, or holds no case.
        EnvironmentProblem: the file cannot be read.
    """
    rows = read_object(summary, keys=("metric_per_case",))["metric_per_case"]
    dataset_json = _read_or_empty(summary.parent / DATASET_JSON)
    ending = str(dataset_json.get(FILE_ENDING_KEY) or "")
    cases: dict[str, CaseScores] = {}
    try:
        for row in rows:
            case = _case_name(row.get("reference_file") or row["prediction_file"], ending)
            if case in cases:
                raise DataError("a case stands twice in the summary", where=summary, why=case)
            cases[case] = {
                label: {name: _value(value) for name, value in metrics.items()}
                for label, metrics in row["metrics"].items()
                if label != BACKGROUND
            }
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(
            "this is no summary of nnU-Net",
            where=summary,
            why=f"metric_per_case lists reference_file, prediction_file and metrics ({type(error).__name__}: {error})",
            run=f"nnssl_evaluate LABELS {summary.parent}",
        ) from error
    if not cases:
        raise DataError("the summary holds no case", where=summary)
    named = _structures(_read_or_empty(summary, "structures"), dataset_json)
    labels = dict.fromkeys(label for scores in cases.values() for label in scores)
    structures = {label: named.get(label, f"label {label}") for label in labels}
    return Scores((summary.parent,), cases, structures, _patients(summary.parent, dataset_json))


def merge_scores(parts: Iterable[Scores]) -> Scores:
    """Return the scores of several folds as one.

    Raises:
        DataError: a case is in several folds.
    """
    folders: list[Path] = []
    cases: dict[str, CaseScores] = {}
    structures: dict[str, str] = {}
    patients: dict[str, str] = {}
    for part in parts:
        twice = sorted(cases.keys() & part.cases.keys())
        if twice:
            raise DataError(
                f"{len(twice)} case(s) were validated in several folds",
                where=part.folders[0],
                why=", ".join(twice[:5]),
                run="compare the folds one by one: give their folders, or -f",
            )
        folders += part.folders
        cases |= part.cases
        structures |= part.structures
        patients |= part.patients
    return Scores(tuple(folders), cases, structures, patients)


def _value(value: object) -> float:
    """Return a number; null stands for NaN, and true and false for 1 and 0."""
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _case_name(file: str, ending: str) -> str:
    """Return a file's name without folders (of any system) and without its ending."""
    name = re.split(r"[\\/]", file)[-1]
    for known in (ending, *IMAGE_ENDINGS):
        if known and name.lower().endswith(known.lower()):
            return name[: -len(known)]
    return Path(name).stem


def _structures(ours: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Return label -> name: the summary's own, else those of dataset.json."""
    if ours:
        return {label: str(name) for label, name in ours.items()}
    declared = dataset_json.get(LABELS_KEY)
    if not isinstance(declared, Mapping):
        return {}
    return {str(tuple(value) if isinstance(value, list) else value): name for name, value in declared.items()}


def _patients(folder: Path, dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Return case -> patient as the first dataset.json says that names patients.

    They are looked for beside the summary, in the folders of the run, and in the preprocessed data set.
    """
    places = [folder.resolve(), *folder.resolve().parents]
    names = [place.name for place in places if re.match(r"Dataset\d{3}_", place.name)]
    names += [str(_read_or_empty(folder / PLANS_JSON).get("dataset_name", ""))]
    files = [place / DATASET_JSON for place in places[1:3]]
    if preprocessed := os.environ.get(PREPROCESSED_VARIABLE):
        files += [Path(preprocessed) / name / DATASET_JSON for name in names if name]
    for content in (dataset_json, *map(_read_or_empty, files)):
        listed = content.get(CASES_KEY)
        if isinstance(listed, Mapping):
            named = {case: entry.get("patient") for case, entry in listed.items() if isinstance(entry, Mapping)}
            if patients := {case: str(patient) for case, patient in named.items() if patient is not None}:
                return patients
    return {}


def _read_or_empty(file: Path, key: str = "") -> Mapping[str, Any]:
    """Return a JSON object, or the object below one of its keys; empty where there is none."""
    with contextlib.suppress(NnsslError):
        content = read_object(file)
        found = content.get(key) if key else content
        return found if isinstance(found, Mapping) else {}
    return {}
