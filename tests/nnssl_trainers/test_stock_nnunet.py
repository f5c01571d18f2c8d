"""Stock nnU-Net and nnssl read each other's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnssl.registry import METHODS
from nnssl_trainers.frame.architecture import unwrap


def test_stock_predictor_loads_the_final_checkpoint_without_us(make_trainer, tmp_path, monkeypatch) -> None:
    trainer = make_trainer("MeanTeacherTrainer")
    trainer.run_training()
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, None)
    weights = unwrap(trainer.deployed).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in predictor.network.state_dict().items())
    assert type(predictor.network).__name__ == "PlainConvUNet"


def test_validation_masks_are_stock_nnunets(make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", num_iterations=200, epoch=200)
    trainer.run_training()
    trainer.perform_actual_validation()
    validation = Path(trainer.output_folder) / "validation"
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    for case in trainer.do_split()[1]:
        data, _, _, properties = trainer.dataset_class(trainer.preprocessed_dataset_folder).load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:].copy()))
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(validation / f"{case}.nii.gz")))
        assert np.array_equal(ours, logits.argmax(0).numpy())
        assert properties["shape_before_cropping"] == ours.shape
    summary = json.loads((validation / "summary.json").read_text())
    assert {Path(entry["prediction_file"]).name for entry in summary["metric_per_case"]} == {
        f"{case}.nii.gz" for case in trainer.do_split()[1]
    }
    assert summary["foreground_mean"]["Dice"] > 0.2


@pytest.fixture
def importable_internal_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's search import its own trainers where timm cannot be imported (a torchvision of another build)."""
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        stand_in = types.ModuleType("primus")
        for name in ("Primus", "PrimusV2B", "PrimusV2L", "PrimusV2M", "PrimusV2S"):
            setattr(stand_in, name, torch.nn.Module)
        monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.primus", stand_in)


@pytest.mark.usefixtures("importable_internal_trainers")
@pytest.mark.parametrize("name", METHODS)
def test_stock_training_with_one_export(name: str, make_tiny, monkeypatch, capsys) -> None:
    from nnssl.cli.methods import main

    folder = make_tiny()
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["nnssl_semi"] = {"run": {"num_iterations": 2}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert main(["--env"]) == 0
    variable, _, bridge = capsys.readouterr().out.strip().removeprefix("export ").partition("=")
    assert [file.name for file in Path(bridge).glob("*.py")] == ["nnssl_semi_trainers.py"]
    monkeypatch.setenv(variable, bridge)
    assert recursive_find_trainer_class_by_name(name) is METHODS[name].load()
    monkeypatch.setattr(METHODS[name].load(), "perform_actual_validation", lambda *_: None)
    run_training(folder.name, "3d_fullres", 0, name, device=torch.device("cpu"))
    final = folder.parents[1] / "nnUNet_results" / folder.name / f"{name}__nnUNetPlans__3d_fullres/fold_0"
    assert torch.load(final / "checkpoint_final.pth", weights_only=True)["nnssl_semi"]["iteration"] == 2
    run_training(folder.name, "3d_fullres", 0, name, continue_training=True, device=torch.device("cpu"))


def test_stock_trainer_trains_on_the_same_files(make_tiny) -> None:
    folder = make_tiny()
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    trainer = nnUNetTrainer(
        plans, "3d_fullres", 0, json.loads((folder / "dataset.json").read_text()), torch.device("cpu")
    )
    assert trainer.do_split() == ([f"case_{i:02d}" for i in range(4)], ["case_04", "case_05"])
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


@pytest.mark.slow
def test_two_processes_on_the_cpu(make_tiny) -> None:
    folder = make_tiny()
    script = f"""
import nnssl, nnssl.training.settings, nnssl.training.api, nnssl.planning.preprocessing
nnssl.planning.preprocessing.check_preprocessed = lambda *a: None  # hand-made cases have no manifest
if __name__ == "__main__":
    nnssl.train("{folder.name}", "3d_fullres", 0, num_iterations=3, num_gpus=2, device="cpu")
"""
    path = folder.parents[1] / "distributed.py"
    path.write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fold = next((folder.parents[1] / "nnUNet_results").glob("*/*/fold_0"))
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["nnssl_semi"]["iteration"] == 3
    assert all(torch.isfinite(value).all() for value in checkpoint["network_weights"].values())
    assert (fold / "validation" / "summary.json").is_file()
