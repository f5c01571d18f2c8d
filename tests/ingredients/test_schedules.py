from __future__ import annotations

import math

import pytest

from nnssl.ingredients.schedules import gaussian_rampup, sigmoid_rampup


@pytest.mark.parametrize("rampup", [gaussian_rampup, sigmoid_rampup])
def test_hand_values(rampup) -> None:
    assert rampup(0, 10) == pytest.approx(math.exp(-5))
    assert rampup(5, 10) == pytest.approx(math.exp(-1.25))
    assert rampup(10, 10) == rampup(99, 10) == 1.0
    assert rampup(3, 0) == rampup(3, -1) == 1.0
    assert rampup(-4, 10) == rampup(0, 10)


def test_rises_and_stays_in_its_range() -> None:
    values = [gaussian_rampup(step, 50) for step in range(80)]
    assert values == sorted(values)
    assert all(0.0 <= value <= 1.0 for value in values)
