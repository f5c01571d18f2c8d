from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nnssl.annotation.strategies import Candidate, choose, random_order

SCANS = [
    Candidate("a", "p1", 0.9, {"core": 0.1, "rim": 0.9}),
    Candidate("b", "p1", 0.8, {"core": 0.2, "rim": 0.1}),
    Candidate("c", "p2", 0.7, {"core": 0.9}),
    Candidate("d", "p3", 0.1, {}),
]


def names(picks) -> list[str]:
    return [pick.case for pick in picks]


def test_a_random_order_takes_each_patient_once_first_and_depends_on_the_seed() -> None:
    patients = {f"case{n}": f"patient{n // 3}" for n in range(12)}
    order = random_order(patients, 5)
    assert sorted(order) == sorted(patients)
    for turn in range(3):
        assert len({patients[case] for case in order[4 * turn : 4 * turn + 4]}) == 4
    assert order == random_order(patients, 5)
    assert any(random_order(patients, seed) != order for seed in range(6, 9))
    firsts = Counter(random_order({"a": "a", "b": "b", "c": "c"}, seed)[0] for seed in range(300))
    assert all(60 < firsts[case] < 140 for case in "abc")


def test_random_keeps_the_order_and_says_what_has_no_foreground() -> None:
    picks = choose([SCANS[2], SCANS[3]], 2, "random", 0, 0)
    assert [(pick.case, pick.score, pick.why) for pick in picks] == [
        ("c", None, "random, with foreground"),
        ("d", None, "no foreground left"),
    ]
    (pick,) = choose([Candidate("x", "x")], 1, "random", 0, 0)
    assert pick.why == "random"


def test_entropy_takes_the_least_certain_scan_of_each_patient_first() -> None:
    picks = choose(SCANS, 4, "entropy", 0, 0)
    assert names(picks) == ["a", "c", "d", "b"]
    assert [pick.score for pick in picks] == [0.9, 0.7, 0.1, 0.8]


@pytest.mark.parametrize("seed", range(4))
def test_class_entropy_without_noise_goes_through_the_classes(seed) -> None:
    picks = choose(SCANS, 2, "class_entropy", seed, 60)  # the noise of round 60 is nothing
    best = {"core": "c", "rim": "a"}
    assert sorted(names(picks)) == ["a", "c"]
    for pick in picks:
        (name,) = (name for name, case in best.items() if case == pick.case)
        assert pick.why == f"entropy of {name}, with noise"
        assert pick.score == 0.9


def test_class_entropy_takes_every_scan_once_and_a_patient_again_only_at_the_end() -> None:
    picks = choose(SCANS, 9, "class_entropy", 1, 0)
    assert sorted(names(picks)) == ["a", "b", "c", "d"]
    assert names(picks)[3] in ("a", "b")  # the second scan of p1 comes last


def test_the_noise_of_class_entropy_decays_with_the_rounds() -> None:
    scans = [Candidate(f"s{n}", f"s{n}", 0.0, {"core": value}) for n, value in enumerate((0.2, 0.4, 0.6, 0.8))]

    def share_of_best(number: int) -> float:
        return np.mean([names(choose(scans, 1, "class_entropy", seed, number)) == ["s3"] for seed in range(300)])

    # the first choice of Gumbel noise of scale 1 on log entropy: proportional to the entropy, so 0.8 of 2.0
    assert share_of_best(0) == pytest.approx(0.4, abs=0.09)
    # of scale 1/2: proportional to its square, 0.64 of 1.2
    assert share_of_best(1) == pytest.approx(0.533, abs=0.09)
    assert share_of_best(6) > 0.98
