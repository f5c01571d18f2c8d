from __future__ import annotations

import math

import pytest

from nnssl.comparison.stability import ranks, spread


def test_spread_over_seeds_and_picks_by_hand() -> None:
    found = spread({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 9.0})
    assert found.seeds == pytest.approx(math.sqrt((2.0 + 8.0) / 2))  # variances 2 and 8 within the picks
    assert found.picks == pytest.approx(math.sqrt(((2 - 4.5) ** 2 + (7 - 4.5) ** 2) / 1))


def test_a_level_with_one_value_has_no_spread() -> None:
    one = spread({(0, 0): 1.0})
    assert math.isnan(one.seeds)
    assert math.isnan(one.picks)
    assert math.isnan(spread({(0, 0): 1.0, (0, 1): 2.0}).picks)
    assert math.isnan(spread({(0, 0): 1.0, (1, 0): 2.0}).seeds)


RUNS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_ranks_by_hand() -> None:
    scores = {"A": [0.5, 0.5, 0.5, 0.5], "B": [0.6, 0.6, 0.6, 0.4], "C": [0.7, 0.7, 0.55, 0.9]}
    found = ranks({name: dict(zip(RUNS, values, strict=True)) for name, values in scores.items()})
    assert found is not None
    assert found.order == ("C", "B", "A")
    assert found.first == {"A": 0.0, "B": 0.25, "C": 0.75}
    assert found.agreement == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)  # one of three pairs is turned round twice
    assert found.runs == 4


def test_of_distances_the_smallest_is_best() -> None:
    found = ranks({"A": {(0, 0): 1.0, (0, 1): 1.0}, "B": {(0, 0): 2.0, (0, 1): 2.0}}, higher_is_better=False)
    assert found is not None
    assert (found.order, found.first["A"]) == (("A", "B"), 1.0)


def test_runs_count_that_all_methods_share() -> None:
    assert ranks({"A": {(0, 0): 1.0, (0, 1): 2.0}, "B": {(0, 0): 1.0}}) is None
    assert ranks({"A": {(0, 0): 1.0, (0, 1): 2.0}}) is None
