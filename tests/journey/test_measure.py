from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnssl.journey import measure as module
from nnssl.journey.api import CONFIGURATIONS
from nnssl.journey.commands import Command, Ended, StepFailed
from nnssl.journey.match import Collected
from nnssl.journey.measure import cost_of, measure
from nnssl.journey.state import Cost, Pace, Request

EPOCH = {"iteration": 40, "seconds_per_iteration": 0.3, "steady_seconds_per_iteration": 0.2, "validation_seconds": 2.0}
STEPS = ["convert", "plan_and_preprocess", "train", "train", "predict"]


def request(**changes: Any) -> Request:
    return Request({}, "FixMatchTrainer", changes.pop("budget", "laptop"), **changes)


def files(tmp_path: Path) -> Collected:
    names = [f"{part}/{number}.nii.gz" for part in ("images", "labels", "unlabelled", "test") for number in range(6)]
    return Collected({name: tmp_path / name.replace("/", "_") for name in names}, [])


def write_at(file: Path, seconds: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    os.utime(file, (seconds, seconds))
    return file


class Commands:
    """Takes the place of the commands; a scan takes 3 s in conversion and 2 s in prediction, training 20 s in all."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen = root, list[str]()
        self.too_slow = ""

    def __call__(self, command: Command, folders: dict[str, str], log: Path, limit: float) -> Ended | None:
        self.seen.append(str(command).replace(str(self.root), ""))
        if command.name == self.too_slow:
            return None
        assert limit == (module.LIMIT_SECONDS if command.name == "train" else module.PREPARE_SECONDS)
        assert Path(folders["nnUNet_raw"]).parent == log.parent
        if command.name == "convert":
            for number in range(6):
                write_at(Path(folders["nnUNet_raw"]) / "Dataset001_Sample" / "imagesUn" / f"{number}_0000.nii.gz",
                         1000.0 + 3 * number)  # fmt: skip
        elif command.name == "plan_and_preprocess":
            write_at(Path(folders["nnUNet_preprocessed"]) / "d" / "2d" / "a.b2nd", 1000.0)
        elif command.name == "train":
            fold = log.parent / command.arguments[4]
            fold.mkdir()
            (fold / "progress.jsonl").write_text(json.dumps(EPOCH) + "\n")
            record = {"sessions": [{"peak_device_bytes": 5}, {"peak_device_bytes": 7}]}
            return Ended({"folder": str(fold), "record": record}, 20.0, 9)
        else:
            masks = [
                str(write_at(log.parent / "masks" / f"{number}.nii.gz", 1000.0 + 2 * number)) for number in range(4)
            ]
            return Ended({"masks": masks}, 20.0, 9)
        return Ended({}, 30.0, 9)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path)
    monkeypatch.setattr(module, "run_command", made)
    return made


def test_a_sample_is_measured_and_leaves_nothing(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[str] = []
    link = Collected.link

    def seen(self: Collected, folder: Path) -> None:
        links.extend(self.files)
        link(self, folder)

    monkeypatch.setattr(Collected, "link", seen)
    measured = measure(request(), files(tmp_path), tmp_path / "sample")
    pace = Pace(0.2, 2.0, 20.0 - 40 * 0.2 - 2.0, 9, 7)
    assert measured.paces == {"SupervisedTrainer": pace, "FixMatchTrainer": pace}
    assert measured.costs == {
        "convert": Cost(30.0 - 6 * 3.0, 3.0),
        "plan_and_preprocess": Cost(30.0, 0.0),
        "predict": Cost(20.0 - 4 * 2.0, 2.0),
    }
    assert links == [f"{part}/{number}.nii.gz" for part, count in (("images", 2), ("labels", 2), ("unlabelled", 4))
                     for number in range(count)]  # fmt: skip
    train = "nnssl_train 1 2d 0 -tr {} -device cpu -num_iterations {} -tag measured"
    stage = f"{train.format('FixMatchTrainer', 62)} --set supervised_share=0 ready_dice=0"  # 20 s / (0.2 s x 1.6)
    images = "/sample/nnUNet_raw/Dataset001_Sample/imagesUn"
    predict = f"nnssl_predict -i {images} -o /sample/masks -d 1 -tr SupervisedTrainer -device cpu"
    assert commands.seen[2:] == [train.format("SupervisedTrainer", 40), stage, predict]
    assert not (tmp_path / "sample").exists()


@pytest.mark.parametrize(("slow", "paces", "costs"), [
    ("convert", 0, 0), ("plan_and_preprocess", 0, 1), ("train", 0, 2), ("predict", 2, 2)
])  # fmt: skip
def test_what_follows_a_command_that_is_too_slow_is_not_measured(
    tmp_path: Path, commands: Commands, slow: str, paces: int, costs: int
) -> None:
    commands.too_slow = slow
    measured = measure(request(), files(tmp_path), tmp_path / "sample")
    assert (len(measured.paces), len(measured.costs)) == (paces, costs)
    assert len(commands.seen) == STEPS.index(slow) + 1
    assert not (tmp_path / "sample").exists()


def test_a_method_that_is_too_slow_has_the_pace_of_the_baseline_times_its_relative_cost(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FixMatch takes 1.6 times the time and 1.96 times the memory of the baseline in 2-D."""

    def slow(command: Command, *rest: Any) -> Ended | None:
        return None if "FixMatchTrainer" in command.arguments else commands(command, *rest)

    monkeypatch.setattr(module, "run_command", slow)
    measured = measure(request(), files(tmp_path), tmp_path / "sample")
    assert measured.paces["FixMatchTrainer"] == Pace(1.6 * 0.2, 2.0, 10.0, round(1.96 * 9), round(1.96 * 7))
    assert set(measured.costs) == {"convert", "plan_and_preprocess", "predict"}


def test_a_command_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise StepFailed("broken", exit_code=3)

    monkeypatch.setattr(module, "run_command", broken)
    with pytest.raises(StepFailed, match="broken"):
        measure(request(), files(tmp_path), tmp_path / "sample")
    assert not (tmp_path / "sample").exists()


def test_a_method_is_measured_for_about_twenty_seconds() -> None:
    """FixMatch takes 1.6 times as long as the baseline in 2-D."""
    assert module._iterations("FixMatchTrainer", "2d", 20 / 1.6 / 50.5) == 50
    assert module._iterations("FixMatchTrainer", "2d", 0.001) == 100
    assert set(module.ITERATIONS) == set(CONFIGURATIONS)
    assert module._iterations("DTLPTrainer", "3d_fullres", 5.0) == 12


def test_the_cost_of_a_scan_is_the_time_between_two_files(tmp_path: Path) -> None:
    written = [write_at(tmp_path / str(number), 10.0 * number) for number in range(3)]
    assert cost_of(100.0, written) == Cost(70.0, 10.0)
    assert cost_of(100.0, written, readings=2) == Cost(40.0, 20.0)
    assert cost_of(15.0, written) == Cost(0.0, 5.0)  # old files among them: the command cannot take less than its scans
    assert cost_of(8.0, written[:1]) == Cost(8.0, 0.0)
    assert cost_of(8.0, []) == Cost(8.0, 0.0)
