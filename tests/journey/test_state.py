from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nnssl.errors import EnvironmentProblem, NnsslError, UsageError
from nnssl.journey.state import STATE_FILE, Cost, Measured, Pace, Proposal, Request, State, check_same, only_process

REQUEST = Request({"images/a.nii.gz": "/x/a.nii.gz"}, "FixMatchTrainer", "laptop", options=("-channel", "CT"))


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert State.read(tmp_path) is None
    proposal = Proposal("2d", "cpu", "FixMatchTrainer", 300, {"optimizer": "adamw"}, 2.5, 5, 0)
    measured = Measured({"FixMatchTrainer": Pace(0.1, 1.0, 2.0, 3, 4)}, {"convert": Cost(1.0, 0.5)})
    state = State(REQUEST, 7, "Mine", measured, proposal, ["convert"], ["convert"])
    state.write(tmp_path)
    assert State.read(tmp_path) == state
    assert state.dataset == "Dataset007_Mine"
    State(REQUEST, 7, "Mine").write(tmp_path)
    assert State.read(tmp_path) == State(REQUEST, 7, "Mine")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"request": 3, "proposal": null, "measured": null}', '{"measured": {"paces": 3}}']
)
def test_another_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(NnsslError) as caught:
        State.read(tmp_path)
    assert caught.value.exit_code in (2, 3)
    assert "choose another folder with -o" in caught.value.run


def test_the_cost_of_a_command_grows_with_its_scans() -> None:
    assert Cost(1.0, 0.5).of(3) == 2.5


def test_another_request_needs_another_folder(tmp_path: Path) -> None:
    check_same(REQUEST, dataclasses.replace(REQUEST), tmp_path)
    other = dataclasses.replace(REQUEST, trainer="MeanTeacherTrainer", files={})
    with pytest.raises(UsageError) as caught:
        check_same(REQUEST, other, tmp_path)
    assert caught.value.why == "trainer: FixMatchTrainer before, MeanTeacherTrainer now\nthe files differ"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with only_process(tmp_path), pytest.raises(EnvironmentProblem, match="another nnssl_run"), only_process(tmp_path):
        pass
    with only_process(tmp_path):
        pass
