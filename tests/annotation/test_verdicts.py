from __future__ import annotations

import numpy as np
import pytest

from nnssl.annotation.known_cases import Size
from nnssl.annotation.verdicts import FEWEST_CASES, Quality, calibrate, judge

NAMES = ("core", "rim")
LABELLED = [Size((1.0, 2.0), (1, 1)), Size((2.0, 4.0), (1, 2))]
NONE = calibrate({}, "a reason")
LIMITS = (0.85, 0.6)


def quality(dice: float | None, volumes=(1.5, 3.0), components=(1, 1)) -> Quality:
    return Quality((dice, None), 0.1, Size(volumes, components))


def decide(case: Quality, calibration=NONE, labelled=LABELLED):
    return judge({"a": case}, labelled, NAMES, calibration, LIMITS)["a"]


@pytest.mark.parametrize(
    ("case", "decision", "words"),
    [
        (quality(0.9), "accept", ""),
        (quality(0.85), "accept", ""),
        (quality(0.84), "look", "score 0.84 is below 0.85"),
        (quality(0.6), "look", "below 0.85"),
        (quality(0.59), "drop", "score 0.59 is below 0.6"),
        (quality(0.9, (1.5, 0.0)), "drop", "no voxel of rim"),
        (quality(0.9, (20.0, 3.0)), "look", "core has 20 ml"),
        (quality(0.9, (1.5, 0.1)), "look", "rim has 0.1 ml"),
        (quality(0.9, components=(1, 7)), "look", "rim has 7 components, labelled scans have at most 2"),
        (quality(0.9, components=(3, 6)), "accept", ""),
        (quality(None, (0.0, 0.0)), "look", "no member sees a structure"),
    ],
)
def test_decisions_by_hand(case, decision, words) -> None:
    judged = decide(case)
    assert judged.decision == decision
    assert words in judged.why
    assert bool(judged.why) == (decision != "accept")
    assert judged.expected_dice is None


def test_without_labelled_cases_only_the_score_decides() -> None:
    assert decide(quality(0.9, (99.0, 0.0), (50, 50)), labelled=[]).decision == "accept"


def test_too_few_cases_are_said_and_give_no_numbers() -> None:
    few = calibrate({str(n): (n / 10, n / 10) for n in range(FEWEST_CASES - 1)}, "one fold")
    assert few.correlation is None
    assert few.curve is None
    assert few.expected_dice(0.5) is None
    assert few.note.startswith(f"{FEWEST_CASES - 1} held-out labelled case(s), {FEWEST_CASES} are needed")
    assert few.note.endswith("(one fold)")


def test_a_calibrated_score_decides_by_the_dice_of_held_out_cases() -> None:
    """The score is too low throughout: a score of 0.5 goes with a Dice of 0.9."""
    cases = {str(n): (0.1 * n, 0.4 + 0.1 * n) for n in range(1, 7)} | {"7": (0.05, 0.4), "8": (0.0, 0.4)}
    worth = calibrate(cases)
    assert worth.correlation == pytest.approx(1, abs=0.01)
    assert worth.expected_dice(0.5) == pytest.approx(0.9)
    assert worth.expected_dice(0.55) == pytest.approx(0.95)
    assert worth.expected_dice(0.99) == pytest.approx(1.0)
    assert worth.expected_dice(0.0) == pytest.approx(0.4)
    judged = decide(quality(0.5), worth)
    assert (judged.decision, judged.expected_dice) == ("accept", pytest.approx(0.9))
    assert decide(quality(0.15), worth).decision == "drop"
    assert "expected Dice 0.55 is below 0.6" in decide(quality(0.15), worth).why


def test_expected_dice_never_falls_with_the_score() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(30)
    cases = {str(n): (float(score), float(np.clip(score + rng.normal(0, 0.2), 0, 1))) for n, score in enumerate(scores)}
    worth = calibrate(cases)
    values = [worth.expected_dice(score) for score in np.linspace(-0.1, 1.1, 50)]
    assert (np.diff(np.array(values, float)) >= -1e-12).all()
    assert values[-1] > values[0]


def test_a_score_that_orders_cases_wrongly_is_not_used() -> None:
    worth = calibrate({str(n): (n / 10, 1 - n / 10) for n in range(10)})
    assert worth.correlation == pytest.approx(-1)
    assert worth.expected_dice(0.5) is None
    assert "rank correlation of score and Dice -1.00" in worth.note


def test_the_note_tells_risk_and_coverage() -> None:
    worth = calibrate({str(n): (n / 10, n / 10) for n in range(1, 9)})
    # kept, the best first: 0.8 and 0.7; four of 0.65 mean; six of 0.55; all of 0.45
    for text in ("25 % → 0.250", "50 % → 0.350", "75 % → 0.450", "100 % → 0.550", "0.550 without a score"):
        assert text in worth.note
    assert worth.to_dict()["cases"]["3"] == {"score": 0.3, "dice": 0.3}
