from __future__ import annotations

import math

import numpy as np
import pytest

from nnssl.comparison.efficiency import Curve, Worth, labels_needed, make_curve, worth_of, worth_sentence


def test_labels_between_budgets_are_interpolated_in_the_logarithm() -> None:
    means = np.array([0.5, 0.7, 0.8])
    found = labels_needed((5, 20, 80), means, np.array([0.5, 0.6, 0.7, 0.75, 0.8]))
    assert found == pytest.approx([5, 10, 20, 40, 80])  # halfway between 5 and 20 stands their geometric mean


def test_beyond_the_curve_there_is_no_number() -> None:
    found = labels_needed((5, 20), np.array([0.5, 0.7]), np.array([0.49, 0.71]))
    assert found.tolist() == [0.0, math.inf]


def test_more_labels_never_count_as_worse() -> None:
    # 0.7 and 0.5 become 0.6 each, and the smaller budget of the flat part counts
    found = labels_needed((5, 20, 80, 320), np.array([0.4, 0.7, 0.5, 0.8]), np.array([0.5, 0.6, 0.7]))
    assert found == pytest.approx([10, 20, 80])
    flat = labels_needed((5, 20), np.array([0.5, 0.5]), np.array([0.5]))
    assert flat == pytest.approx([5])


def naive_band(budgets, baseline, method, count=3000):
    rng = np.random.default_rng(9)
    found = []
    for _ in range(count):
        people = rng.integers(0, len(method), len(method))
        low, high = baseline[0][people].mean(), baseline[1][people].mean()
        score = method[people].mean()
        if score < low:
            found.append(0.0)
        elif score > high:
            found.append(math.inf)
        else:
            share = (score - low) / (high - low)
            found.append(budgets[0] * (budgets[1] / budgets[0]) ** share)
    found.sort()
    return found[int(0.025 * count)], found[int(0.975 * count)]


def data(patients: int = 30):
    rng = np.random.default_rng(4)
    person = rng.normal(0.6, 0.1, patients)
    noise = rng.normal(0, 0.02, (3, patients))
    return np.stack([person + noise[0], person + 0.2 + noise[1]]), person + 0.1 + noise[2]


def test_the_band_is_a_bootstrap_over_patients_that_keeps_the_pairs() -> None:
    baseline, method = data()
    found = worth_of((5, 20), baseline, method, higher_is_better=True)
    low, high = naive_band((5, 20), baseline, method)
    assert found.mean == pytest.approx(10, rel=0.1)
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.02)
    assert found.low > 8  # patients differ by 0.1, which pairs take out


def test_distances_are_turned_round() -> None:
    baseline, method = data()
    assert worth_of((5, 20), -baseline, -method, higher_is_better=False) == worth_of(
        (5, 20), baseline, method, higher_is_better=True
    )


def test_one_patient_has_no_band() -> None:
    found = worth_of((5, 20), np.array([[0.5], [0.7]]), np.array([0.6]), higher_is_better=True)
    assert found.mean == pytest.approx(10)
    assert math.isnan(found.low)


def test_the_curve_has_the_patients_that_all_runs_share() -> None:
    scores = {
        "S": [{"a": 0.5, "b": 0.5, "c": 0.0}, {"a": 0.7, "b": 0.7}],
        "F": [{"a": 0.6, "b": 0.6, "d": 1.0}, None],
    }
    curve = make_curve((5, 20), scores, "S", (200, None))
    assert curve is not None
    assert curve.patients == 2
    assert [mean and mean.mean for mean in curve.means["F"]] == pytest.approx([0.6, None])
    (worth,) = curve.worth
    assert (worth.method, worth.labelled, worth.unlabelled) == ("F", 5, 200)
    assert worth.labels == pytest.approx(10)


def test_no_curve_without_two_budgets_of_the_baseline_or_common_patients() -> None:
    assert make_curve((5, 20), {"S": [{"a": 0.5}, None], "F": [{"a": 0.5}, {"a": 0.5}]}, "S", (None, None)) is None
    assert make_curve((5, 20), {"S": [{"a": 0.5}, {"b": 0.5}]}, "S", (None, None)) is None


def test_sentences() -> None:
    curve = Curve((5, 20), {}, (), 9)
    assert worth_sentence(Worth("F", 5, 200, 11.24, 0.0, math.inf), curve, "S") == (
        "5 labels + 200 scans with F are worth 11.2 [fewer than 5, more than 20] labels of S"
    )
    assert worth_sentence(Worth("F", 5, None, math.inf, math.nan, math.nan), curve, "S") == (
        "5 labels with F are worth more than 20 labels of S"
    )
