from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnssl.errors import EnvironmentProblem, OutOfMemory, UsageError
from nnssl.inference.api import DiskJob, predict_files
from nnssl.inference.inputs import cases_in_folder
from nnssl.inference.predictor import Predictor
from tests.inference.model_for_tests import make_scan, read_mask, write_model, write_scans


def stock_predict(model, scans, output, folds, *, mirroring=True, step_size=0.5, probabilities=False):
    output.mkdir()
    predictor = nnUNetPredictor(
        tile_step_size=step_size, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predictor.predict_from_files_sequential(str(scans), str(output), save_probabilities=probabilities)


def assert_same_masks(ours, stock, cases=3):
    files = sorted(stock.glob("*.nii.gz"))
    assert len(files) == cases
    for file in files:
        mine, theirs = SimpleITK.ReadImage(str(ours / file.name)), SimpleITK.ReadImage(str(file))
        for geometry in ("GetOrigin", "GetSpacing", "GetDirection", "GetPixelID", "GetSize"):
            assert getattr(mine, geometry)() == getattr(theirs, geometry)()
        mine, theirs = SimpleITK.GetArrayFromImage(mine), SimpleITK.GetArrayFromImage(theirs)
        assert len(np.unique(theirs)) == 3
        assert np.count_nonzero(mine != theirs) <= 1  # two float kernels may disagree on a tie


@pytest.mark.parametrize(
    ("plan", "folds", "settings"),
    [
        ({}, (0, 1), {}),
        ({}, (0,), {"mirroring": False, "step_size": 1.0}),
        ({"dim": 2}, (0,), {}),
        ({"channels": 2, "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}, (0,), {}),
        ({"image_reader_writer": "NibabelIO"}, (0,), {"step_size": 0.9}),
    ],
    ids=["two folds", "no mirroring", "2d", "two channels transposed", "nibabel"],
)
def test_masks_are_those_of_stock_nnunet(results, tmp_path, plan, folds, settings):
    model = write_model(results, folds=folds, **plan)
    scans = write_scans(tmp_path / "scans", channels=plan.get("channels", 1))
    stock_predict(model, scans, tmp_path / "stock", folds, **settings)
    predict_files(DiskJob([scans], tmp_path / "ours"), {"model": model, "device": "cpu", **settings})
    assert_same_masks(tmp_path / "ours", tmp_path / "stock")


def test_stock_can_predict_with_the_slim_checkpoint_and_its_files_beside_the_masks_agree(model, scans, tmp_path):
    stock_predict(model, scans, tmp_path / "stock", (0,), probabilities=True)
    job = DiskJob([scans], tmp_path / "ours", save_probabilities=True)
    predict_files(job, {"model": model, "folds": [0], "device": "cpu"})
    assert_same_masks(tmp_path / "ours", tmp_path / "stock")
    assert {file.name for file in (tmp_path / "ours").iterdir()} == {f.name for f in (tmp_path / "stock").iterdir()}
    for name in ("plans.json", "dataset.json"):
        ours, stock = (json.loads((tmp_path / side / name).read_text()) for side in ("ours", "stock"))
        assert ours == stock
    ours, stock = (np.load(tmp_path / side / "case_1.npz")["probabilities"] for side in ("ours", "stock"))
    np.testing.assert_allclose(ours, stock, atol=1e-3)
    assert np.abs(ours.sum(0) - 1).max() < 1e-3
    ours, stock = (pickle.loads((tmp_path / side / "case_1.pkl").read_bytes()) for side in ("ours", "stock"))
    assert ours["bbox_used_for_cropping"] == stock["bbox_used_for_cropping"]
    assert ours["sitk_stuff"] == stock["sitk_stuff"]


def test_checkpoint_of_a_stock_trainer_with_its_own_network(results, scans, tmp_path, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    # the search imports every trainer of nnU-Net, optional dependencies included
    for place in ("utilities.find_objects", "inference.predict_from_raw_data"):
        find = f"nnunetv2.{place}.recursive_find_trainer_class_by_name"
        monkeypatch.setattr(find, {"nnUNetTrainerBN": nnUNetTrainerBN}.__getitem__)
    model = write_model(results, trainer="nnUNetTrainerBN")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    plans = PlansManager(str(model / "plans.json"))
    network = nnUNetTrainerBN.build_network_architecture(plans, plans.get_configuration("3d_fullres"), 1, 3)
    del content["nnssl_semi"]
    content |= {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainerBN"}
    torch.save({**content, "logging": {"dice": [np.float32(0.5), np.float64(1)]}}, file)
    stock_predict(model, scans, tmp_path / "stock", (0,))
    predict_files(DiskJob([scans], tmp_path / "ours"), {"model": model, "device": "cpu"})
    for case in range(3):
        ours, stock = (read_mask(tmp_path / side / f"case_{case}.nii.gz") for side in ("ours", "stock"))
        assert np.count_nonzero(ours != stock) <= 1


def test_threads_do_not_change_the_masks(model, scans, tmp_path):
    for name, workers in (("none", 0), ("many", 3)):
        predict_files(
            DiskJob([scans], tmp_path / name, readers=workers, writers=workers), {"model": model, "device": "cpu"}
        )
    for case in range(3):
        file = f"case_{case}.nii.gz"
        assert (tmp_path / "none" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_folds_are_averaged_as_logits(model, scans):
    loaded = {folds: Predictor.from_folder(model, folds=folds, device="cpu") for folds in ((0,), (1,), (0, 1))}
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 16, 20, 18)).astype(np.float32))
    first, second, both = (
        predictor.predict_logits_from_preprocessed_data(data).float() for predictor in loaded.values()
    )
    torch.testing.assert_close(both, (first + second) / 2, atol=0.05, rtol=2e-3)
    assert (first - second).abs().max() > 1


def test_continue_predicts_only_what_is_missing(model, scans, tmp_path):
    output = tmp_path / "out"
    predict_files(DiskJob([scans], output), {"model": model, "device": "cpu"})
    (output / "case_1.nii.gz").unlink()
    (output / "case_0.nii.gz").write_text("finished before")
    result = predict_files(DiskJob([scans], output, overwrite=False), {"model": model, "device": "cpu"})
    assert result.predicted == 1
    assert len(result.masks) == 3
    assert (output / "case_0.nii.gz").read_text() == "finished before"
    assert read_mask(output / "case_1.nii.gz").shape == (14, 20, 18)
    job = DiskJob([scans], output, overwrite=False, save_probabilities=True)
    assert predict_files(job, {"model": model, "device": "cpu"}).predicted == 3


def test_parts_share_the_cases(model, scans, tmp_path):
    for part in (0, 1):
        job = DiskJob([scans], tmp_path / f"{part}", num_parts=2, part_id=part)
        predict_files(job, {"model": model, "device": "cpu"})
    names = [sorted(file.name for file in (tmp_path / f"{part}").glob("case*")) for part in (0, 1)]
    assert names == [["case_0.nii.gz", "case_2.nii.gz"], ["case_1.nii.gz"]]
    with pytest.raises(UsageError, match="part_id"):
        predict_files(DiskJob([scans], tmp_path / "2", num_parts=2, part_id=2), {"model": model})


def test_method_under_nnunets_name_loads_the_same_model(model):
    predictor = Predictor(device="cpu")
    predictor.initialize_from_trained_model_folder(str(model), None)
    assert predictor.folds == ["0", "1"]
    image = make_scan(5)
    mask = predictor.predict_image(image)
    expected = Predictor.from_folder(model, device="cpu").predict_image(image)
    assert (SimpleITK.GetArrayViewFromImage(mask) == SimpleITK.GetArrayViewFromImage(expected)).all()


def test_cascade_is_refused(results):
    model = write_model(results)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UsageError, match="cascades"):
        Predictor.from_folder(model, device="cpu")


def test_checkpoint_of_another_network(results):
    model = write_model(results)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(EnvironmentProblem, match="does not fit") as caught:
        Predictor.from_folder(model, device="cpu")
    assert "fold_0" in caught.value.where


def test_checkpoint_of_a_network_with_other_layers(results, tmp_path):
    model = write_model(results)
    deeper = write_model(tmp_path / "deeper", features=(4, 8, 8, 8), stages=4)
    (model / "plans.json").write_bytes((deeper / "plans.json").read_bytes())
    with pytest.raises(EnvironmentProblem, match="does not fit") as caught:
        Predictor.from_folder(model, device="cpu")
    assert re.fullmatch(r"of \d+ weights \d+ are missing, \d+ are of another network", caught.value.why)


def test_out_of_memory_names_the_case(model, scans, tmp_path, monkeypatch):
    predictor = Predictor.from_folder(model, device="cpu")

    def fail(_patch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(predictor.network, "forward", fail)
    with pytest.raises(OutOfMemory) as caught:
        predictor.predict_cases(cases_in_folder(scans, tmp_path / "out", ".nii.gz"))
    assert caught.value.where == "case_0"
    assert not list((tmp_path / "out").glob("*"))


def test_nothing_is_printed(model, scans, tmp_path, capfd):
    predict_files(DiskJob([scans], tmp_path / "out"), {"model": model, "device": "cpu"})
    assert capfd.readouterr() == ("", "")


def test_preprocessed_cases_give_the_masks_of_their_scans(model, scans, tmp_path):
    predictor = Predictor.from_folder(model, folds=[0], device="cpu")
    cases = cases_in_folder(scans, tmp_path / "scans", ".nii.gz")
    predictor.predict_cases(cases, save_probabilities=True)
    prepared = {case.name: predictor.prepare(case) for case in cases}
    names = list(prepared)
    done = predictor.predict_preprocessed(names, prepared.__getitem__, tmp_path / "cases", save_probabilities=True)
    assert list(done) == names
    files = sorted(file.name for file in (tmp_path / "scans").iterdir())
    assert files == sorted(f"{name}{ending}" for name in names for ending in (".nii.gz", ".npz", ".pkl"))
    for file in files:
        if not file.endswith(".npz"):  # the archive holds the time of writing
            assert (tmp_path / "cases" / file).read_bytes() == (tmp_path / "scans" / file).read_bytes()
    for name in names:
        ours, theirs = (np.load(tmp_path / side / f"{name}.npz")["probabilities"] for side in ("cases", "scans"))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dim", [2, 3])
def test_probabilities_of_a_flipped_scan_are_those_of_the_flipped_file(results, tmp_path, dim):
    """A patch axis counts from the first axis of the patch: in 2-D from the second axis of the scan."""
    model = write_model(results, dim=dim)
    folder = write_scans(tmp_path / "scans", count=1, spacing=(1.0, 1.0, 1.0))
    (scan,) = cases_in_folder(folder, tmp_path / "out", ".nii.gz", 1)
    predictor = Predictor.from_folder(model, device="cpu", mirroring=False)
    image = SimpleITK.ReadImage(str(scan.images[0]))
    flipped = SimpleITK.GetImageFromArray(np.flip(SimpleITK.GetArrayFromImage(image), 4 - dim).copy())
    flipped.CopyInformation(image)
    SimpleITK.WriteImage(flipped, str(folder / "turned_0000.nii.gz"))
    _, turned = cases_in_folder(folder, tmp_path / "out", ".nii.gz", 1)
    plain, _ = predictor.probabilities_of(scan)
    found, _ = predictor.probabilities_of(scan, (1,))
    expected = np.flip(predictor.probabilities_of(turned)[0], 5 - dim)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - plain).max() > 0.01
