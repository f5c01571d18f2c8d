from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

import nnssl
from nnssl.errors import DataError, UsageError
from nnssl.evaluation.api import evaluate
from nnssl.evaluation.postprocessing import Postprocessing, Step
from tests.evaluation.folders_for_tests import LABELS, label_array, write_folders, write_labels
from tests.orientations import reorient


def test_the_summary_holds_what_nnunet_computes_from_the_same_files(tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    references, predictions = write_folders(tmp_path)
    write_labels(predictions / "case_1.nii.gz", label_array(1, values=(1,)))
    write_labels(references / "case_2.nii.gz", label_array(2, values=(2,)))
    write_labels(predictions / "case_2.nii.gz", label_array(2, values=(2,)))
    result = evaluate(references, predictions)
    summary = load_summary_json(str(predictions / "summary.json"))
    theirs = [
        compute_metrics(str(file), str(predictions / file.name), SimpleITKIO(), [1, 2])
        for file in sorted(references.iterdir())
    ]
    assert len(summary["metric_per_case"]) == len(theirs) == len(result.cases) == 4
    for ours, expected in zip(summary["metric_per_case"], theirs, strict=True):
        assert ours["reference_file"] == expected["reference_file"]
        assert ours["prediction_file"] == expected["prediction_file"]
        for label, metrics in expected["metrics"].items():
            shared = {key: ours["metrics"][label][key] for key in metrics}
            assert shared == pytest.approx(metrics, nan_ok=True)
    assert math.isnan(result.cases["case_2"][1]["Dice"])
    names = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")
    for label in (1, 2):
        means = {key: np.nanmean([case["metrics"][label][key] for case in theirs]) for key in names}
        assert {key: summary["mean"][label][key] for key in names} == pytest.approx(means)
    for key in names:
        expected = np.mean([summary["mean"][label][key] for label in (1, 2)])
        assert summary["foreground_mean"][key] == pytest.approx(expected)


def test_post_processing_is_measured_and_the_files_stay(tmp_path):
    references, predictions = write_folders(tmp_path)
    decision = Postprocessing("labelled anatomy", 4, (Step("foreground", (1, 2), True), Step("rim", (2,), True)))
    cleaned = tmp_path / "cleaned"
    shutil.copytree(predictions, cleaned)
    for file in sorted(predictions.glob("*.nii.gz")):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        array[0, 0, 0] = array[4, 7, 6] = 2
        write_labels(file, array)
        for labels in ([1, 2], 2):
            array = remove_all_but_largest_component_from_segmentation(array, labels)
        write_labels(cleaned / file.name, array)
    before = {file.name: file.read_bytes() for file in predictions.glob("*.nii.gz")}
    expected, raw = evaluate(references, cleaned), evaluate(references, predictions)
    result = evaluate(references, predictions, postprocessing=decision, output_file=tmp_path / "after.json")
    assert result.cases == expected.cases
    assert result.mean[2]["Dice"] != raw.mean[2]["Dice"]
    assert json.loads((tmp_path / "after.json").read_text())["conventions"]["postprocessing"] == str(decision)
    assert "postprocessing" not in raw.conventions
    assert {file.name: file.read_bytes() for file in predictions.glob("*.nii.gz")} == before


def test_counts_means_and_spreads_follow_from_the_cases(tmp_path):
    references, predictions = write_folders(tmp_path)
    write_labels(predictions / "case_0.nii.gz", label_array(0, values=(1,)))
    write_labels(references / "case_1.nii.gz", label_array(1, values=(1,)))
    for folder in (references, predictions):
        write_labels(folder / "case_2.nii.gz", label_array(2, values=(1,)))
    result = evaluate(references, predictions)
    assert result.counts == {
        1: {"n_cases": 4, "n_missed": 0, "n_spurious": 0},
        2: {"n_cases": 3, "n_missed": 1, "n_spurious": 1},
    }
    for metric in ("Dice", "hd95_mm", "assd_mm", "nsd"):
        values = [result.cases[f"case_{number}"][2][metric] for number in (0, 1, 3)]
        assert result.mean[2][metric] == pytest.approx(np.mean(values))
        assert result.sd[2][metric] == pytest.approx(np.std(values, ddof=1))
        structures = [np.nanmean([case[label][metric] for label in (1, 2)]) for case in result.cases.values()]
        assert result.foreground_sd[metric] == pytest.approx(np.std(structures, ddof=1))
    diagonal = math.sqrt((5 * 3.0) ** 2 + (8 * 1.2) ** 2 + (7 * 0.8) ** 2)
    assert result.cases["case_0"][2]["hd95_mm"] == pytest.approx(diagonal)
    assert result.structures == {1: "core", 2: "rim"}


def test_a_structure_that_no_case_has_leaves_the_foreground_mean_alone(tmp_path):
    references, predictions = write_folders(tmp_path, labels={**LABELS, "absent": 3})
    result = evaluate(references, predictions)
    assert math.isnan(result.mean[3]["Dice"])
    assert result.counts[3] == {"n_cases": 0, "n_missed": 0, "n_spurious": 0}
    assert result.foreground_mean["Dice"] == pytest.approx((result.mean[1]["Dice"] + result.mean[2]["Dice"]) / 2)


def test_the_file_is_the_returned_summary_with_its_conventions(tmp_path):
    references, predictions = write_folders(tmp_path)
    output = tmp_path / "elsewhere" / "scores.json"
    result = evaluate(
        str(references), str(predictions), output_file=output, metrics="paper", nsd_tolerance_mm=2.5, num_processes=1
    )
    assert result.summary_file == output
    assert not (predictions / "summary.json").exists()
    written = json.loads(output.read_text())
    assert written == result.summary
    assert written["conventions"]["metrics"] == "paper"
    assert written["conventions"]["nsd_tolerance_mm"] == 2.5
    assert list(written)[:2] == ["foreground_mean", "mean"]
    assert {"hd95_vox_pooled", "asd_vox"} <= set(written["mean"]["1"])
    assert {"hd95_vox_pooled", "asd_vox"} <= set(written["conventions"])


def test_several_processes_give_the_same_summary(tmp_path):
    references, predictions = write_folders(tmp_path, cases=3)
    one, two = (evaluate(references, predictions, num_processes=number) for number in (1, 2))
    assert one.summary == two.summary


def test_regions_and_the_ignore_label_of_dataset_json_are_used(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "rim": 2, "ignore": 3}
    references, predictions = write_folders(tmp_path, labels=labels, regions_class_order=[1, 2])
    reference = label_array(0)
    reference[-1] = 3
    write_labels(references / "case_0.nii.gz", reference)
    result = evaluate(references, predictions)
    assert list(result.summary["mean"]) == ["(1, 2)", "2"]
    assert result.structures == {(1, 2): "whole", 2: "rim"}
    counts = result.cases["case_0"][(1, 2)]
    assert sum(counts[key] for key in ("TP", "FP", "FN", "TN")) == (reference != 3).sum()


def test_listed_labels_need_no_json(tmp_path):
    references, predictions = write_folders(tmp_path)
    expected = evaluate(references, predictions)
    (predictions / "dataset.json").unlink()
    result = evaluate(references, predictions, labels=[2, [1, 2]], ignore_label=77)
    assert list(result.structures) == [2, (1, 2)]
    assert result.mean[2] == expected.mean[2]


def test_background_is_measured_on_request_but_is_not_foreground(tmp_path):
    references, predictions = write_folders(tmp_path)
    result = evaluate(references, predictions, labels=[0, 1])
    assert result.mean[0]["Dice"] > result.mean[1]["Dice"]
    assert result.foreground_mean == result.mean[1]


def test_named_json_files_are_used(tmp_path):
    references, predictions = write_folders(tmp_path)
    dataset_json = shutil.move(predictions / "dataset.json", tmp_path / "dataset.json")
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps({"image_reader_writer": "NibabelIO"}))
    assert evaluate(references, predictions, dataset_json=dataset_json, plans_json=plans).structures == {
        1: "core",
        2: "rim",
    }
    plans.write_text(json.dumps({"image_reader_writer": "NoSuchIO"}))
    with pytest.raises(DataError, match="no reader 'NoSuchIO'"):
        evaluate(references, predictions, dataset_json=dataset_json, plans_json=plans)
    shutil.copy(plans, predictions / "plans.json")
    with pytest.raises(DataError, match="no reader 'NoSuchIO'"):
        evaluate(references, predictions, dataset_json=dataset_json)


