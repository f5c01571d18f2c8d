"""A round of labelling on the phantom: train on three scans, ask for two, correct, accept, plan and train again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnssl
from nnssl.data.phantom import write_phantom
from nnssl.data.raw import read_raw_dataset
from nnssl.names import LABELS_TR

DATASET = "Dataset901_Phantom"
RUN = {"trainer": "SupervisedTrainer", "num_iterations": 3, "device": "cpu", "settings": {"learning_rate": 0.02}}


def truth_of(everything: Path, case: str) -> Path:
    """Return the true label of a scan: the same phantom, written with all of its labels."""
    return everything / LABELS_TR / f"{case}.nii.gz"


def hide(raw: Path, cases: list[str]) -> Path:
    """Turn labelled scans into unlabelled ones; return the label of the last one, outside of the data set."""
    (raw / "imagesUn").mkdir(exist_ok=True)
    for case in cases:
        aside = (raw / LABELS_TR / f"{case}.nii.gz").replace(raw.parents[1] / f"{case}.nii.gz")
        (raw / "imagesTr" / f"{case}_0000.nii.gz").rename(raw / "imagesUn" / f"{case}_0000.nii.gz")
    content = json.loads((raw / "dataset.json").read_text())
    left = len(list((raw / LABELS_TR).iterdir()))
    (raw / "dataset.json").write_text(json.dumps(content | {"numTraining": left}))
    return aside


def plan() -> None:
    nnssl.plan(901, ("2d",), hardware="cpu", num_processes=1, num_processes_fingerprint=1)


def folds(root: Path) -> list[dict]:
    return json.loads((root / "nnUNet_preprocessed" / DATASET / "splits_final.json").read_text())


def test_label_train_suggest_correct_accept_plan_train(tmp_path, monkeypatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = write_phantom(
        tmp_path / "nnUNet_raw", 901, labelled=8, unlabelled=0, test=0, shape=(16, 20, 20)
    )  # all labels, which a person would draw
    everything = tmp_path / "everything"
    shutil.copytree(raw, everything)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (raw / LABELS_TR).iterdir())
    hide(raw, names[3:])
    patients = read_raw_dataset(901).patients()

    plan()
    before = folds(tmp_path)
    nnssl.train(901, "2d", 0, run_validation=False, **RUN)
    suggested = nnssl.suggest(901, tmp_path / "next", count=2, strategy="class_entropy", device="cpu", mirroring=False)
    assert len(suggested.masks) == 2
    for mask, case in zip(suggested.masks, suggested.cases, strict=True):
        shutil.copy(truth_of(everything, case), mask)  # a person corrects the mask
    accepted = nnssl.accept(suggested.folder)
    assert accepted.accepted == sorted(suggested.cases)
    assert (accepted.labelled, accepted.unlabelled) == (5, 3)

    plan()
    after = folds(tmp_path)
    assert [fold["val"] for fold in after] == [fold["val"] for fold in before]
    for fold in after:
        held_out = {patients[case] for case in fold["val"]}
        new = {case for case in accepted.accepted if patients[case] not in held_out}
        assert new <= set(fold["train"])
        assert not set(accepted.accepted) & set(fold["unlabelled"])
    result = nnssl.train(901, "2d", 0, tag="second", **RUN)
    assert result.record.scores is not None
    # the second round counts, so that the noise of class_entropy is smaller
    second = nnssl.suggest(
        901,
        tmp_path / "third",
        count=1,
        models=[result.folder],
        strategy="class_entropy",
        device="cpu",
        mirroring=False,
    )
    assert json.loads((second.folder / "suggestion.json").read_text())["round"] == 1
    assert not set(second.cases) & set(accepted.accepted)
    assert nnssl.accept(suggested.folder).already == accepted.accepted


def test_a_data_set_of_one_labelled_scan_grows(tmp_path, monkeypatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = write_phantom(tmp_path / "nnUNet_raw", 901, labelled=2, unlabelled=1, test=0, shape=(16, 20, 20))
    first, second = sorted(path.name.removesuffix(".nii.gz") for path in (raw / LABELS_TR).iterdir())
    masks = tmp_path / "masks"
    masks.mkdir()
    hide(raw, [second]).rename(masks / f"{second}.nii.gz")
    plan()
    assert [(fold["train"], fold["val"]) for fold in folds(tmp_path)] == [([first], [first])]
    assert nnssl.accept(masks, dataset=901).accepted == [second]
    plan()
    assert [(fold["train"], fold["val"]) for fold in folds(tmp_path)] == [([second], [first])]


def commands_of_the_page() -> list[list[str]]:
    """Return the commands of the page on labelling, in their order, as words."""
    page = (Path(__file__).parents[2] / "docs" / "annotation.md").read_text(encoding="utf-8")
    block = re.search(r"## A round of labelling\n\n```bash\n(.*?)```", page, re.DOTALL)
    assert block
    return [words for line in block[1].splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.nightly
def test_the_commands_of_the_page_run_as_they_are_typed(tmp_path) -> None:
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    raw = write_phantom(tmp_path / "raw", 901, labelled=10, unlabelled=0, test=0, shape=(16, 20, 20))
    everything = tmp_path / "everything"
    shutil.copytree(raw, everything)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (raw / LABELS_TR).iterdir())
    hide(raw, names[4:])
    commands = commands_of_the_page()
    assert [words[0] for words in commands] == [
        "nnssl_plan_and_preprocess", "nnssl_train", "nnssl_suggest", "nnssl_accept", "nnssl_plan_and_preprocess",
        "nnssl_train",
    ]  # fmt: skip
    for words in commands:
        if words[0] == "nnssl_accept":  # a person has corrected the masks
            suggested = sorted((tmp_path / words[1]).glob("*.nii.gz"))
            assert len(suggested) == 5
            for mask in suggested:
                shutil.copy(everything / LABELS_TR / mask.name, mask)
        short = ["-num_iterations", "3", "--set", "learning_rate=0.02"] if words[0] == "nnssl_train" else []
        name = words[0].removeprefix("nnssl_")
        code = f"import sys; from nnssl_commands import {name}; sys.exit({name}())"
        done = subprocess.run([sys.executable, "-c", code, *words[1:], *short], cwd=tmp_path, text=True, check=False,
                              env={**os.environ, **folders}, capture_output=True)  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    content = json.loads((raw / "dataset.json").read_text())
    assert content["numTraining"] == len(list((raw / LABELS_TR).iterdir())) == 9
    assert len(list((raw / "imagesUn").iterdir())) == 1
    folder = tmp_path / "results" / DATASET / "SupervisedTrainer__nnUNetPlans__2d@round2" / "fold_0"
    assert (folder / "checkpoint_final.pth").is_file()
