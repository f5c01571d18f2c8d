from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import SimpleITK

import nnssl
from nnssl.errors import UsageError
from nnssl.evaluation.postprocessing import Postprocessing, Step, postprocess
from nnssl.inference.api import DiskJob, load_predictor, predict_files
from tests.inference.model_for_tests import make_scan, read_mask, write_model, write_scans

OPTIONS = {"device": "cpu", "mirroring": False}
RIM = Postprocessing("cross-validation", 8, (Step("rim", (2,), True),))


@pytest.fixture
def runs(results):
    """Return two runs that differ in method, plans and configuration; the first has two folds."""
    first = write_model(results, folds=(0, 1))
    return [first, write_model(results, folds=(3,), dim=2, trainer="FixMatchTrainer", patch=(16, 16, 16))]


def probabilities(folder, scans, model, fold):
    """Return case -> probabilities of one fold of a run, predicted alone."""
    nnssl.predict(scans, folder, model=model, folds=[fold], save_probabilities=True, **OPTIONS)
    return {file.stem: np.load(file)["probabilities"] for file in sorted(folder.glob("*.npz"))}


def test_the_mean_of_the_probabilities_of_folds_and_runs(runs, scans, tmp_path) -> None:
    first, second = runs
    folds = [probabilities(tmp_path / f"first_{fold}", scans, first, fold) for fold in (0, 1)]
    other = probabilities(tmp_path / "second", scans, second, 3)
    masks = nnssl.predict(scans, tmp_path / "both", model=runs, save_probabilities=True, **OPTIONS)
    assert masks == [tmp_path / "both" / f"case_{case}.nii.gz" for case in range(3)]
    for mask in masks:
        case = mask.name.removesuffix(".nii.gz")
        expected = ((folds[0][case] + folds[1][case]) / 2 + other[case]) / 2  # each run counts the same
        np.testing.assert_allclose(np.load(tmp_path / "both" / f"{case}.npz")["probabilities"], expected, atol=1e-5)
        sure = np.diff(np.sort(expected, axis=0)[-2:], axis=0)[0] > 1e-4
        assert sure.mean() > 0.9
        assert (read_mask(mask) == expected.argmax(0))[sure].all()
        assert (read_mask(mask) != folds[0][case].argmax(0)).any()
        assert (read_mask(mask) != other[case].argmax(0)).any()
        properties = pickle.loads((tmp_path / "both" / f"{case}.pkl").read_bytes())
        assert tuple(properties["shape_before_cropping"]) == (14, 20, 18)
        scan, found = (SimpleITK.ReadImage(str(path)) for path in (scans / f"{case}_0000.nii.gz", mask))
        assert np.allclose(scan.GetDirection(), found.GetDirection())
        assert np.allclose(scan.GetSpacing(), found.GetSpacing())


def test_images_in_memory_and_single_folds_by_name(runs, tmp_path) -> None:
    scans = write_scans(tmp_path / "one", count=1)
    names = [f"{runs[0].name}/fold_1", runs[1].name]
    on_disk = read_mask(nnssl.predict(scans / "case_0_0000.nii.gz", tmp_path / "m.nii.gz", model=names, **OPTIONS))
    predictor = load_predictor(model=names, **OPTIONS)
    assert [each.folds for each in predictor.predictors] == [["1"], ["3"]]
    image = make_scan(0)
    for _ in range(2):  # the folds of the first call do not change the second
        assert (SimpleITK.GetArrayFromImage(predictor.predict_image(image)) == on_disk).all()
    array = SimpleITK.GetArrayFromImage(image)
    assert (predictor.predict_image(array, image.GetSpacing()[::-1]) == on_disk).all()


def test_a_run_of_several_folds_keeps_them_all(runs, scans) -> None:
    predictor = load_predictor(model=runs, **OPTIONS)
    image = make_scan(0)
    before = SimpleITK.GetArrayFromImage(predictor.predict_image(image))
    assert [len(each.list_of_parameters) for each in predictor.predictors] == [2, 1]
    assert (SimpleITK.GetArrayFromImage(predictor.predict_image(image)) == before).all()


