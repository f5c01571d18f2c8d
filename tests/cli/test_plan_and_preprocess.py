import functools
import json
import shutil

import nibabel
import numpy as np
import pytest

from nnssl.cli.plan_and_preprocess import main
from nnssl.data.splits import cases_of_run
from nnssl.planning.preprocessing import check_preprocessed
from tests.planning.conftest import data, raw_template  # noqa: F401 - fixtures
from tests.planning.raw_for_tests import DATASET, read_json, write_json

CPU = ["-d", "906", "-hardware", "cpu", "-np", "1", "-npfp", "1"]


@pytest.fixture(autouse=True)
def _environment(data, monkeypatch):  # noqa: F811
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    original = DatasetFingerprintExtractor.__init__

    @functools.wraps(original)
    def few_samples(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e4

    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", few_samples)
    monkeypatch.setenv("TQDM_DISABLE", "0")


def test_the_plans_and_the_next_command_are_printed(capsys, data):  # noqa: F811
    assert main([*CPU, "-c", "3d_fullres", "-labelled", "2", "--verify_dataset_integrity"]) == 0
    out = capsys.readouterr().out.splitlines()
    sheet = data.preprocessed / "data_check@lab2.png"
    assert sheet.stat().st_size > 10_000
    assert out == [
        f"sheet of the data: {sheet}",
        f"{DATASET}: {data.preprocessed / 'nnUNetPlans@lab2.json'}",
        "  3d_fullres   patch 20x24x20, batch 2, spacing 1.1x1x1 mm, features 16, 32, 64",
        f"run:  nnssl_train {DATASET} 3d_fullres 0 -labelled 2",
    ]
    assert (data.preprocessed / "nnUNetPlans@lab2_3d_fullres.manifest.json").is_file()


def test_without_unlabelled_scans_the_next_command_is_the_one_that_works(capsys, data):  # noqa: F811
    shutil.rmtree(data.raw / "imagesUn")
    assert main([*CPU, "-c", "3d_fullres", "--no_pp"]) == 0
    assert f"run:  nnssl_train {DATASET} 3d_fullres 0 -tr SupervisedTrainer" in capsys.readouterr().out


def test_json(capsys, data):  # noqa: F811
    assert main([*CPU, "--no_pp", "--no_pbar", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["plans"]
    assert list(made["configurations"]) == ["2d", "3d_fullres"]
    assert made["configurations"]["2d"] == {
        "patch_size": [24, 20],
        "batch_size": 4,
        "spacing_mm": [1.0, 1.0],
        "features": [16, 32, 64],
        "preprocessed": 0,
        "shared": 0,
    }
    assert not (data.preprocessed / "nnUNetPlans_2d").exists()


def test_the_old_spelling_of_the_hardware_option_still_works(capsys, data):  # noqa: F811
    assert main(["-d", "906", "-budget", "cpu", "-npfp", "1", "-c", "2d", "--no_pp"]) == 0
    assert "features 16, 32, 64" in capsys.readouterr().out


def test_several_data_sets_stop_at_the_first_that_is_wrong(capsys):
    assert main(["-d", "906", "907", *CPU[2:], "--no_pp"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "907" in captured.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-d", "5"], 2, "no data set"),
        (["-tr", "NoTrainer"], 2, "MeanTeacherTrainer"),
        (["-pl", "NoPlanner"], 2, "NoPlanner"),
        (["-c", "3d_fulres"], 2, "3d_fulres"),
        (["-c", "3d_lowres"], 2, "need none"),
        (["-f", "x"], 2, "not a fold"),
        (["-f", "9", "-labelled", "2"], 2, "fold 9"),
        (["-labelled", "0"], 2, "label budget"),
        (["-labelled", "99"], 3, "99 patients"),
        (["-np", "0"], 2, "-np"),
        (["-npfp", "0"], 2, "-npfp"),
        (["-np", "1", "2", "-c", "2d"], 2, "2 numbers"),
        (["-overwrite_target_spacing", "1", "1"], 2, "three numbers"),
        (["-gpu_memory_target", "0.1"], 2, "too little"),
        (["-gpu_memory_target", "4", "-hardware", "cpu"], 2, "fixed plan"),
        (["-hardware", "gpu"], 2, "unknown hardware 'gpu'"),
        (["-setting", "umda:A:B"], 3, "the data set has no domains"),
        (["-setting", "mdg"], 2, "is not a setting"),
        (["-setting", "semi:A"], 2, "unknown setting 'semi:A'"),
        (["-setting", "umda:A-"], 2, "redirection"),
        (["-setting", "mdg:A", "-f", "1"], 2, "one fold"),
        (["-setting", "mdg:A", "-protocol", "acdc-7"], 2, "exclude each other"),
        (["-normalisation", "zscore"], 2, "unknown normalisation 'zscore'"),
        (["-budget", "gpu"], 2, "-budget cpu is the old spelling of -hardware cpu"),
    ],
)
def test_wrong_options(capsys, data, options, code, words):  # noqa: F811
    assert main(["-d", "906", "-npfp", "1", *options]) == code
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert words in captured.err
    assert not list(data.preprocessed.glob("nnUNetPlans*"))


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_unset_variables(capsys, monkeypatch, variable):
    monkeypatch.delenv(variable)
    assert main(CPU) == 4
    assert f"export {variable}" in capsys.readouterr().err


def test_a_preprocessed_folder_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "file" / "below"))
    assert main([*CPU, "--json"]) == 4
    error = json.loads(capsys.readouterr().out)
    assert (error["exit_code"], error["error"]) == (4, "the folder for preprocessed data cannot be written")


def test_a_problem_of_the_raw_data_stops_before_anything_is_written(capsys, data):  # noqa: F811
    (data.raw / "labelsTr/case_1.nii.gz").unlink()
    assert main(CPU) == 3
    assert "case_1" in capsys.readouterr().err
    assert not data.preprocessed.exists()


def test_no_foreground_at_all(capsys, data):  # noqa: F811
    import SimpleITK as sitk

    for path in (data.raw / "labelsTr").iterdir():
        sitk.WriteImage(sitk.ReadImage(str(path)) * 0, str(path))
    assert main(CPU) == 3
    assert "no labelled case has foreground" in capsys.readouterr().err


def test_disagreeing_splits(capsys, data):  # noqa: F811
    assert main([*CPU, "--no_pp"]) == 0
    write_json(data.raw / "splits_final.json", [{"train": ["case_0"], "val": ["case_1"]}])
    assert main([*CPU, "--no_pp"]) == 3
    assert "delete" in capsys.readouterr().err


def test_verbose_prints_what_nnunet_prints(caplog):
    import logging

    try:
        assert main([*CPU, "--no_pp", "--verbose"]) == 0
    finally:
        logging.getLogger("nnssl").setLevel(logging.NOTSET)
    assert "2D U-Net configuration" in caplog.text


def damage(path, fault):
    """Cut a file, or write NaN into the image."""
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    else:
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[0, 0, 0] = np.nan
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


@pytest.mark.parametrize("fault", ["cut", "nan"])
def test_an_unlabelled_scan_that_cannot_be_used_is_left_out_on_request(capsys, data, fault):  # noqa: F811
    broken = data.raw / "imagesUn" / "un_1_0000.nii.gz"
    whole = broken.read_bytes()
    damage(broken, fault)
    assert main([*CPU, "-c", "3d_fullres"]) == 3
    assert "or add --skip_unreadable, which leaves these 1 unlabelled scan(s) out" in capsys.readouterr().err
    assert not data.preprocessed.exists()
    assert main([*CPU, "-c", "3d_fullres", "--skip_unreadable", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["plans"]
    ((case, (why,)),) = made["skipped"].items()
    assert (case, str(broken) in why) == ("un_1", True)
    assert f"left out by --skip_unreadable: {why}" in made["warnings"]
    assert made["cases"]["unlabelled"] == ["un_0", "un_2"]
    check_what_training_reads(data, ["un_0", "un_2"], "--skip_unreadable")
    assert main([*CPU, "-c", "3d_fullres", "-labelled", "2", "--skip_unreadable"]) == 0
    check_what_training_reads(data, ["un_0", "un_2"], "--skip_unreadable")
    broken.write_bytes(whole)
    assert main([*CPU, "-c", "3d_fullres"]) == 0
    check_what_training_reads(data, ["un_0", "un_1", "un_2"])


def make_extreme(path):
    """Write the lowest number into a face of the image: the check passes it, the normalisation does not."""
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[:, :, :3] = np.finfo(np.float32).min
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_unlabelled_scan_that_cannot_be_normalised_is_left_out(capsys, data, processes):  # noqa: F811
    extreme = data.raw / "imagesUn" / "un_1_0000.nii.gz"
    whole = extreme.read_bytes()
    make_extreme(extreme)
    words = [*CPU, "-c", "3d_fullres", "-np", processes]
    assert main(words) == 3
    err = capsys.readouterr().err
    assert "channel 0 cannot be normalised" in err
    assert "or add --skip_unreadable" in err
    for _ in range(2):  # the second call tries the scan again
        assert main([*words, "--skip_unreadable", "--json"]) == 0
        (made,) = json.loads(capsys.readouterr().out)["plans"]
        ((case, (why,)),) = made["skipped"].items()
        assert (case, str(extreme) in why, "-3.40282e+38" in why) == ("un_1", True, True)
        assert f"left out by --skip_unreadable: {why}" in made["warnings"]
        assert made["cases"]["unlabelled"] == ["un_0", "un_2"]
        check_what_training_reads(data, ["un_0", "un_2"], "--skip_unreadable")
        assert not [path for path in data.preprocessed.rglob("*") if "un_1" in path.name or "partial" in path.name]
    extreme.write_bytes(whole)
    assert main(words) == 0
    check_what_training_reads(data, ["un_0", "un_1", "un_2"])


@pytest.mark.parametrize("budget", [[], ["-labelled", "1", "-f", "all"]])
def test_a_labelled_scan_that_cannot_be_normalised_is_never_left_out(capsys, data, budget):  # noqa: F811
    for path in (data.raw / "imagesTr").iterdir():
        if path.name.startswith(("case_0", "case_1")):
            make_extreme(path)
    assert main([*CPU, "-c", "3d_fullres", "--skip_unreadable", *budget]) == 3
    err = capsys.readouterr().err
    assert "cannot be normalised" in err
    assert "--skip_unreadable" not in err


def test_all_unlabelled_scans_that_cannot_be_normalised_left_out_is_said(capsys, caplog, data):  # noqa: F811
    for path in (data.raw / "imagesUn").iterdir():
        make_extreme(path)
    assert main([*CPU, "-c", "3d_fullres", "--skip_unreadable"]) == 0
    assert "only SupervisedTrainer can learn from this data set" in caplog.text
    assert "-tr SupervisedTrainer" in capsys.readouterr().out


def check_what_training_reads(data, unlabelled, *flags):  # noqa: F811
    """Check that folds, manifest, files and the recorded command agree about the unlabelled scans."""
    plans = read_json(data.preprocessed / "nnUNetPlans.json")
    assert [word for word in plans["nnssl_semi"]["command"].split() if word.startswith("--")] == [*flags]
    cases = cases_of_run(data.preprocessed, read_json(data.preprocessed / "dataset.json"), 0, None)
    assert list(cases.unlabelled) == unlabelled
    check_preprocessed(data.preprocessed, plans, "3d_fullres", cases.labelled, cases.unlabelled)
    files = (data.preprocessed / "nnUNetPlans_3d_fullres_unlabelled").glob("*.pkl")
    assert sorted(file.stem for file in files) == unlabelled
    record = read_json(data.preprocessed / "dataset_fingerprint_unlabelled.json")
    assert list(record["unlabelled"]) == unlabelled


def test_a_fold_of_the_user_loses_the_scan_that_is_left_out(data):  # noqa: F811
    fold = {"train": ["case_0", "case_1"], "val": ["case_2"], "unlabelled": ["un_1", "un_2"]}
    write_json(data.raw / "splits_final.json", [fold])
    damage(data.raw / "imagesUn" / "un_1_0000.nii.gz", "cut")
    assert main([*CPU, "--no_pp", "--skip_unreadable"]) == 0
    assert read_json(data.preprocessed / "splits_final.json")[0]["unlabelled"] == ["un_2"]


def test_all_unlabelled_scans_left_out_is_said(capsys, caplog, data):  # noqa: F811
    for path in (data.raw / "imagesUn").iterdir():
        damage(path, "cut")
    assert main([*CPU, "--no_pp", "--skip_unreadable"]) == 0
    assert "only SupervisedTrainer can learn from this data set" in caplog.text
    assert "-tr SupervisedTrainer" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["imagesTr", "labelsTr", "imagesTs"])
def test_other_files_that_cannot_be_used_are_never_left_out(capsys, data, place):  # noqa: F811
    if place == "imagesTs":
        shutil.copytree(data.raw / "imagesUn", data.raw / place)
        shutil.rmtree(data.raw / "imagesUn")
    path = sorted((data.raw / place).iterdir())[0]
    damage(path, "cut")
    assert main([*CPU, "--no_pp", "--skip_unreadable"]) == 3
    err = capsys.readouterr().err
    assert str(path) in err
    assert "add --skip_unreadable" not in err
