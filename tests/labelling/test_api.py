from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import nnssl
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.postprocessing import Postprocessing, Step, postprocess
from tests.tiny_raw import NAME, write_raw

HIDDEN_AND_UNLABELLED = 4  # of 6 labelled scans 2 validate and 2 keep their labels; imagesUn has 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a planned data set of two labels, two trained models, and no label of a hidden case."""
    root = tmp_path_factory.mktemp("pseudo")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir()
            patch.setenv(variable, str(root / variable))
        raw = write_raw(root / "nnUNet_raw")
        hidden = set(nnssl.plan(NAME, ("3d_fullres",), budget="cpu", labelled=2, num_processes=1).cases.unlabelled)
        for file in (raw / "labelsTr").iterdir():
            if file.name.removesuffix(".nii.gz") in hidden:
                file.unlink()
        for seed in (0, 1):
            nnssl.train(
                NAME, "3d_fullres", 0, trainer="SupervisedTrainer", labelled="2", num_iterations=20, seed=seed,
                device="cpu", run_validation=False, tag=f"seed{seed}", settings={"learning_rate": 0.02},
            )  # fmt: skip
        yield root


@pytest.fixture
def models(world) -> list[Path]:
    return sorted((world / "nnUNet_results" / NAME).glob("Supervised*"))


def label(output: Path, models, **options) -> nnssl.labelling.api.PseudoLabelResult:
    return nnssl.pseudo_label(NAME, output, models=models, mirroring=False, device="cpu", **options)


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_the_probabilities_of_all_models_are_averaged(world, models, tmp_path) -> None:
    result = label(tmp_path / "masks", models, postprocessing=False)
    assert len(result.cases) == result.predicted == HIDDEN_AND_UNLABELLED
    assert {"un_00", "un_01"} < set(result.cases)
    assert result.models == [str(model) for model in models]
    scores = json.loads(result.scores.read_text())
    assert list(scores) == result.cases
    case = result.cases[0]
    folder = world / "nnUNet_raw" / NAME / ("imagesUn" if case.startswith("un") else "imagesTr")
    scan = sitk.ReadImage(str(folder / f"{case}_0000.nii.gz"))
    for model in models:
        nnssl.predict(
            [folder / f"{case}_0000.nii.gz"], tmp_path / model.name, model=model, mirroring=False, device="cpu",
            save_probabilities=True,
        )  # fmt: skip
    probs = np.mean([np.load(tmp_path / model.name / f"{case}.npz")["probabilities"] for model in models], axis=0)
    mask, confidence = (
        voxels(tmp_path / "masks" / f"{case}.nii.gz"),
        voxels(tmp_path / "masks" / f"{case}_confidence.nii.gz"),
    )
    assert np.array_equal(mask, probs.argmax(0))
    assert np.abs(confidence - 255 * probs.max(0)).max() <= 1
    assert sitk.ReadImage(str(tmp_path / "masks" / f"{case}.nii.gz")).GetSpacing() == scan.GetSpacing()
    for k, name in enumerate(("core", "rim"), start=1):
        assert scores[case]["volumes_ml"][name] == pytest.approx((mask == k).sum() / 1000)
        expected = None if not (mask == k).any() else pytest.approx(confidence[mask == k].mean() / 255)
        assert scores[case]["confidence"][name] == expected
    assert scores[case]["origin"] == "model"
    assert all(str(model / "fold_0" / "checkpoint_final.pth") in scores[case]["source"] for model in models)
    assert set(result.kept) == {name for name, entry in scores.items() if entry["kept"]}


