import os
import resource
import shutil
import signal

import numpy as np
import pytest

from nnssl.errors import DataError, EnvironmentProblem, NnsslError
from nnssl.names import FACTS_FILE
from nnssl.planning.api import plan
from nnssl.planning.preprocessing import check_preprocessed
from nnssl.system.files import content_hash
from tests.planning.raw_for_tests import read_json, write_json, write_scan
from tests.planning.stock_nnunet import run_stock

CASES = [f"case_{number}" for number in range(6)]
UNLABELLED = ["un_0", "un_1", "un_2"]
SPLIT = {"train": CASES[:4], "val": CASES[4:], "labelled_order": CASES[:4]}
NAME = "nnUNetPlans_3d_fullres"


def planned(configurations=("3d_fullres",), **options):
    options = {"trainer": "SupervisedTrainer", "num_processes": 2, "num_processes_fingerprint": 1} | options
    return plan(906, configurations, **options)


def made(result):
    return result.configurations["3d_fullres"].preprocessed


def identical(first, second):
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(identical(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(identical, first, second))
    return np.array_equal(first, second) and getattr(first, "dtype", None) == getattr(second, "dtype", None)


def load(folder, case):
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    data, seg, _, properties = infer_dataset_class(str(folder))(str(folder)).load_case(case)
    return data[:], seg[:], properties


def hashes(folder):
    """Return file name -> hash; of compressed arrays the voxels count, not how threads laid them out on disk.

    The file of facts holds inodes and times, which differ from call to call.
    """
    import blosc2

    return {
        path.name: blosc2.open(str(path))[:].tobytes() if path.suffix == ".b2nd" else content_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FACTS_FILE
    }


def test_labelled_cases_are_those_of_stock_nnunet(data, stock):
    result = planned(("2d", "3d_fullres"))
    assert made(result) == 9
    for name in ("nnUNetPlans_2d", NAME):
        assert sorted(os.listdir(data.preprocessed / name)) == sorted(os.listdir(stock / name))
        for case in CASES:
            assert all(map(identical, load(data.preprocessed / name, case), load(stock / name, case)))
    assert hashes(data.preprocessed / "gt_segmentations") == hashes(stock / "gt_segmentations")


def test_unlabelled_cases_go_through_the_same_steps_without_a_label(data):
    write_json(data.raw / "splits_final.json", [SPLIT])
    planned(target_spacing_mm=(1, 1, 1))
    planned(target_spacing_mm=(1, 1, 1), labelled=2)
    labelled, labels, _ = load(data.preprocessed / NAME, "case_2")
    unlabelled, blank, properties = load(data.preprocessed / "nnUNetPlans@lab2_3d_fullres_unlabelled", "case_2")
    assert np.array_equal(labelled, unlabelled)
    assert labels.max() == 2
    assert set(np.unique(blank)) <= {-1, 0}
    assert properties["class_locations"] == {}


def test_a_second_call_does_nothing_and_a_clean_one_everything(data):
    planned()
    before = hashes(data.preprocessed)
    times = {path: path.stat().st_mtime_ns for path in (data.preprocessed / NAME).iterdir()}
    assert made(planned()) == 0
    assert hashes(data.preprocessed) == before
    assert {path: path.stat().st_mtime_ns for path in (data.preprocessed / NAME).iterdir()} == times
    assert made(planned(clean=True)) == 9
    assert not list(data.preprocessed.glob(".*"))


def test_only_what_changed_is_made_anew_and_what_is_gone_goes(data):
    planned()
    write_scan(data.raw / "imagesUn", "un_1", 300)
    write_scan(data.raw / "imagesUn", "un_7", 301)
    (data.raw / "imagesUn/un_2_0000.nii.gz").unlink()
    assert made(planned()) == 2
    folder = data.preprocessed / f"{NAME}_unlabelled"
    assert {path.stem for path in folder.glob("*.pkl")} == {"un_0", "un_1", "un_7"}
    assert not list(folder.glob("un_2*"))
    assert set(read_json(folder.with_name(f"{folder.name}.manifest.json"))["cases"]) == {"un_0", "un_1", "un_7"}


def test_configurations_that_share_their_data_are_preprocessed_once(data):
    planned()
    plans = read_json(data.preprocessed / "nnUNetPlans.json")
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 5}
    write_json(data.preprocessed / "nnUNetPlans.json", plans)
    result = planned(("mine", "3d_fullres"), clean=True)
    assert [made.preprocessed for made in result.configurations.values()] == [9, 9]
    assert [made.batch_size for made in result.configurations.values()] == [5, 2]


def test_other_settings_make_every_case_anew(data):
    planned()
    assert made(planned(target_spacing_mm=(1.5, 1, 1))) == 9
    assert load(data.preprocessed / NAME, "case_0")[0].shape[1] < 14


def test_what_stock_nnunet_preprocessed_is_not_trusted(data, stock):
    shutil.copytree(stock, data.preprocessed)
    assert made(planned()) == 9


def test_stock_planning_and_preprocessing_leave_our_files(data):
    write_json(data.raw / "splits_final.json", [SPLIT])
    result = planned()
    before = hashes(data.preprocessed)
    run_stock("repeat")
    after = hashes(data.preprocessed)
    del after["Other.json"]
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= {f"{case}.pkl" for case in CASES}
    check_preprocessed(data.preprocessed, read_json(result.plans_path), "3d_fullres", CASES, UNLABELLED)
    assert made(planned()) == 0


