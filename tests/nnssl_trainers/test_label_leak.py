"""Hidden labels cannot reach the weights: neither before planning nor after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnssl
from nnssl.training.checkpoints import load
from tests.tiny_raw import NAME, write_raw, write_scan


def use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(root / variable))
        (root / variable).mkdir(exist_ok=True)


def planned() -> nnssl.planning.api.PlanResult:
    return nnssl.plan(NAME, ("3d_fullres",), budget="cpu", labelled=2, num_processes=1)


def weights(trainer: str) -> dict[str, torch.Tensor]:
    settings = {"ready_dice": 0.0} if trainer == "SelfTrainingTrainer" else {}  # so that it labels the hidden cases
    short = {"num_iterations": 2, "device": "cpu", "run_validation": False}
    result = nnssl.train(NAME, "3d_fullres", 0, trainer=trainer, labelled="2", settings=settings, **short)
    if settings:
        assert len(json.loads((result.folder / "pseudo_labels" / "cases.json").read_text())) > 2  # with imagesUn
    return load(result.checkpoint)["network_weights"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(autouse=True)
def short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    import nnssl_trainers.frame.run_loop

    monkeypatch.setattr(
        nnssl_trainers.frame.run_loop.RunLoop,
        "num_val_iterations_per_epoch",
        property(lambda _: 1, lambda *_: None),
        raising=False,
    )
    monkeypatch.setattr(nnssl_trainers.frame.run_loop.RunLoop, "_plot", lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer", ["DSMTTrainer", "SelfTrainingTrainer", "DTLPTrainer"]
)  # they use all that others use
def test_hidden_labels_do_not_reach_the_weights(trainer: str, tmp_path: Path, monkeypatch) -> None:
    honest, altered = tmp_path / "honest", tmp_path / "altered"
    for root in (honest, altered):
        root.mkdir()
        use(root, monkeypatch)
        write_raw(root / "nnUNet_raw")
    use(honest, monkeypatch)
    plan = planned()
    assert len(plan.cases.labelled) == 2
    assert plan.plans_name == "nnUNetPlans@lab2"
    hidden = [case for case in plan.cases.unlabelled if case.startswith("case")]
    assert hidden
    reference = weights(trainer)

    use(altered, monkeypatch)
    for case in hidden:
        path = altered / "nnUNet_raw" / NAME / "labelsTr" / f"{case}.nii.gz"
        shape = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).shape
        write_scan(path, np.full(shape, 2, np.int16))
    assert planned().cases == plan.cases
    assert same(weights(trainer), reference)

    use(honest, monkeypatch)
    shutil.rmtree(honest / "nnUNet_results")
    use(honest, monkeypatch)
    for case in hidden:
        (honest / "nnUNet_raw" / NAME / "labelsTr" / f"{case}.nii.gz").unlink()
        for folder in (honest / "nnUNet_preprocessed" / NAME).iterdir():
            stray = (
                [file for file in folder.glob(f"{case}*") if "unlabelled" not in folder.name] if folder.is_dir() else []
            )
            assert not stray
    assert same(weights(trainer), reference)

    use(altered, monkeypatch)  # the test can fail: a visible label does change the weights
    shutil.rmtree(altered / "nnUNet_preprocessed")
    shutil.rmtree(altered / "nnUNet_results")
    use(altered, monkeypatch)
    case = plan.cases.labelled[0]
    path = altered / "nnUNet_raw" / NAME / "labelsTr" / f"{case}.nii.gz"
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    write_scan(path, np.where(labels == 1, 2, labels))
    planned()
    assert not same(weights(trainer), reference)


def test_hidden_labels_stay_out_of_the_plans(tmp_path: Path, monkeypatch) -> None:
    use(tmp_path, monkeypatch)
    write_raw(tmp_path / "nnUNet_raw")
    plan = planned()
    content = json.loads(plan.plans_path.read_text())
    assert sorted(content["nnssl_semi"]["labelled_cases"]) == sorted(plan.cases.labelled)
    fingerprint = json.loads((plan.plans_path.parent / "dataset_fingerprint@lab2.json").read_text())
    assert len(fingerprint["spacings"]) == 2