def test_masks_are_post_processed_where_all_models_decided_the_same(models, tmp_path) -> None:
    def masks(name: str, **options) -> list[np.ndarray]:
        result = label(tmp_path / name, models, **options)
        return [voxels(result.folder / f"{case}.nii.gz") for case in result.cases]

    stored = [model / "fold_0" / "postprocessing.json" for model in models]
    own = Postprocessing.read(stored[0].parent)
    assert own is not None
    chosen = Postprocessing("labelled anatomy", 2, (Step("core", (1,), True, "one component in 2 of 2 cases"),))
    try:
        for file in stored:
            chosen.write(file.parent)
        raw, cleaned = masks("raw", postprocessing=False), masks("cleaned")
        assert all(np.array_equal(postprocess(a, chosen), b) for a, b in zip(raw, cleaned, strict=True))
        assert any((a != b).any() for a, b in zip(raw, cleaned, strict=True))
        Postprocessing("labelled anatomy", 2).write(stored[0].parent)
        assert all(np.array_equal(a, b) for a, b in zip(raw, masks("different"), strict=True))
    finally:
        for file in stored:
            own.write(file.parent)


def test_masks_that_are_there_stay_and_keep_their_origin(models, tmp_path) -> None:
    first = label(tmp_path / "masks", models[:1])
    before = json.loads(first.scores.read_text())
    (tmp_path / "masks" / f"{first.cases[1]}.nii.gz").unlink()
    with pytest.raises(UsageError, match="holds files already") as error:
        label(tmp_path / "masks", models[1:])
    assert "--overwrite replaces them" in error.value.run
    second = label(tmp_path / "masks", models[1:], continue_prediction=True)
    after = json.loads(second.scores.read_text())
    assert second.predicted == 1
    changed = [case for case in first.cases if after[case]["source"] != before[case]["source"]]
    assert changed == [first.cases[1]]
    third = label(tmp_path / "masks", models[1:], overwrite=True)
    assert third.predicted == len(first.cases)


def test_the_folder_is_what_training_takes(models, tmp_path) -> None:
    result = label(tmp_path / "masks", [models[0] / "fold_0"])
    run = nnssl.train(
        NAME, "3d_fullres", 0, trainer="SelfTrainingTrainer", labelled="2", num_iterations=1, device="cpu",
        run_validation=False, pseudo_labels=result.folder, settings={"keep_share": 1},
    )  # fmt: skip
    report = json.loads((run.folder / "pseudo_labels" / "cases.json").read_text())
    scores = json.loads(result.scores.read_text())
    assert list(report) == result.cases
    for case, entry in report.items():
        assert entry["score"] == pytest.approx(scores[case]["score"], abs=0.02)  # the grids differ a little


def test_a_model_by_its_name_and_the_share_that_is_kept(models, tmp_path) -> None:
    result = label(tmp_path / "masks", [models[0].name], keep_share=0.75)
    assert len(result.kept) == HIDDEN_AND_UNLABELLED - 1


def test_several_models_that_fit_must_be_named(world, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"\d trained models fit") as error:
        label(tmp_path / "masks", [])
    assert error.value.run.startswith("-m FOLDER")


def test_wrong_requests_write_nothing(world, models, tmp_path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        label(tmp_path / "masks", ["Unknown"])
    with pytest.raises(UsageError, match="no part of the raw data set"):
        label(world / "nnUNet_raw" / NAME / "labelsTr", models)
    with pytest.raises(UsageError, match="keep_share 2"):
        label(tmp_path / "masks", models, keep_share=2)
    other = tmp_path / models[0].name
    shutil.copytree(models[0], other)
    content = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**content, "labels": {"background": 0, "rim": 1, "core": 2}}))
    with pytest.raises(UsageError, match="other labels, files or channels"):
        label(tmp_path / "masks", [models[0], other])
    (other / "plans.json").write_text((models[0] / "plans.json").read_text())
    assert not (tmp_path / "masks").exists()


def test_unlabelled_scans_that_are_gone_are_named(world, models, tmp_path) -> None:
    scan = world / "nnUNet_raw" / NAME / "imagesUn" / "un_01_0000.nii.gz"
    scan.rename(tmp_path / scan.name)
    try:
        with pytest.raises(DataError, match="1 unlabelled scan") as error:
            label(tmp_path / "masks", models)
        assert error.value.why == "un_01"
    finally:
        (tmp_path / scan.name).rename(scan)
