from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nnssl.comparison.pairing import pair
from nnssl.comparison.scores import Scores
from nnssl.errors import DataError

NAN = math.nan
EMPTY, SPURIOUS = {"Dice": NAN, "n_ref": 0, "n_pred": 0}, {"Dice": 0.0, "n_ref": 0, "n_pred": 7}


def scores(**cases) -> Scores:
    """Return scores of cases whose structures are numbered from 1; a number is a Dice."""
    full = {
        case: {str(i): row if isinstance(row, dict) else {"Dice": row} for i, row in enumerate(rows, start=1)}
        for case, rows in cases.items()
    }
    labels = {label for case in full.values() for label in case}
    return Scores((Path("folder"),), full, {label: f"label {label}" for label in sorted(labels)}, {})


def paired(baseline, method, patients=None, metric="Dice"):
    sides = [side if isinstance(side, list) else [side] for side in (baseline, method)]
    return pair(*sides, metric, patients or {}, "M")


def naive(baseline: Scores, method: Scores, patients) -> dict[str, float]:
    """Return patient -> difference, by loops over complete scores."""
    found: dict[str, list[float]] = {}
    for case in baseline.cases:
        if case in method.cases:
            each = [method.cases[case][label]["Dice"] - baseline.cases[case][label]["Dice"] for label in "12"]
            found.setdefault(patients.get(case, case), []).append(sum(each) / 2)
    return {patient: sum(values) / len(values) for patient, values in found.items()}


def test_against_loops() -> None:
    rng = np.random.default_rng(0)
    base = scores(**{f"c{i}": list(rng.uniform(0, 1, 2)) for i in range(12)})
    ours = scores(**{f"c{i}": list(rng.uniform(0, 1, 2)) for i in range(3, 15)})
    patients = {f"c{i}": f"p{i // 4}" for i in range(10)}
    found = paired(base, ours, patients)
    expected = naive(base, ours, patients)
    assert dict(zip(found.patients, found.differences, strict=True)) == pytest.approx(expected)
    assert list(found.patients) == sorted(expected)
    assert found.only_baseline == ("c0", "c1", "c2")
    assert found.only_method == ("c12", "c13", "c14")


def test_cases_of_a_patient_are_averaged_first() -> None:
    base, ours = scores(a=[0.5], b=[0.5], c=[0.5]), scores(a=[0.6], b=[0.8], c=[0.1])
    found = paired(base, ours, {"a": "P", "b": "P"})
    assert found.patients == ("P", "c")
    assert found.differences == pytest.approx([0.2, -0.4])
    assert (found.baseline, found.method) == (pytest.approx([0.5, 0.5]), pytest.approx([0.7, 0.1]))


def test_a_structure_in_neither_mask_does_not_count() -> None:
    found = paired(scores(a=[0.5, EMPTY], b=[EMPTY, EMPTY]), scores(a=[0.7, EMPTY], b=[EMPTY, EMPTY]))
    assert found.differences == pytest.approx([0.2])
    assert found.without_value == ("b",)
    assert (found.half_empty, found.dropped) == (0, 0)
    assert found.by_structure["1"] == pytest.approx([0.2])
    assert len(found.by_structure["2"]) == 0


@pytest.mark.parametrize(("side", "sign"), [(0, -1), (1, 1)])
def test_drawing_what_is_not_there_costs_the_whole_dice(side: int, sign: int) -> None:
    sides = [scores(a=[0.5, SPURIOUS]), scores(a=[0.5, SPURIOUS])]
    sides[side] = scores(a=[0.5, EMPTY])
    found = paired(*sides)
    assert found.differences == pytest.approx([sign * 0.5])
    assert found.by_structure["2"] == pytest.approx([sign])
    assert (found.half_empty, found.dropped) == (1, 0)


def test_an_empty_mask_has_distance_zero() -> None:
    empty, spurious = ({"hd95_mm": value, "n_ref": 0, "n_pred": n} for value, n in ((NAN, 0), (90.0, 7)))
    assert paired(scores(a=[empty]), scores(a=[spurious]), metric="hd95_mm").differences == pytest.approx([90.0])


def test_other_missing_values_leave_the_pair_out() -> None:
    found = paired(scores(a=[0.5, 0.5], b=[0.1]), scores(a=[0.9, NAN], b=[NAN]))
    assert found.patients == ("a",)
    assert found.differences == pytest.approx([0.4])
    assert found.dropped == 2
    assert found.without_value == ("b",)


def test_seeds_are_averaged_before_patients() -> None:
    base = [scores(a=[0.4], b=[0.4]), scores(a=[0.6], b=[0.6])]
    seeds = [scores(a=[0.5], b=[0.9]), scores(a=[0.7], b=[0.5]), scores(a=[0.9], b=[0.4])]
    found = paired(base, seeds)
    assert found.differences == pytest.approx([0.2, 0.1])
    assert found.by_run == pytest.approx([0.2, 0.1, 0.15])


def test_a_seed_counts_in_the_cases_that_it_has() -> None:
    found = paired(scores(a=[0.5], b=[0.5]), [scores(a=[0.7], b=[0.6]), scores(a=[0.9])], {"a": "P", "b": "P"})
    assert found.differences == pytest.approx([(0.3 + 0.1) / 2])
    assert found.by_run == pytest.approx([0.15, 0.4])


def test_a_seed_that_draws_nothing_is_right_beside_one_that_does() -> None:
    found = paired(scores(a=[EMPTY]), [scores(a=[EMPTY]), scores(a=[SPURIOUS])])
    assert found.differences == pytest.approx([-0.5])


def test_only_common_structures_are_compared() -> None:
    assert paired(scores(a=[0.5, 0.1]), scores(a=[0.7])).differences == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("method", "metric", "words"),
    [
        (scores(z=[0.5]), "Dice", "no case in common"),
        (Scores((Path("f"),), {"a": {"9": {"Dice": 1.0}}}, {"9": "label 9"}, {}), "Dice", "no structure in common"),
        (scores(a=[NAN]), "Dice", "no value of Dice in common"),
        (scores(a=[0.5]), "hd95_mm", "no hd95_mm"),
    ],
)
def test_nothing_in_common_is_an_error(method: Scores, metric: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        paired(scores(a=[0.5]), method, metric=metric)
