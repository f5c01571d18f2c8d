"""Planning an unchanged data set again: no raw file is opened, and no result differs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nnssl.errors import DataError
from nnssl.names import FACTS_FILE
from nnssl.planning.api import PlanResult, plan
from nnssl.system import fact_store
from nnssl.system.files import content_hash

TIME_NS = 10**18
IMAGES = "imagesTr/case_1_0000.nii.gz"


def planned(**options: object) -> PlanResult:
    return plan(906, ("3d_fullres",), trainer="SupervisedTrainer", num_processes_fingerprint=1, **options)


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, ns=(TIME_NS, TIME_NS))


def spoil(path: Path) -> None:
    """Change the content of a file without a sign: same size, time and inode."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def written(folder: Path) -> dict[str, str]:
    """Return plans, fingerprints, manifests and all else but the arrays, with hashes."""
    names = ("*.json", "gt_segmentations/*")
    return {path.name: content_hash(path) for name in names for path in sorted(folder.glob(name))}


def test_a_second_call_opens_no_raw_file_and_writes_the_same_bytes(data) -> None:
    age(data.raw)
    first = planned(run_preprocessing=True, num_processes=1)
    before = written(data.preprocessed)
    assert {"nnUNetPlans.json", "dataset_fingerprint.json", "nnUNetPlans_3d_fullres.manifest.json"} <= set(before)
    for path in data.raw.glob("*/*.nii.gz"):
        spoil(path)
    second = planned(num_processes=1)
    assert written(data.preprocessed) == before
    assert (second.plans_path, second.cases, second.warnings) == (first.plans_path, first.cases, first.warnings)
    assert second.configurations["3d_fullres"].preprocessed == 0
    with pytest.raises(DataError):
        planned(num_processes=1, verify=True)


def test_facts_change_no_result(data) -> None:
    age(data.raw)
    planned(run_preprocessing=False)
    planned(labelled=2, run_preprocessing=False)
    kept = written(data.preprocessed)
    facts = data.preprocessed / FACTS_FILE
    facts.unlink()
    for name in kept:
        if "Plans" in name or "fingerprint" in name:
            (data.preprocessed / name).unlink()
    for options in ({}, {"labelled": 2}):
        planned(run_preprocessing=False, **options)
        facts.unlink()
    assert written(data.preprocessed) == kept


def test_a_budget_after_all_labels_is_the_budget_alone(data) -> None:
    age(data.raw)
    planned(labelled=2, num_processes=1)
    alone = written(data.preprocessed)
    shutil.rmtree(data.preprocessed)
    cases = planned(run_preprocessing=False)
    assert len(cases.cases.labelled) > 2
    for name in sorted(set(cases.cases.labelled) - set(planned(labelled=2, run_preprocessing=False).cases.labelled)):
        (data.raw / f"labelsTr/{name}.nii.gz").unlink()
    planned(labelled=2, num_processes=1)
    after = written(data.preprocessed)
    assert {name: after[name] for name in alone} == alone


def test_facts_of_a_long_check_are_kept_when_it_finds_a_problem(data, monkeypatch) -> None:
    monkeypatch.setattr(fact_store, "BATCH_ROWS", 1)
    age(data.raw)
    broken = data.raw / IMAGES
    good = broken.read_bytes()
    broken.write_bytes(b"damaged")
    with pytest.raises(DataError, match="1 problem"):
        planned(run_preprocessing=False)
    for path in data.raw.glob("imagesUn/*"):
        spoil(path)
    broken.write_bytes(good)
    assert planned(run_preprocessing=False).plans_path.is_file()