def test_regions_are_averaged_by_region(results, scans, tmp_path) -> None:
    runs = [write_model(results, folds=(fold,), trainer=name) for fold, name in enumerate(("A", "B"))]
    labels = {"background": 0, "whole": [1, 2], "core": 2, "tip": 1}
    for run in runs:
        content = json.loads((run / "dataset.json").read_text())
        content |= {"labels": labels, "regions_class_order": [1, 2, 1]}
        (run / "dataset.json").write_text(json.dumps(content))
    alone = [probabilities(tmp_path / run.name, scans, run, fold) for fold, run in enumerate(runs)]
    masks = nnssl.predict(scans, tmp_path / "both", model=runs, **OPTIONS)
    for mask in masks:
        case = mask.name.removesuffix(".nii.gz")
        mean = (alone[0][case] + alone[1][case]) / 2
        expected = np.zeros(mean.shape[1:], np.uint8)
        for channel, value in enumerate((1, 2, 1)):
            expected[mean[channel] > 0.5] = value
        sure = (np.abs(mean - 0.5) > 1e-4).all(0)
        assert (read_mask(mask) == expected)[sure].all()


def test_masks_are_post_processed_where_all_runs_decided_the_same(runs, scans, tmp_path) -> None:
    job = DiskJob([scans], tmp_path / "raw")
    options = {"model": runs, **OPTIONS}
    assert predict_files(job, options).postprocessing == ""
    RIM.write(runs[0])
    one = predict_files(DiskJob([scans], tmp_path / "one"), options)
    assert one.postprocessing == "none, as the runs have no decision in common"
    RIM.write(runs[1])
    both = predict_files(DiskJob([scans], tmp_path / "both"), options)
    assert both.postprocessing == "largest component of rim (the same decision of each run)"
    off = predict_files(DiskJob([scans], tmp_path / "off"), {**options, "postprocessing": False})
    assert off.postprocessing == ""
    changed = 0
    for name in (mask.name for mask in both.masks):
        raw = read_mask(tmp_path / "raw" / name)
        for folder in ("one", "off"):
            np.testing.assert_array_equal(read_mask(tmp_path / folder / name), raw)
        np.testing.assert_array_equal(read_mask(tmp_path / "both" / name), postprocess(raw, RIM))
        changed += np.count_nonzero(read_mask(tmp_path / "both" / name) != raw)
    assert changed


def test_masks_that_are_there_stay(runs, scans, tmp_path) -> None:
    output = tmp_path / "out"
    options = {"model": runs, **OPTIONS}
    first = predict_files(DiskJob([scans], output), options)
    before = {mask: mask.stat().st_mtime_ns for mask in first.masks}
    expected = read_mask(first.masks[1])
    first.masks[1].unlink()
    again = predict_files(DiskJob([scans], output, overwrite=False), options)
    assert (again.predicted, again.masks) == (1, first.masks)
    assert [mask.stat().st_mtime_ns == before[mask] for mask in again.masks] == [True, False, True]
    assert (read_mask(first.masks[1]) == expected).all()


def test_the_record_names_every_run_and_no_single_model(runs, scans, tmp_path) -> None:
    result = predict_files(DiskJob([scans], tmp_path / "out"), {"model": runs, **OPTIONS})
    record = json.loads((tmp_path / "out" / "predict_from_raw_data_args.json").read_text())["nnssl_semi"]
    told = [{"model": str(runs[0]), "folds": ["0", "1"]}, {"model": str(runs[1]), "folds": ["3"]}]
    for each in (record, result.to_dict()):
        assert (each["model"], each["folds"], each["models"]) == (None, [], told)
    assert result.lines[-1] == "ensemble: mean probabilities of 2 models"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "liver": 1, "rim": 2}}, "the same labels"),
        ({"channel_names": {"0": "T2"}}, "the same channels"),
        ({"file_ending": ".nrrd"}, "the same file ending"),
    ],
)
def test_runs_on_other_data_are_refused(runs, scans, tmp_path, changes, message) -> None:
    file = runs[1] / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UsageError, match=message):
        nnssl.predict(scans, tmp_path / "out", model=runs, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_another_reader_or_the_same_fold_twice_is_refused(runs, results, scans, tmp_path) -> None:
    with pytest.raises(UsageError, match="fold 1 stands twice"):
        nnssl.predict(scans, tmp_path / "out", model=[runs[0], runs[0] / "fold_1"], **OPTIONS)
    other = write_model(results, trainer="OtherTrainer", image_reader_writer="NibabelIOWithReorient")
    with pytest.raises(UsageError, match="the same reader"):
        nnssl.predict(scans, tmp_path / "out", model=[runs[0], other], **OPTIONS)
    with pytest.raises(UsageError, match="there is no such model"):
        nnssl.predict(scans, tmp_path / "out", model=[runs[0], "NoTrainer"], **OPTIONS)
    assert not (tmp_path / "out").exists()
