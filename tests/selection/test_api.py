from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import nnssl
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.postprocessing import Postprocessing, postprocess
from nnssl.inference.api import DiskJob, predict_files
from nnssl.selection.api import find_best
from tests.conftest import DATASET
from tests.inference import conftest as fixtures
from tests.inference.model_for_tests import read_mask
from tests.selection.world_for_tests import (
    dice,
    reference,
    with_island,
    without_left,
    without_right,
    write_references,
    write_validated,
)

results, scans = fixtures.results, fixtures.scans
LEFT, RIGHT = without_right(reference()), without_left(reference())
OPTIONS = {"device": "cpu", "mirroring": False}


@pytest.fixture(autouse=True)
def preprocessed(tmp_path, monkeypatch):
    folder = tmp_path / "nnUNet_preprocessed"
    write_references(folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    return folder


def test_a_pair_whose_members_complete_each_other_wins(results) -> None:
    one = write_validated(results, "SupervisedTrainer", LEFT)
    two = write_validated(results, "FixMatchTrainer", RIGHT, dim=2)
    result = nnssl.find_best(DATASET)
    assert (result.cases, result.folds, result.notes) == (2, ("0",), ())
    expected = {(one.name,): dice(LEFT, reference()), (two.name,): dice(RIGHT, reference())}
    found = {each.models: each.dice_raw for each in result.candidates}
    assert set(result.best.models) == {one.name, two.name}
    assert found.pop(result.best.models) == 1.0
    assert found == pytest.approx(expected)
    assert [each.dice for each in result.candidates] == sorted((each.dice for each in result.candidates), reverse=True)
    written = json.loads((results / DATASET / "best.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert set(written["models"]) == {one.name, two.name}


def test_post_processing_is_decided_with_each_candidate(results) -> None:
    write_validated(results, "SupervisedTrainer", LEFT, npz=False)
    island = with_island(reference())
    other = write_validated(results, "FixMatchTrainer", island, npz=False)
    result = find_best(DATASET)
    assert result.best.models == (other.name,)
    assert result.best.dice_raw == pytest.approx(dice(island, reference()))
    assert (result.best.dice, dice(postprocess(island, result.best.postprocessing), reference())) == (1.0, 1.0)
    assert result.best.postprocessing.evidence == "cross-validation"
    assert result.candidates[1].postprocessing.applied == ()


def test_runs_without_probabilities_are_single_and_said_so(results) -> None:
    write_validated(results, "SupervisedTrainer", LEFT)
    bare = write_validated(results, "FixMatchTrainer", RIGHT, npz=False)
    write_validated(results, "MeanTeacherTrainer", LEFT)
    result = find_best(DATASET)
    assert sorted(len(each.models) for each in result.candidates) == [1, 1, 1, 2]
    assert [note.split()[0] for note in result.notes] == [bare.name]
    assert "--npz" in result.notes[0]
    assert all(bare.name not in each.models for each in result.candidates if len(each.models) == 2)


def test_only_the_folds_that_all_runs_share_count(results, preprocessed) -> None:
    write_references(preprocessed, cases=("c",))
    more = write_validated(results, "SupervisedTrainer", LEFT, folds={0: ("a", "b"), 1: ("c",)})
    write_validated(results, "FixMatchTrainer", RIGHT)
    (more / "fold_1" / "validation" / "c.nii.gz").write_bytes(b"never read")
    result = find_best(DATASET)
    assert (result.folds, result.cases) == (("0",), 2)


def test_runs_that_are_not_comparable_are_refused(results, preprocessed) -> None:
    with pytest.raises(UsageError, match="no finished and validated run"):
        find_best(DATASET)
    write_validated(results, "SupervisedTrainer", LEFT)
    other = write_validated(results, "FixMatchTrainer", RIGHT, folds={1: ("a", "b")})
    with pytest.raises(UsageError, match="no validated fold in common"):
        find_best(DATASET)
    other.rename(results / "away")
    third = write_validated(results, "DSMTTrainer", RIGHT, folds={0: ("a", "c")})
    with pytest.raises(DataError, match="validated on other cases"):
        find_best(DATASET)
    third.rename(results / "away3")
    budget = write_validated(results, "CCETrainer", RIGHT, nnssl_semi={"run": {"labelled": "3"}})
    with pytest.raises(UsageError, match="other label budgets"):
        find_best(DATASET)
    budget.rename(results / "away4")
    labels = write_validated(results, "DPTMTrainer", RIGHT)
    content = json.loads((labels / "dataset.json").read_text())
    (labels / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "x": 1, "y": 2}}))
    with pytest.raises(UsageError, match="the same labels"):
        find_best(DATASET)
    labels.rename(results / "away5")
    (preprocessed / DATASET / "gt_segmentations" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="no reference"):
        find_best(DATASET)
    assert not (results / DATASET / "best.json").exists()


def test_predict_follows_the_choice_and_names_it(results, scans, tmp_path) -> None:
    models = [
        write_validated(results, "SupervisedTrainer", with_island(LEFT)),
        write_validated(results, "FixMatchTrainer", with_island(RIGHT)),
    ]
    result = find_best(DATASET)
    assert len(result.best.models) == 2
    assert result.best.postprocessing.applied
    chosen = predict_files(DiskJob([scans], tmp_path / "best"), dict(OPTIONS))
    assert [each.folder.path.name for each in chosen.models] == list(result.best.models)
    assert f"chosen by nnssl_find_best: {result.file}" in chosen.lines
    assert chosen.to_dict()["best"] == str(result.file)
    assert chosen.postprocessing == str(result.best.postprocessing)
    raw = nnssl.predict(scans, tmp_path / "raw", postprocessing=False, model=models, **OPTIONS)
    for mask, other in zip(chosen.masks, raw, strict=True):
        decision = Postprocessing.from_dict(json.loads(result.file.read_text())["postprocessing"])
        np.testing.assert_array_equal(read_mask(mask), postprocess(read_mask(other), decision))
    off = nnssl.predict(scans, tmp_path / "off", postprocessing=False, **OPTIONS)
    assert all((read_mask(a) == read_mask(b)).all() for a, b in zip(off, raw, strict=True))
    shutil.copytree(models[0], results / "Dataset999_X" / models[0].name)
    with pytest.raises(UsageError, match="trained models fit"):  # which data set is not clear
        nnssl.predict(scans, tmp_path / "later", **OPTIONS)
    assert predict_files(DiskJob([scans], tmp_path / "by_id"), {"dataset": DATASET, **OPTIONS}).best == result.file
    named = predict_files(DiskJob([scans], tmp_path / "named"), {"trainer": "FixMatchTrainer", **OPTIONS})
    assert (len(named.models), named.best) == (1, None)
    models[0].rename(tmp_path / "gone")
    with pytest.raises(UsageError, match="not there any more"):
        nnssl.predict(scans, tmp_path / "later", dataset=DATASET, **OPTIONS)
    assert not (tmp_path / "later").exists()