def test_a_prediction_with_another_ending_is_named_as_such(tmp_path):
    references, predictions = write_folders(tmp_path)
    (predictions / "case_1.nii.gz").rename(predictions / "case_1.nii")
    with pytest.raises(DataError, match="1 of 4 references have no prediction") as caught:
        evaluate(references, predictions)
    told = "1 image(s) do not count, because they do not end with .nii.gz: case_1.nii"
    assert caught.value.why == f"case_1\n{told}"


def test_missing_predictions_stop_unless_chill(tmp_path):
    references, predictions = write_folders(tmp_path)
    (predictions / "case_1.nii.gz").unlink()
    (predictions / "case_3.nii.gz").unlink()
    with pytest.raises(DataError, match="2 of 4 references have no prediction") as caught:
        evaluate(references, predictions)
    assert caught.value.why == "case_1, case_3"
    assert "--chill" in caught.value.run
    assert not (predictions / "summary.json").exists()
    result = evaluate(references, predictions, chill=True)
    assert result.without_prediction == ("case_1", "case_3")
    assert list(result.cases) == ["case_0", "case_2"]
    assert result.summary["num_cases"] == 2
    assert result.summary["without_prediction"] == ["case_1", "case_3"]


def test_predictions_without_a_reference_are_left_out_and_named(tmp_path):
    references, predictions = write_folders(tmp_path)
    (references / "case_2.nii.gz").unlink()
    (predictions / ".case_9.nii.gz").write_bytes(b"hidden")
    result = evaluate(references, predictions)
    assert result.without_reference == ("case_2",)
    assert list(result.cases) == ["case_0", "case_1", "case_3"]


def remove_files(folder):
    for file in folder.glob("*.nii.gz"):
        file.unlink()


