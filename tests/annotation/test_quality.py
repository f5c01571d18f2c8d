from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnssl
from nnssl.annotation.known_cases import find_known_cases
from nnssl.annotation.members import find_member_folds
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.postprocessing import Postprocessing, postprocess
from nnssl.labelling.scores import agreement
from tests.inference.model_for_tests import read_mask, write_model, write_scans
from tests.tiny_raw import NAME, write_raw


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a planned data set of 20 labelled scans, of which 4 validate, and two runs."""
    root = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir()
            patch.setenv(variable, str(root / variable))
        write_raw(root / "nnUNet_raw", labelled=20, unlabelled=2)
        nnssl.plan(NAME, ("3d_fullres",), budget="cpu", num_processes=1)
        for seed in (0, 1):
            nnssl.train(
                NAME, "3d_fullres", 0, trainer="SupervisedTrainer", num_iterations=20, seed=seed, device="cpu",
                run_validation=False, tag=f"seed{seed}", settings={"learning_rate": 0.02},
            )  # fmt: skip
        yield root


@pytest.fixture
def models(world) -> list[Path]:
    return sorted((world / "nnUNet_results" / NAME).glob("Supervised*"))


def rows(result) -> list[dict[str, str]]:
    with result.scores.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_score_is_the_pairwise_dice_of_the_runs(world, models, tmp_path) -> None:
    images = world / "nnUNet_raw" / NAME / "imagesUn"
    result = nnssl.pseudo_quality(models, images, tmp_path / "quality", device="cpu", mirroring=False)
    assert result.members == "runs"
    assert len(result.names) == 2
    found = {row["case"]: row for row in rows(result)}
    assert list(result.decisions) == list(found)
    options = {"device": "cpu", "mirroring": False}
    masks = [nnssl.predict(images, tmp_path / model.name, model=model, **options) for model in models]
    for case, row in found.items():
        pair = [read_mask(next(path for path in part if path.name.startswith(case))) for part in masks]
        expected = agreement(pair, [1, 2])
        assert [row["agreement core"], row["agreement rim"]] == [f"{value:.4f}" for value in expected]
        assert float(row["score"]) == pytest.approx(np.mean(expected), abs=1e-4)
        assert row["decision"] == result.decisions[case]
        assert (tmp_path / "quality" / "thumbnails" / f"{case}.png").is_file()
    # four held-out cases are too few, and the result says so
    assert result.correlation is None
    assert result.calibration.startswith("4 held-out labelled case(s), 8 are needed")
    content = json.loads((tmp_path / "quality" / "calibration.json").read_text())
    split = json.loads((world / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())[0]
    assert set(content["cases"]) == set(split["val"])
    assert result.notes == []


def test_enough_held_out_cases_calibrate_the_score(world, models, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nnssl.annotation.verdicts.FEWEST_CASES", 4)
    images = world / "nnUNet_raw" / NAME / "imagesUn"
    result = nnssl.pseudo_quality(models, images, tmp_path / "quality", device="cpu", mirroring=False)
    assert "4 held-out labelled cases: rank correlation" in result.calibration
    content = json.loads((tmp_path / "quality" / "calibration.json").read_text())
    for case, values in content["cases"].items():
        scan = world / "nnUNet_raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz"
        probs = []
        for model in models:
            folder = tmp_path / f"{model.name} {case}"
            nnssl.predict([scan], folder, model=model, device="cpu", mirroring=False, save_probabilities=True)
            probs.append(np.load(folder / f"{case}.npz")["probabilities"])
        reference = read_mask(world / "nnUNet_raw" / NAME / "labelsTr" / f"{case}.nii.gz")
        decision, other = (Postprocessing.read(model / "fold_0") for model in models)
        assert decision is not None
        assert other is not None
        assert decision.applied == other.applied != ()
        mask = postprocess(np.mean(probs, axis=0).argmax(0), decision)
        assert values["dice"] == pytest.approx(np.mean(agreement([mask, reference], [1, 2])), abs=1e-6)


def test_one_run_is_compared_with_its_checkpoints_or_with_mirrored_copies(world, models, tmp_path) -> None:
    images = world / "nnUNet_raw" / NAME / "imagesUn"
    options = {"device": "cpu", "calibration": False}
    fold = models[0] / "fold_0"
    best, final = fold / "checkpoint_best.pth", fold / "checkpoint_final.pth"
    kept = best.read_bytes() if best.is_file() else None
    try:
        best.write_bytes((models[1] / "fold_0" / "checkpoint_final.pth").read_bytes())
        result = nnssl.pseudo_quality([fold], images, tmp_path / "a", **options)
        assert result.members == "checkpoints"
        assert [name.rpartition("/")[2] for name in result.names] == ["checkpoint_final.pth", "checkpoint_best.pth"]
        # the same network twice would agree with itself, also where the files differ in something else
        torch.save({**torch.load(final, weights_only=True), "current_epoch": 77}, best)
        result = nnssl.pseudo_quality([fold], images, tmp_path / "b", **options)
        assert result.members == "mirrored copies"
        assert 0 <= float(rows(result)[0]["score"]) < 1
        assert "switched off" in result.calibration
    finally:
        best.unlink()
        if kept is not None:
            best.write_bytes(kept)


def test_mirrored_copies_of_a_symmetric_network_agree(tmp_path, monkeypatch) -> None:
    """The threshold network gives a mirrored scan the mirrored mask, so that the score is 1."""
    from tests.inference.conftest import write_model as make

    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = make(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    entry = {"network_class_name": "tests.threshold_network.ThresholdNetwork", "arch_kwargs": {}}
    plans["configurations"]["3d_fullres"]["architecture"] = entry | {"_kw_requires_import": []}
    (folder / "plans.json").write_text(json.dumps(plans))
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True) | {"network_weights": {"threshold": torch.tensor(0.3)}}
    torch.save(content, path)
    description = json.loads((folder / "dataset.json").read_text()) | {"labels": {"background": 0, "box": 1}}
    (folder / "dataset.json").write_text(json.dumps(description))
    scans = write_scans(tmp_path / "scans", count=1)
    result = nnssl.pseudo_quality([folder], scans, tmp_path / "quality", device="cpu")
    (row,) = rows(result)
    assert result.members == "mirrored copies"
    assert float(row["score"]) > 0.99
    assert float(row["volume_ml box"]) > 0
    assert "not here" in result.calibration
    assert result.notes == ["no labelled cases to compare volumes and components with"]


def test_wrong_arguments(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    folder, scans = write_model(tmp_path / "results"), write_scans(tmp_path / "scans", count=1)
    with pytest.raises(UsageError, match="not in order"):
        nnssl.pseudo_quality([folder], scans, tmp_path / "out", accept=0.5, drop=0.6)
    with pytest.raises(UsageError, match="no such model"):
        nnssl.pseudo_quality(["nowhere"], scans, tmp_path / "out")
    with pytest.raises(UsageError, match="folder of the scans"):
        nnssl.pseudo_quality([folder], scans, scans)
    with pytest.raises(DataError, match="does not exist"):
        nnssl.pseudo_quality([folder], tmp_path / "none", tmp_path / "out")
    other = write_model(tmp_path / "results", trainer="OtherTrainer")
    description = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(description | {"labels": {"background": 0, "tumour": 1}}))
    with pytest.raises(UsageError, match="different labels"):
        nnssl.pseudo_quality([folder, other], scans, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(UsageError, match="holds files already"):
        nnssl.pseudo_quality([folder], scans, tmp_path / "out")
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 4, 4), np.nan, np.float32)), str(scans / "bad_0000.nii.gz"))
    with pytest.raises(DataError, match="problem"):
        nnssl.pseudo_quality([folder], scans, tmp_path / "new", device="cpu")
    assert not (tmp_path / "new").exists()


def test_a_model_from_elsewhere_is_not_calibrated_with_the_data_set_of_its_name(world, models, tmp_path) -> None:
    """It may have learned from the cases that the data set here validates on."""
    bundle = nnssl.export_model(models[0], tmp_path / "model.zip").file
    aside = models[0].rename(tmp_path / "aside")
    try:
        (installed,) = nnssl.install_model(bundle).models
        known = find_known_cases(find_member_folds([installed]))
        assert known.held_out == {}
        assert "do not tell that they held out" in known.note
        assert len(known.labelled) == 16
    finally:
        shutil.rmtree(models[0], ignore_errors=True)
        aside.rename(models[0])
    assert len(find_known_cases(find_member_folds([models[0]])).held_out) == 4


def test_runs_on_different_folds_share_no_held_out_case(world, models, tmp_path) -> None:
    other = models[0].with_name(f"{models[0].name}other")
    shutil.copytree(models[0], other)
    try:
        (other / "fold_0").rename(other / "fold_1")
        (other / "fold_1" / "run.json").unlink()
        folds = find_member_folds([models[0], other])
        assert "do not tell" in find_known_cases(folds).note
        (other / "fold_1" / "validation").mkdir(exist_ok=True)  # as stock nnU-Net leaves it
        known = find_known_cases(folds)
        assert (known.held_out, len(known.labelled)) == ({}, 20)
        assert "share no validation case" in known.note
    finally:
        shutil.rmtree(other)
