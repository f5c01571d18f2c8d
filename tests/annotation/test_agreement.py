from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from nnssl.annotation.agreement import (
    entropy,
    mean_entropy,
    mean_of,
    rank_correlation,
    risk_coverage,
)


def test_the_mean_leaves_out_what_is_not_there() -> None:
    assert mean_of([0.5, None, 1.0]) == 0.75
    assert mean_of([None]) is None


def test_entropy_is_0_for_certain_and_1_for_uniform_voxels() -> None:
    probs = np.array([[[1.0, 1 / 3, 0.5]], [[0.0, 1 / 3, 0.5]], [[0.0, 1 / 3, 0.0]]])
    expected = [0.0, 1.0, np.log(2) / np.log(3)]
    np.testing.assert_allclose(entropy(probs, regions=False)[0], expected, atol=1e-4)
    regions = np.array([[[0.5, 1.0, 0.5]], [[0.5, 0.0, 1.0]]])
    np.testing.assert_allclose(entropy(regions, regions=True)[0], [1.0, 0.0, 0.5], atol=1e-4)


def test_the_mean_entropy_is_of_the_foreground_or_of_all() -> None:
    voxels = np.array([0.2, 0.6, 0.4], np.float32)
    assert mean_entropy(voxels, np.array([True, True, False])) == pytest.approx(0.4)
    assert mean_entropy(voxels, np.zeros(3, bool)) == pytest.approx(0.4)
    assert mean_entropy(voxels, np.array([False, True, False])) == pytest.approx(0.6)


def test_the_rank_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(1)
    scores, truth = rng.integers(0, 5, 20).tolist(), rng.integers(0, 5, 20).tolist()
    assert rank_correlation(scores, truth) == pytest.approx(spearmanr(scores, truth).statistic)
    assert rank_correlation([1, 2, 3], [0.1, 0.5, 0.9]) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


def test_risk_and_coverage_by_hand() -> None:
    curve = risk_coverage([0.9, 0.5, 0.7], [1.0, 0.4, 0.9])
    assert curve.coverage == pytest.approx((1 / 3, 2 / 3, 1))
    assert curve.risk == pytest.approx((0.0, 0.05, 0.7 / 3))
    assert curve.area == pytest.approx(np.mean([0.0, 0.05, 0.7 / 3]))
    assert curve.area_ideal == pytest.approx(curve.area)
    assert curve.area_random == pytest.approx(0.7 / 3)


def test_scores_that_say_nothing_have_the_area_of_chance_and_wrong_ones_a_larger_one() -> None:
    dice = [0.2, 0.9, 0.6, 0.8]
    constant = risk_coverage([0.5] * 4, dice)
    assert constant.area == pytest.approx(constant.area_random)
    assert risk_coverage([-each for each in dice], dice).area > constant.area_random