def rename_files(folder):
    for file in list(folder.glob("*.nii.gz")):
        file.rename(folder / f"other_{file.name}")


def replace_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


FAULTS = {
    "no json": (lambda r, p: (p / "dataset.json").unlink(), UsageError, "nothing says which labels"),
    "no references": (lambda r, p: remove_files(r), DataError, r"holds no \.nii\.gz files"),
    "no predictions": (lambda r, p: remove_files(p), DataError, r"holds no \.nii\.gz files"),
    "no folder": (lambda r, p: shutil.rmtree(r), DataError, "the reference folder does not exist"),
    "a file": (lambda r, p: replace_by_a_file(r), DataError, "the reference folder is a file"),
    "other names": (lambda r, p: rename_files(p), DataError, "no prediction has the name"),
    "broken json": (lambda r, p: (p / "dataset.json").write_text("{"), DataError, "not valid JSON"),
    "a list": (lambda r, p: (p / "dataset.json").write_text("[1]"), DataError, "not a JSON object"),
    "label 7": (
        lambda r, p: write_labels(p / "case_1.nii.gz", label_array(1, values=(1, 7))),
        DataError,
        "holds 7",
    ),
    "corrupt reference": (lambda r, p: (r / "case_0.nii.gz").write_bytes(b"x" * 50), DataError, "no reader can read"),
    "corrupt prediction": (lambda r, p: (p / "case_0.nii.gz").write_bytes(b"x" * 50), DataError, "cannot be read"),
    "geometry": (
        lambda r, p: write_labels(p / "case_1.nii.gz", label_array(1), spacing=(1, 1, 1)),
        DataError,
        "case_1: reference and prediction differ in spacing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_folders_are_refused_and_nothing_is_written(tmp_path, fault):
    references, predictions = write_folders(tmp_path)
    damage, error, message = FAULTS[fault]
    damage(references, predictions)
    with pytest.raises(error, match=message) as caught:
        evaluate(references, predictions)
    assert caught.value.where
    assert not list(tmp_path.rglob("*summary*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "voxel"}, "unknown metric set"),
        ({"protocol": "voxel"}, "unknown metric set"),
        ({"nsd_tolerance_mm": -1.0}, "tolerance"),
        ({"nsd_tolerance_mm": math.nan}, "tolerance"),
        ({"num_processes": 0}, "processes"),
        ({"output_file": "scores.txt"}, r"must end with \.json"),
        ({"labels": []}, "empty"),
        ({"ignore_label": 3}, "without labels"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, options, message):
    references, predictions = write_folders(tmp_path, cases=1)
    with pytest.raises(UsageError, match=message):
        evaluate(references, predictions, **options)


def test_a_missing_named_json_is_an_error(tmp_path):
    references, predictions = write_folders(tmp_path, cases=1)
    with pytest.raises(DataError, match="missing"):
        evaluate(references, predictions, dataset_json=tmp_path / "none.json")


def test_evaluate_is_the_public_function():
    assert nnssl.evaluate is evaluate


def test_the_old_spelling_of_the_metric_set(tmp_path):
    references, predictions = write_folders(tmp_path, cases=1)
    result = evaluate(references, predictions, protocol="paper")
    assert result.conventions["metrics"] == "paper"
    assert result.summary == evaluate(references, predictions, metrics="paper").summary


def test_predictions_on_other_axes_are_told_in_the_log_and_the_summary(tmp_path, caplog):
    references, predictions = write_folders(tmp_path, cases=12)
    for file in references.iterdir():
        turned = reorient(sitk.ReadImage(str(file)), ((1, 0, 2), (False, True, False)))
        sitk.WriteImage(turned, str(predictions / file.name))
    result = evaluate(references, predictions)
    assert result.mean[1]["Dice"] == result.mean[2]["nsd"] == 1
    assert len(result.notes) == 12
    assert result.summary["notes"] == list(result.notes)
    lines = caplog.text.splitlines()
    turn = "axes in the order y, x, z; x reversed"
    assert lines[0].endswith(f"case_0: the prediction was brought to the axes of the reference ({turn})")
    assert lines[-1] == "… and 2 more"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_summary_of_a_fold_measures_slices_in_their_plane(tmp_path, axis):
    """The options are those of the validation after training."""
    summaries = []
    for name, thin in (("flat", 0), ("turned", axis)):
        (tmp_path / name / "predictions").mkdir(parents=True)
        references, predictions = write_folders(tmp_path / name, cases=0)
        spacing = [0.8, 1.2]
        spacing.insert(2 - thin, 5.0)
        for number in range(2):
            for folder, seed in ((references, number), (predictions, number + 10)):
                array = np.expand_dims(label_array(seed, (9, 8)), thin)
                write_labels(folder / f"case_{number}.nii.gz", array, spacing=spacing)
        summaries.append(evaluate(references, predictions, chill=True, same_placement=False).summary["mean"])
    assert summaries[0]["1"]["assd_mm"] > 0
    for label in ("1", "2"):
        assert summaries[1][label] == pytest.approx(summaries[0][label], nan_ok=True)
