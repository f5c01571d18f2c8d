"""Hidden labels cannot reach the weights: neither before planning nor after it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnssl
from nnssl.data.domains import Setting, setting_fold
from nnssl.data.phantom import write_phantom
from nnssl.data.raw import read_raw_dataset
from nnssl.data.splits import LabelBudget, fold_cases
from nnssl.training.checkpoints import load
from tests.cli.bad_input_world import few_samples_and_steps
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


@pytest.fixture(autouse=True)
def few_samples() -> Iterator[None]:
    with few_samples_and_steps():
        yield


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


PHANTOM = "Dataset907_Phantom"
SETTINGS = {  # setting -> label budget, domains whose labels no run may read, domain that no run may see
    "umda:A:B": (None, "B", "C"),
    "mdg:C": ("50%", "", "C"),
}


def write_domains(root: Path) -> Path:
    return write_phantom(root / "nnUNet_raw", 907, labelled=3, unlabelled=1, test=1, shape=(16, 26, 26), domains=3)


def planned_setting(setting: str) -> nnssl.planning.api.PlanResult:
    budget = SETTINGS[setting][0]
    one = {"num_processes": 1, "num_processes_fingerprint": 1}
    return nnssl.plan(PHANTOM, ("2d",), budget="cpu", labelled=budget, setting=setting, **one)


def weights_of_setting(setting: str, trainer: str = "MeanTeacherTrainer") -> dict[str, torch.Tensor]:
    settings = {"supervised_share": 0.0, "ready_dice": 0.0} if trainer == "MeanTeacherTrainer" else {}
    short = {"num_iterations": 3, "device": "cpu", "overwrite": True, "settings": settings, "run_validation": False}
    result = nnssl.train(PHANTOM, "2d", 0, trainer=trainer, labelled=SETTINGS[setting][0], setting=setting, **short)
    assert result.settings.setting == setting
    return load(result.checkpoint)["network_weights"]


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of the files that plans and runs depend on, without the time stamps of blosc2 and logs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".json", ".b2nd", ".gz") and path.name != "dataset.json"
    }


def scans_of(folder: Path, domain: str) -> list[Path]:
    """Return all image and label files of a domain, in every folder of the raw data set."""
    about = json.loads((folder / "dataset.json").read_text())["cases"]
    names = {case for case, entry in about.items() if entry["domain"] == domain}
    return [file for file in folder.rglob("*.nii.gz") if file.name.split("_0000")[0].removesuffix(".nii.gz") in names]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_unseen_domain_changes_no_bit(setting: str, tmp_path: Path, monkeypatch) -> None:
    _, _, unseen = SETTINGS[setting]
    results = []
    for change in ("none", "altered", "deleted"):
        root = tmp_path / change
        root.mkdir()
        use(root, monkeypatch)
        folder = write_domains(root)
        files = scans_of(folder, unseen)
        assert len(files) == 3 * 2 + 1 + 1 * 2  # image and label of each labelled and test scan, unlabelled images
        for number, file in enumerate(files):
            if change == "deleted":
                file.unlink()
            elif change == "altered" and number % 2:
                write_scan(file, np.full((9, 9, 9), 1, np.int16))
            elif change == "altered":
                file.write_bytes(b"no scan")
        planned_setting(setting)
        results.append((files_below(root / "nnUNet_preprocessed"), weights_of_setting(setting)))
    (files, reference), *others = results
    assert any("2d_unlabelled" in name for name in files)
    for other_files, other_weights in others:
        assert other_files == files
        assert same(other_weights, reference)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "trainer"), [("umda:A:B", "MeanTeacherTrainer"), ("mdg:C", "SupervisedTrainer")])
def test_hidden_labels_of_a_setting_do_not_reach_the_weights(
    setting: str, trainer: str, tmp_path: Path, monkeypatch
) -> None:
    results = []
    for change in ("none", "deleted"):
        root = tmp_path / change
        root.mkdir()
        use(root, monkeypatch)
        folder = write_domains(root)
        raw = read_raw_dataset(PHANTOM)
        splits = setting_fold(Setting.parse(setting), raw)
        budget = SETTINGS[setting][0]
        cases = fold_cases([splits], 0, LabelBudget.parse(budget) if budget else None, raw.patients())
        about = json.loads((folder / "dataset.json").read_text())["cases"]
        target = {case for case, entry in about.items() if entry["domain"] in SETTINGS[setting][1]}
        hidden = {case for case in cases.unlabelled if case.startswith("labelled")}
        assert hidden
        assert not target & {*cases.labelled, *cases.validation}
        if change == "deleted":
            for case in hidden | target:
                (folder / "labelsTr" / f"{case}.nii.gz").unlink(missing_ok=True)
                (folder / "labelsTs" / f"{case}.nii.gz").unlink(missing_ok=True)
        assert planned_setting(setting).cases == cases
        copied = {path.name for path in (root / "nnUNet_preprocessed" / PHANTOM / "gt_segmentations").iterdir()}
        assert copied == {f"{case}.nii.gz" for case in (*cases.labelled, *cases.validation)}
        results.append((files_below(root / "nnUNet_preprocessed"), weights_of_setting(setting, trainer)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


@pytest.mark.slow
def test_a_label_of_the_source_changes_the_weights(tmp_path: Path, monkeypatch) -> None:
    use(tmp_path, monkeypatch)
    folder = write_domains(tmp_path)
    plan = planned_setting("umda:A:B")
    reference = weights_of_setting("umda:A:B")
    path = folder / "labelsTr" / f"{plan.cases.labelled[0]}.nii.gz"
    image = sitk.ReadImage(str(path))
    labels = sitk.GetArrayFromImage(image)
    changed = sitk.GetImageFromArray(np.where(labels == 1, 2, labels))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))
    planned_setting("umda:A:B")
    assert not same(weights_of_setting("umda:A:B"), reference)


def test_the_setting_of_hidden_labels_has_plans_of_its_own(tmp_path: Path, monkeypatch) -> None:
    use(tmp_path, monkeypatch)
    write_domains(tmp_path)
    few = {"budget": "cpu", "num_processes_fingerprint": 1, "run_preprocessing": False}
    whole = nnssl.plan(PHANTOM, ("2d",), **few)
    before = {path.name: path.read_bytes() for path in whole.plans_path.parent.glob("*.json")}
    names = [whole.plans_name]
    for setting in SETTINGS:
        plan = nnssl.plan(PHANTOM, ("2d",), labelled=SETTINGS[setting][0], setting=setting, **few)
        names.append(plan.plans_name)
        content = json.loads(plan.plans_path.read_text())
        assert sorted(content["nnssl_semi"]["labelled_cases"]) == sorted(plan.cases.labelled)
        assert content["nnssl_semi"]["setting"] == setting
    assert names == ["nnUNetPlans", "nnUNetPlans@umda-A-B", "nnUNetPlans@mdg-C@lab50pct"]
    after = {path.name: path.read_bytes() for path in whole.plans_path.parent.glob("*.json")}
    assert {name: after[name] for name in before} == before
