from __future__ import annotations

from typing import Any

import pytest

from nnssl.journey import propose as module
from nnssl.journey.propose import Scans, proposal_lines, propose, time_line
from nnssl.journey.state import Cost, Measured, Pace, Request

PACES = {
    "SupervisedTrainer": Pace(0.1, 2.0, 10.0, 2 * 10**9, 0),
    "FixMatchTrainer": Pace(0.3, 3.0, 12.0, 3 * 10**9, 0),
}
COSTS = {"convert": Cost(5.0, 0.5), "plan_and_preprocess": Cost(9.0, 1.0), "predict": Cost(8.0, 2.0)}
MEASURED = Measured(PACES, COSTS)
SCANS = Scans(labelled=8, unlabelled=12, to_predict=10)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(module, "cpu_count", lambda: 2)


def request(**changes: Any) -> Request:
    return Request({}, changes.pop("trainer", "FixMatchTrainer"), changes.pop("budget", "laptop"), **changes)


def test_length_time_and_memory() -> None:
    """FixMatch trains half of its run without unlabelled scans: (0.1 + 0.3) / 2 s an iteration, 0.3 s for both.

    The validation of 2 and 3 s after every 250 iterations adds 0.02 s an iteration.
    """
    made = propose(request(time_seconds=3300.0), MEASURED, SCANS)
    assert made.num_iterations == 10_000  # 10,312, two digits long
    assert made.settings == {}
    training = 10_000 * 0.3 + 40 * (2.0 + 3.0) + 10.0 + 12.0
    validation = 2 * (2 - 1) * 2.0  # two of eight labelled scans are held out; the start holds the first one
    prediction = 2 * (8.0 + 10 * 2.0)
    preparation = 5.0 + 20 * 0.5 + 9.0 + 20 * 1.0
    assert made.seconds == pytest.approx(training + validation + prediction + preparation + 6 * 5.0)
    assert (made.memory_bytes, made.configuration, made.hardware) == (3 * 10**9, "2d", "cpu")
    assert proposal_lines(made)[2:] == [
        "time:    about 56 min (43 min to 73 min), from a measurement on this machine",
        "memory:  3.0 GB",
    ]


def test_methods_that_store_pseudo_labels_predict_the_unlabelled_scans_in_training() -> None:
    """Half of the run is supervised in both methods, so that their labelling is the difference."""
    paces = {**PACES, "SelfTrainingTrainer": PACES["FixMatchTrainer"]}
    other = propose(request(trainer="SelfTrainingTrainer", num_iterations=1000), Measured(paces, COSTS), SCANS)
    plain = propose(request(num_iterations=1000), MEASURED, SCANS)
    assert other.seconds is not None
    assert plain.seconds is not None
    assert other.seconds - plain.seconds == pytest.approx(12 * 2.0)


@pytest.mark.parametrize(("labelled", "validated"), [(2, 1), (4, 1), (5, 1), (6, 2), (11, 3)])
def test_scans_of_the_first_fold(labelled: int, validated: int) -> None:
    assert Scans(labelled, 1, 1).validated == validated


def test_a_short_run_takes_adamw_and_a_given_length_stays() -> None:
    made = propose(request(num_iterations=123, configuration="3d_fullres"), MEASURED, SCANS)
    assert (made.num_iterations, made.configuration) == (123, "3d_fullres")
    assert made.settings == {"optimizer": "adamw", "learning_rate": 0.001}


def test_the_least_and_the_most_length() -> None:
    assert propose(request(time_seconds=1.0), MEASURED, SCANS).num_iterations == 250
    assert propose(request(time_seconds=1e9), MEASURED, SCANS).num_iterations == 250_000


def test_without_a_measurement_the_time_is_unknown() -> None:
    made = propose(request(budget="workstation"), Measured(), SCANS)
    assert (made.seconds, made.configuration, made.hardware, made.num_iterations) == (None, "3d_fullres", None, 250)
    assert proposal_lines(made)[-1] == "time:    unknown: a few iterations take more than 180 s here"


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "getloadavg", lambda: (9.0, 5.0, 1.0), raising=False)
    line = proposal_lines(propose(request(), MEASURED, SCANS))[2]
    assert line.endswith("from a measurement on this machine, which is busy (load 5 on 2 cores)")


def test_the_time_that_it_took_stands_beside_the_expected_one() -> None:
    made = propose(request(num_iterations=1000), MEASURED, SCANS)
    assert time_line(made, 300.0) == "the steps took 5 min; about 8 min were expected"
    assert time_line(propose(request(), Measured(), SCANS), 80.0) == "the steps took 80 s"
