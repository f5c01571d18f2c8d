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
from nnssl.annotation import suggest as module
from nnssl.annotation.agreement import entropy, mean_entropy
from nnssl.annotation.suggest import voxel_hash
from nnssl.errors import DataError, EnvironmentProblem, UsageError
from nnssl.inference.inputs import ScanToPredict
from nnssl.inference.predictor import Predictor
from tests.conftest import DATASET
from tests.inference.model_for_tests import read_mask, write_model
from tests.tiny_raw import write_raw


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """Return a raw data set with 6 unlabelled scans; there is no model yet."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    write_raw(tmp_path / "nnUNet_raw", labelled=3, unlabelled=6).rename(tmp_path / "nnUNet_raw" / DATASET)
    return tmp_path / "nnUNet_raw" / DATASET


@pytest.fixture
def model(raw, tmp_path) -> Path:
    return write_model(tmp_path / "nnUNet_results")


def suggest(raw: Path, **options):
    given = {"device": "cpu", "mirroring": False, **options}
    return nnssl.suggest(DATASET, raw.parents[1] / "next", **given)


def test_without_a_model_the_choice_is_random_and_there_are_no_masks(raw) -> None:
    result = suggest(raw, count=4, seed=1)
    assert len(set(result.cases)) == 4
    assert set(result.cases) < {f"un_{n:02d}" for n in range(6)}
    assert (result.masks, result.examined) == ([], 0)
    assert result.images == [raw / "imagesUn" / f"{case}_0000.nii.gz" for case in result.cases]
    assert "no model" in result.notes[0]
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "labels_itksnap.txt", "labels_slicer.ctbl", "suggestion.csv", "suggestion.json",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="holds files already"):
        suggest(raw)
    shutil.rmtree(result.folder)
    assert suggest(raw, count=4, seed=1).cases == result.cases


def test_entropy_is_that_of_the_model(raw, model, tmp_path) -> None:
    result = suggest(raw, count=3, strategy="entropy")
    assert result.examined == 6
    options = {"device": "cpu", "mirroring": False, "save_probabilities": True, "model": model}
    nnssl.predict(raw / "imagesUn", tmp_path / "masks", **options)
    probs = {f"un_{n:02d}": np.load(tmp_path / "masks" / f"un_{n:02d}.npz")["probabilities"] for n in range(6)}
    members = {case: [] for case in probs}
    for axis in ((), (0,), (1,), (2,)):  # a single run: mirrored copies are averaged
        predictor = Predictor.from_folder(model, device="cpu", mirroring=False)
        for case, parts in members.items():
            scan = ScanToPredict(case, (raw / "imagesUn" / f"{case}_0000.nii.gz",), tmp_path / "x")
            parts.append(predictor.probabilities_of(scan, axis)[0])
    np.testing.assert_allclose(members["un_00"][0], probs["un_00"], atol=1e-5)
    expected = {}
    for case, parts in members.items():
        union = np.any([part.argmax(0) > 0 for part in parts], axis=0)
        expected[case] = mean_entropy(entropy(np.mean(parts, axis=0), regions=False), union)
        mask = np.mean(parts, axis=0).argmax(0)
        if case in result.cases:
            assert np.array_equal(read_mask(result.folder / f"{case}.nii.gz"), mask)
    assert result.cases == sorted(expected, key=expected.get, reverse=True)[:3]
    with (result.folder / "suggestion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == pytest.approx([expected[case] for case in result.cases], abs=1e-4)
    assert [row["mask"] for row in rows] == [f"{case}.nii.gz" for case in result.cases]
    noted = json.loads((result.folder / "suggestion.json").read_text())
    assert noted["prefilled"] == {
        f"{case}.nii.gz": voxel_hash(read_mask(result.folder / f"{case}.nii.gz")) for case in result.cases
    }
    for case in result.cases:
        scan, mask = (sitk.ReadImage(str(path)) for path in (raw / "imagesUn" / f"{case}_0000.nii.gz",
                                                             result.folder / f"{case}.nii.gz"))  # fmt: skip
        assert (mask.GetSpacing(), mask.GetOrigin(), mask.GetSize()) == (
            scan.GetSpacing(), scan.GetOrigin(), scan.GetSize(),
        )  # fmt: skip


def test_random_prefers_scans_in_which_the_model_sees_a_structure(raw, model) -> None:
    """The model calls a voxel a structure where it is bright; all scans but one are made dark."""
    plans = json.loads((model / "plans.json").read_text())
    entry = {"network_class_name": "tests.threshold_network.ThresholdNetwork", "arch_kwargs": {}}
    configuration = plans["configurations"]["3d_fullres"]
    configuration["architecture"] = entry | {"_kw_requires_import": []}
    configuration["normalization_schemes"] = ["NoNormalization"]
    (model / "plans.json").write_text(json.dumps(plans))
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=True) | {"network_weights": {"threshold": torch.tensor(50.0)}}, path)
    for place in (model / "dataset.json", raw / "dataset.json"):
        place.write_text(json.dumps(json.loads(place.read_text()) | {"labels": {"background": 0, "box": 1}}))
    bright = raw / "imagesUn" / "un_04_0000.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(bright)) + 100, str(bright))
    for seed in range(3):
        result = suggest(raw, count=2, seed=seed)
        assert result.cases[0] == "un_04"
        assert result.examined == 6
        rows = (result.folder / "suggestion.csv").read_text().splitlines()
        assert "with foreground" in rows[1]
        assert "no foreground left" in rows[2]
        shutil.rmtree(result.folder)
    result = suggest(raw, count=1, seed=0)
    assert result.cases == ["un_04"]
    assert (read_mask(result.masks[0]) == 1).all()


def test_a_suggestion_that_fails_leaves_nothing(raw, model, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise EnvironmentProblem("no space")

    (raw.parents[1] / "next").mkdir()
    (raw.parents[1] / "next" / ".hidden").write_text("")
    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem, match="no space"):
        patch.setattr(module, "slicer_table", fails)
        suggest(raw, count=1)
    assert [path.name for path in (raw.parents[1] / "next").iterdir()] == [".hidden"]
    shutil.rmtree(raw.parents[1] / "next")
    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem, match="no space"):
        patch.setattr(module, "slicer_table", fails)
        suggest(raw, count=1)
    assert not (raw.parents[1] / "next").exists()
    result = suggest(raw, count=1)
    assert [mask.is_file() for mask in result.masks] == [True]
    assert len(list(result.folder.iterdir())) == 5


def test_more_scans_than_there_are(raw) -> None:
    result = suggest(raw, count=9)
    assert len(result.cases) == 6
    assert "only 6 scans are unlabelled" in result.notes


def test_wrong_arguments(raw, tmp_path) -> None:
    for options, words in (
        ({"strategy": "entropie"}, "unknown strategy 'entropie'"),
        ({"strategy": "entropy"}, "needs a trained model"),
        ({"count": 0}, "at least one scan"),
        ({"seed": -1}, "at least one scan"),
        ({"models": ["nowhere"]}, "no such model"),
    ):
        with pytest.raises(UsageError, match=words):
            suggest(raw, **options)
    with pytest.raises(UsageError, match="no part of the raw data set"):
        nnssl.suggest(DATASET, raw / "next")
    with pytest.raises(UsageError, match="no data set"):
        nnssl.suggest(1, tmp_path / "next")
    model = write_model(tmp_path / "nnUNet_results")
    description = json.loads((model / "dataset.json").read_text()) | {"labels": {"background": 0, "tumour": 1}}
    (model / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UsageError, match="other labels"):
        suggest(raw)
    write_model(tmp_path / "nnUNet_results", trainer="OtherTrainer")
    with pytest.raises(UsageError, match="2 trained models fit") as error:
        suggest(raw)
    assert "-m RUN" in error.value.run
    shutil.rmtree(raw / "imagesUn")
    with pytest.raises(DataError, match="no scan is unlabelled"):
        suggest(raw)
    assert not (tmp_path / "next").exists()
