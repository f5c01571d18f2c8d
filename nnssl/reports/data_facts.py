"""What a report says about the data: channels, labels, numbers of scans, sizes and spacings, warnings of planning."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.data.raw import channels_of
from nnssl.names import DATA_CHECK, DATASET_JSON, LABELS_KEY, PREPROCESSED_VARIABLE, TAG_SEPARATOR
from nnssl.reports.case_files import object_of
from nnssl.reports.tables import Table
from nnssl.training.record import RunRecord

KINDS = ("labelled", "unlabelled", "test")


def dataset_json_of(dataset: str, folders: Sequence[Path]) -> Mapping[str, Any]:
    """Return the dataset.json beside the masks, else that of the preprocessed data set; empty without one."""
    for folder in (*folders, *_preprocessed(dataset)):
        if content := object_of(folder / DATASET_JSON):
            return content
    return {}


def check_of(dataset: str, plans: str = "") -> Mapping[str, Any]:
    """Return what planning wrote about the scans: `scans` and `warnings`; empty for an earlier planning.

    Args:
        dataset: folder name of the data set.
        plans: plans name, which ends in the tag of the label budget.
    """
    _, separator, tag = plans.partition(TAG_SEPARATOR)
    for folder in _preprocessed(dataset):
        return object_of(folder / f"{DATA_CHECK}{separator}{tag}.json")
    return {}


def data_table(dataset: str, dataset_json: Mapping[str, Any], record: RunRecord | None) -> Table:
    """Return one fact a row about the data set of the runs."""
    labels = dataset_json.get(LABELS_KEY)
    rows = [
        ["data set", dataset or "unknown"],
        ["channels", ", ".join(map(str, channels_of(dataset_json).values())) or "unknown"],
        ["labels", ", ".join(map(str, labels)) if isinstance(labels, Mapping) else "unknown"],
    ]
    if record is not None:
        rows += [["plans", record.plans], ["configuration", record.configuration]]
        rows += [["label budget", record.settings.labelled or "all labels"]]
    rows += _scans(check_of(dataset, record.plans if record else "").get("scans"))
    return Table("Data", ("fact", "value"), rows)


def _preprocessed(dataset: str) -> list[Path]:
    root = os.environ.get(PREPROCESSED_VARIABLE)
    return [Path(root) / dataset] if root and dataset else []


def _scans(scans: object) -> list[list[str]]:
    """Return number, median spacing and median size of each kind of scans."""
    rows = []
    for kind in KINDS if isinstance(scans, Mapping) else ():
        found = [scan for scan in scans.values() if scan.get("kind") == kind]  # type: ignore[attr-defined]
        if found:
            middle = [_median([scan[key] for scan in found]) for key in ("spacing_mm", "shape")]
            rows.append(
                [f"{kind} scans", f"{len(found)}; median spacing {middle[0]} mm, median size {middle[1]} voxels"]
            )
    return rows


def _median(rows: Sequence[Sequence[float]]) -> str:
    axes = min(map(len, rows))
    return " × ".join(f"{statistics.median(row[axis] for row in rows):.4g}" for axis in range(axes))
