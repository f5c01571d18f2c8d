from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.journey import measure as module
from nnssl.journey.commands import Command, Ended, StepFailed
from nnssl.journey.match import Collected
from nnssl.journey.measure import measure, proposal_lines, propose, time_line
from nnssl.journey.state import Pace, Request

PACES = {"SupervisedTrainer": Pace(0.1, 10.0, 2 * 10**9, 0), "FixMatchTrainer": Pace(0.3, 12.0, 3 * 10**9, 0)}


def request(**changes: Any) -> Request:
    return Request({}, "FixMatchTrainer", changes.pop("budget", "laptop"), **changes)


def test_length_time_and_memory() -> None:
    """FixMatch trains half of its run without unlabelled scans: (0.1 + 0.3) / 2 s an iteration, 0.3 s for both."""
    made = propose(request(time_seconds=3100.0), PACES, scans_to_predict=10)
    assert made.num_iterations == 10_000  # 10,333, two digits long
    assert made.settings == {}
    training, once = 10_000 * 0.3, 12.0 * 8
    assert made.seconds == pytest.approx((0.8 * training + once / 2 + 20 * 2.0, 1.3 * training + once + 20 * 6.0))
    assert (made.memory_bytes, made.configuration, made.hardware) == (3 * 10**9, "2d", "cpu")
    assert proposal_lines(made)[2] == "time:    41 min to 69 min, from a measurement on this machine"


def test_a_short_run_takes_adamw_and_a_given_length_stays() -> None:
    made = propose(request(num_iterations=123, configuration="3d_fullres"), PACES, 1)
    assert (made.num_iterations, made.configuration) == (123, "3d_fullres")
    assert made.settings == {"optimizer": "adamw", "learning_rate": 0.001}


def test_the_least_and_the_most_length() -> None:
    assert propose(request(time_seconds=1.0), PACES, 1).num_iterations == 250
    assert propose(request(time_seconds=1e9), PACES, 1).num_iterations == 250_000


def test_without_a_measurement_the_time_is_unknown() -> None:
    made = propose(request(budget="workstation"), {}, 1)
    assert (made.seconds, made.configuration, made.hardware, made.num_iterations) == (None, "3d_fullres", None, 250)
    assert proposal_lines(made)[-1] == "time:    unknown: 25 iterations take more than 60 s here"


def test_the_time_that_it_took_stands_beside_the_expected_one() -> None:
    made = propose(request(num_iterations=1000), PACES, 0)
    assert time_line(made, 300.0) == "the steps took 5 min, expected were 5 min to 8 min"
    assert time_line(propose(request(), {}, 0), 80.0) == "the steps took 80 s"


def files(tmp_path: Path) -> Collected:
    names = [f"{part}/{number}.nii.gz" for part in ("images", "labels", "unlabelled", "test") for number in range(4)]
    return Collected({name: tmp_path / name.replace("/", "_") for name in names}, [])


def test_a_sample_is_measured_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fake(command: Command, folders: dict[str, str], log: Path, limit: float) -> Ended:
        seen.append(str(command).replace(str(tmp_path), ""))
        links = sorted(path.relative_to(log.parent / "scans").as_posix() for path in log.parent.glob("scans/*/*"))
        wanted = [f"{part}/{number}.nii.gz" for part in ("images", "labels", "unlabelled") for number in range(2)]
        assert links == wanted
        assert Path(folders["nnUNet_raw"]).parent == log.parent
        assert limit <= 120.0
        record = {"seconds_per_iteration": 0.2, "sessions": [{"peak_device_bytes": 5}, {"peak_device_bytes": 7}]}
        return Ended({"record": record}, 15.0, 9)

    monkeypatch.setattr(module, "run_command", fake)
    paces = measure(request(), files(tmp_path), tmp_path / "work")
    assert paces == dict.fromkeys(PACES, Pace(0.2, 10.0, 9, 7))
    assert seen[2:] == [
        "nnssl_train 1 2d 0 -tr SupervisedTrainer -device cpu -num_iterations 25 -tag measured",
        f"{seen[2].replace('Supervised', 'FixMatch')} --set supervised_share=0 ready_dice=0",
    ]
    assert not (tmp_path / "work").exists()


def test_a_training_that_is_too_slow_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_command", lambda *_: None)
    assert measure(request(), files(tmp_path), tmp_path / "work") == {}

    def broken(*_: object) -> None:
        raise StepFailed("broken", exit_code=3)

    monkeypatch.setattr(module, "run_command", broken)
    with pytest.raises(StepFailed, match="broken"):
        measure(request(), files(tmp_path), tmp_path / "work")
    assert not (tmp_path / "work").exists()
