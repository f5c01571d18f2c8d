"""Folders with scores, as nnssl and stock nnU-Net leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.training.record import DataHashes, RunRecord, Session
from nnssl.training.run_folder import ModelName
from nnssl.training.settings import RunSettings

DATASET = "Dataset001_A"
Row = float | Mapping[str, Mapping[str, float]]


def write_summary(folder: Path, cases: Mapping[str, Row], **more: Any) -> Path:
    """Write a summary.json like stock nnU-Net's; a number stands for the Dice of label 1."""
    rows = []
    for case, row in cases.items():
        metrics = row if isinstance(row, Mapping) else {"1": {"Dice": row, "IoU": row / (2 - row)}}
        rows.append({
            "reference_file": f"/data/labelsTs/{case}.nii.gz",
            "prediction_file": f"/data/{folder.name}/{case}.nii.gz",
            "metrics": metrics,
        })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    content = {"foreground_mean": {"Dice": 0.5}, "mean": {}, "metric_per_case": rows, **more}
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def numbered(values: Sequence[float]) -> dict[str, float]:
    """Return case_00, case_01, … with these values."""
    return {f"case_{i:02d}": float(value) for i, value in enumerate(values)}


def write_dataset_json(folder: Path, patients: Mapping[str, str] | None = None, **more: Any) -> None:
    """Write a dataset.json that names the patients."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {case: {"patient": patient} for case, patient in (patients or {}).items()}
    content = {"labels": {"background": 0, "core": 1, "whole": [1, 2]}, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content | ({"cases": cases} if cases else {})))


def write_run(
    results: Path,
    trainer: str,
    cases: Mapping[str, Row] | None,
    *,
    tag: str = "",
    fold: str = "0",
    plans: str = "nnUNetPlans",
    state: Any = "done",
    unlabelled_from: int | None = 0,
    data: Mapping[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Write the folder of a fold with its record, and its validation scores unless `cases` is None."""
    folder = results / DATASET / ModelName(trainer, plans, "2d", tag).folder / f"fold_{fold}"
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").touch()
    asked = RunSettings(**{"num_iterations": 100, "tag": tag, **settings})
    hashes = DataHashes(**{"labelled": "l", "validation": f"v{fold}", "splits": "s", **(data or {})})
    sessions = (Session(f"nnssl_train 1 2d {fold} -tr {trainer}", "t"),)
    record = RunRecord(DATASET, trainer, plans, "2d", fold, asked, state=state, iteration=asked.num_iterations,
                       unlabelled_from=unlabelled_from, sessions=sessions, data=hashes)  # fmt: skip
    record.write(folder)
    if cases is not None:
        write_summary(folder / "validation", cases)
    return folder