def broken_at(monkeypatch, case, action):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    original = DefaultPreprocessor.run_case

    def run_case(self, images, *rest):
        if any(f"{case}_0000" in image for image in images):
            action()
        return original(self, images, *rest)

    monkeypatch.setattr(DefaultPreprocessor, "run_case", run_case)


def test_a_run_that_was_killed_is_continued(data, monkeypatch):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    with monkeypatch.context() as patch:
        broken_at(patch, "case_4", lambda: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(EnvironmentProblem, match=r"case_4 \(SIGKILL\)"):
            planned()
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(data.preprocessed / NAME))) == [*CASES[:4], "case_5"]
    plans = read_json(data.preprocessed / "nnUNetPlans.json")
    with pytest.raises(DataError, match="not preprocessed"):
        check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, [])
    assert made(planned()) == 1 + 3
    check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, UNLABELLED)


def test_an_error_in_nnunet_names_the_case(data, monkeypatch):
    broken_at(monkeypatch, "un_1", lambda: np.zeros(2)[3])
    with pytest.raises(NnsslError, match="un_1 failed") as caught:
        planned()
    assert "IndexError" in str(caught.value)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_message_and_no_half_written_case(data, processes):
    planned(run_preprocessing=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (14_000, hard))
    try:
        with pytest.raises(EnvironmentProblem, match="could not be written") as caught:
            planned(num_processes=processes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free space" in caught.value.run
    assert not list((data.preprocessed / NAME).iterdir())
    assert not list((data.preprocessed / f".{NAME}.partial").iterdir())
    assert made(planned()) == 9


def test_a_budget_never_opens_hidden_labels(data):
    write_json(data.raw / "splits_final.json", [SPLIT])
    planned(labelled=2)
    before = hashes(data.preprocessed)
    shutil.rmtree(data.preprocessed)
    for case in CASES[2:4]:
        (data.raw / f"labelsTr/{case}.nii.gz").write_bytes(b"not a label")
    result = planned(labelled=2)
    (data.raw / "labelsTr/case_2.nii.gz").unlink()
    assert made(planned(labelled=2)) == 0
    assert hashes(data.preprocessed) == before
    assert set(os.listdir(data.preprocessed / "gt_segmentations")) == {
        f"{case}.nii.gz" for case in (*CASES[:2], *CASES[4:])
    }
    folder = data.preprocessed / "nnUNetPlans@lab2_3d_fullres"
    assert {path.stem for path in folder.glob("*.pkl")} == {*CASES[:2], *CASES[4:]}
    assert {path.stem for path in folder.with_name(f"{folder.name}_unlabelled").glob("*.pkl")} == {
        *CASES[2:4],
        *UNLABELLED,
    }
    assert result.cases.labelled == tuple(CASES[:2])


def test_folds_that_share_plans_do_not_undo_each_other(data):
    other = {"train": [*CASES[:2], *CASES[4:]], "val": CASES[2:4], "labelled_order": CASES}
    write_json(data.raw / "splits_final.json", [SPLIT, other])
    planned(labelled=2)
    assert made(planned(labelled=2, fold=1)) == 2 + 2
    assert made(planned(labelled=2)) == 0
    plans = read_json(data.preprocessed / "nnUNetPlans@lab2.json")
    check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, CASES[2:])


def test_the_check_says_what_is_different_and_what_to_run(data):
    result = planned()
    plans = read_json(result.plans_path)
    check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, UNLABELLED)
    command = f"nnssl_plan_and_preprocess -d {result.dataset} -tr SupervisedTrainer -c 3d_fullres"
    with pytest.raises(DataError) as caught:
        check_preprocessed(data.preprocessed, plans, "3d_fullres", [*CASES, "case_9"], [])
    assert (caught.value.why, caught.value.run) == ("case_9", command)
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 8, 8]
    check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, UNLABELLED)
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    with pytest.raises(DataError, match="other settings") as caught:
        check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, UNLABELLED)
    assert "spacing" in caught.value.why
    with pytest.raises(DataError, match="not preprocessed"):
        check_preprocessed(data.preprocessed, plans, "2d", CASES, [])
    check_preprocessed(data.preprocessed, plans, "2d", [], [])
    shutil.rmtree(data.preprocessed)
    with pytest.raises(DataError):
        check_preprocessed(data.preprocessed, plans, "3d_fullres", CASES, [])


def test_a_damaged_manifest_is_an_error_that_says_what_to_do(data):
    planned()
    manifest = data.preprocessed / f"{NAME}.manifest.json"
    manifest.write_text("{")
    with pytest.raises(DataError) as caught:
        planned()
    assert "delete" in caught.value.run


def test_stock_nnunet_trains_on_what_was_preprocessed(data, monkeypatch):
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    planned(hardware="cpu", trainer=None)
    trainer = get_trainer_from_args("906", "3d_fullres", 0, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert np.isfinite(loss)
    assert sorted(trainer.do_split()[0] + trainer.do_split()[1]) == CASES
