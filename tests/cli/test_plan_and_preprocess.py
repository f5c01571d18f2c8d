import functools
import json
import shutil

import pytest

from nnssl.cli.plan_and_preprocess import main
from tests.planning.conftest import data, raw_template  # noqa: F401 - fixtures
from tests.planning.raw_for_tests import DATASET, write_json

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
    assert out == [
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
