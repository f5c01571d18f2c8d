from __future__ import annotations

import dataclasses
import json

import pytest

from nnssl.bundles.privacy import public_description, public_plans, public_record, without_paths
from nnssl.training.record import DataHashes, Machine, RunRecord, Scores, Session
from nnssl.training.settings import RunSettings

SECRET = "Smith"  # in every name and path that must not leave the machine


def test_the_description_has_what_prediction_needs_and_no_names() -> None:
    content = {
        "labels": {"background": 0, "core": 1}, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz",
        "numTraining": 3,
        "cases": {SECRET: {"patient": SECRET}}, "dataset": {SECRET: {"images": [f"/{SECRET}"]}}, "description": SECRET,
    }  # fmt: skip
    public = public_description(content)
    assert set(public) == {"labels", "channel_names", "file_ending", "numTraining"}
    assert public["labels"] == content["labels"]


def test_plans_keep_all_but_paths() -> None:
    run = {"num_iterations": 5, "start_from": f"/data/{SECRET}", "pseudo_labels": f"/data/{SECRET}"}
    plans = {"patch": [1], "nnssl_semi": {"divisor": 2.0, "run": run}}
    public = public_plans(plans)
    assert public == {
        "patch": [1],
        "nnssl_semi": {"divisor": 2.0, "run": {"num_iterations": 5, "start_from": "", "pseudo_labels": ""}},
    }
    assert run["start_from"] == f"/data/{SECRET}"
    assert public_plans({"patch": [1]}) == {"patch": [1]}


def test_the_record_keeps_scores_and_settings_but_no_paths_and_hashes(tmp_path) -> None:
    assert public_record(tmp_path) is None
    settings = RunSettings(num_iterations=5, seed=3, start_from=f"/{SECRET}", pseudo_labels=f"/{SECRET}")
    command = f"nnssl_train 5 2d 0 -pseudo_labels /data/{SECRET} --set lr=0.1"
    session = Session(command, "2026", machine=Machine(f"Linux-6.1-{SECRET}", "CPU", 2, "cpu"))
    record = RunRecord(
        "Dataset005_A", "FixMatchTrainer", "nnUNetPlans", "2d", "0", settings, sessions=(session,),
        data=DataHashes("1", "2", "3", "4", "5"), scores=Scores(0.8), supervised_key="key",
    )  # fmt: skip
    record.write(tmp_path)
    public = public_record(tmp_path)
    assert public is not None
    assert SECRET not in json.dumps(public)
    assert "data" not in public
    (tmp_path / "run.json").write_text(json.dumps(public))
    read = RunRecord.read(tmp_path)
    hidden = "nnssl_train 5 2d 0 -pseudo_labels PATH --set lr=0.1"
    assert read == dataclasses.replace(
        record,
        settings=RunSettings(num_iterations=5, seed=3),
        sessions=(Session(hidden, "2026", machine=Machine("Linux", "CPU", 2, "cpu")),),
        data=DataHashes(),
        supervised_key="",
    )


@pytest.mark.parametrize(
    ("command", "public"),
    [
        ("nnssl_train 5 2d 0 -tag a", "nnssl_train 5 2d 0 -tag a"),
        ("/usr/bin/nnssl_train 5", "PATH 5"),
        ("nnssl_train 5 -pseudo_labels '/data/Dr Smith/masks' -seed 1", "nnssl_train 5 -pseudo_labels PATH -seed 1"),
        (r"nnssl_train 5 -pseudo_labels C:\Smith -seed 1", "nnssl_train 5 -pseudo_labels PATH -seed 1"),
        (r"nnssl_train -pseudo_labels /data/Dr\ Smith/x", "nnssl_train -pseudo_labels PATH"),
        ("nnssl_train -pretrained_weights=../Smith/w.pth", "nnssl_train PATH"),
        ("nnssl_train -start_from ~Smith", "nnssl_train -start_from PATH"),
        ('nnssl_train -start_from "a b/c"x', "nnssl_train -start_from PATH"),
    ],
)
def test_paths_in_commands_are_hidden(command, public) -> None:
    assert without_paths(command) == public
