from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from nnssl.comparison.statistics import (
    BOOTSTRAP_FROM,
    deciding_test,
    gap_closed,
    holm,
    judge,
    mean_interval,
    t_test_p,
    wilcoxon_p,
)

DICE = np.array([0.02, 0.05, -0.01, 0.08, 0.03, 0.06, 0.01, 0.04])


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def naive_t_interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def naive_bootstrap(values, count=4000):
    rng = np.random.default_rng(5)
    means = [rng.choice(values, len(values)).mean() for _ in range(count)]
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("n", [2, 5, 8, 19])
def test_below_twenty_patients_the_interval_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(0.02, 0.05, n)
    found = mean_interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(naive_t_interval(values))


@pytest.mark.parametrize("n", [20, 60])
def test_from_twenty_patients_on_the_interval_is_a_bootstrap_of_the_mean(n: int) -> None:
    values = np.random.default_rng(n).exponential(0.05, n)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(naive_bootstrap(values), abs=0.0015)
    assert found.low != pytest.approx(naive_t_interval(values)[0], abs=1e-6)
    assert mean_interval(values) == found  # the seed is fixed


def test_one_value_has_no_interval_and_equal_values_a_point() -> None:
    alone = mean_interval(np.array([0.3]))
    assert alone.mean == 0.3
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    for n in (5, 30):
        same = mean_interval(np.full(n, 0.1))
        assert (same.mean, same.low, same.high) == pytest.approx((0.1, 0.1, 0.1))


def test_wilcoxon_by_hand_and_as_scipy() -> None:
    # the negative value has rank 1: on each side two of the 2^8 patterns of signs are as extreme
    values = np.array([-0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08])
    assert wilcoxon_p(values) == pytest.approx(2 * 2 / 2**8)
    assert wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 2**5)
    many = np.random.default_rng(0).normal(0.01, 0.05, 40)
    assert wilcoxon_p(many) == stats.wilcoxon(many).pvalue


def test_no_difference_has_p_one_and_rounding_is_no_difference() -> None:
    for n in (1, 5, 60):
        for values in (np.zeros(n), np.full(n, 1e-17)):
            assert wilcoxon_p(values) == 1.0
            assert t_test_p(values) == 1.0


def test_t_test_as_scipy() -> None:
    other = np.random.default_rng(2).uniform(0.5, 0.9, len(DICE))
    assert t_test_p(DICE) == pytest.approx(stats.ttest_rel(other + DICE, other).pvalue)
    assert t_test_p(np.array([0.2])) == 1.0
    assert t_test_p(np.full(6, 0.1)) == 0.0


def test_holm_by_hand_and_as_statsmodels() -> None:
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, and 0.04 that may not be smaller than 0.06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    p = np.random.default_rng(3).uniform(0, 0.1, 7)
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize(
    ("patients", "methods", "test"),
    [(4, 1, ""), (5, 1, "t"), (6, 1, "wilcoxon"), (6, 2, "t"), (7, 3, "wilcoxon"), (10, 25, "wilcoxon"), (10, 26, "t")],
)
def test_wilcoxon_decides_where_it_can_reach_the_level(patients: int, methods: int, test: str) -> None:
    smallest = wilcoxon_p(np.arange(1.0, patients + 1))
    assert deciding_test(patients, methods) == test
    assert (holm([smallest] * methods)[0] < 0.05) == (test == "wilcoxon")


@pytest.mark.parametrize("n", [5, 10, 20, 60])
def test_planted_effects_are_found_in_both_directions(n: int) -> None:
    rng = np.random.default_rng(n)
    gain, nothing = rng.normal(0.08, 0.02, n), rng.normal(0, 0.02, n)
    nothing -= nothing.mean()
    found = judge([gain, -gain, nothing])
    assert [each.verdict for each in found] == ["helped", "hurt", "no evidence"]
    assert {each.exploratory for each in found} == {n < BOOTSTRAP_FROM}
    assert [each.verdict for each in judge([gain, -gain], higher_is_better=False)] == ["hurt", "helped"]


def test_both_the_interval_and_the_test_must_agree() -> None:
    one_large = np.array([0.5, *[0.001 * (-1) ** i for i in range(24)]])  # the mean is positive, most pairs are not
    assert judge([np.abs(one_large)])[0].verdict == "helped"
    assert judge([one_large])[0].verdict == "no evidence"
    ranks = np.array([*np.linspace(0.01, 0.02, 15), -1.0, -1.1])  # the test says better, the mean worse
    found = judge([ranks])[0]
    assert found.p_holm < 0.05
    assert found.verdict == "no evidence"
    (alone,), (family) = judge([DICE]), judge([DICE] + [np.random.default_rng(i).normal(0, 1, 8) for i in range(3)])
    assert alone.verdict == "helped"
    assert alone.interval == family[0].interval
    assert alone.p_holm < 0.05 < family[0].p_holm
    assert family[0].verdict == "no evidence"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_patients_are_no_evidence(n: int) -> None:
    (found,) = judge([np.full(n, 0.3) + np.arange(n) * 1e-3])
    assert (found.verdict, found.decided_by) == ("no evidence", "")


def test_the_gap_closed_by_hand() -> None:
    gap = np.array([0.10, 0.12, 0.09, 0.11, 0.10, 0.13])
    half = gap_closed(0.5 * gap, gap)
    assert (half.mean, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    none = gap_closed(gap, np.array([0.1, -0.1, 0.1, -0.1, 0.1, -0.05]))
    assert math.isnan(none.low)
    assert math.isnan(gap_closed(gap, np.zeros(6)).mean)


def test_below_twenty_patients_the_share_has_fiellers_interval() -> None:
    rng = np.random.default_rng(1)
    gap = rng.normal(0.2, 0.05, 9)
    gains = 0.4 * gap + rng.normal(0, 0.02, 9)
    found = gap_closed(gains, gap)
    assert found.low < gains.mean() / gap.mean() < found.high
    for end in (found.low, found.high):  # the test of this share just rejects
        assert stats.ttest_1samp(gains - end * gap, 0).pvalue == pytest.approx(0.05)


def test_from_twenty_patients_on_the_share_has_a_bootstrap_interval() -> None:
    rng = np.random.default_rng(1)
    gap = rng.normal(0.2, 0.05, 30)
    gains = 0.4 * gap + rng.normal(0, 0.05, 30)
    picks = rng.integers(0, 30, (4000, 30))
    ratios = gains[picks].mean(axis=1) / gap[picks].mean(axis=1)
    found = gap_closed(gains, gap)
    assert (found.low, found.high) == pytest.approx(np.percentile(ratios, [2.5, 97.5]), abs=0.01)


# ------------------------------------------------------------------- equal methods are called a gain in at most 5 %


def normal(rng, n):
    return rng.normal(0, 0.05, n)


def heavy(rng, n):
    return 0.02 * rng.standard_t(2, n)


def without_mean(rng, n):
    return 0.01 * rng.standard_cauchy(n)


def one_size(rng, n):
    return rng.choice([-0.05, 0.05], n)


def like_dice(rng, n):
    """Two methods of one law for each patient, in [0, 1]; each of them fails now and then."""
    patient = rng.beta(8, 2, n)
    both = np.clip(patient + rng.normal(0, 0.03, (2, n)), 0, 1)
    both = np.where(rng.random((2, n)) < 0.1, both * rng.random((2, n)), both)
    return both[1] - both[0]


def with_ties(rng, n):
    return rng.integers(-2, 3, n) * 0.01


NULLS = (normal, heavy, without_mean, one_size, like_dice, with_ties)


def gains(null, patients: int, simulations: int, methods: int = 1) -> float:
    """Return the share of simulations in which at least one of equal methods is called a gain."""
    rng = np.random.default_rng(patients)
    found = 0
    for _ in range(simulations):
        verdicts = [each.verdict for each in judge([null(rng, patients) for _ in range(methods)])]
        found += "helped" in verdicts
    return found / simulations


@pytest.fixture
def quick(monkeypatch):
    """Spare the garbage collection that statsmodels runs in every call."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.mark.parametrize("patients", [5, 10, 20, 60])
@pytest.mark.parametrize("null", [heavy, like_dice])
def test_equal_methods_are_rarely_called_a_gain(null, patients: int, quick, monkeypatch) -> None:
    monkeypatch.setattr("nnssl.comparison.statistics.RESAMPLES", 499)
    assert gains(null, patients, 200) <= 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("patients", [5, 10, 20, 60])
@pytest.mark.parametrize("null", NULLS)
def test_equal_methods_are_called_a_gain_in_at_most_five_percent(null, patients: int, quick) -> None:
    assert gains(null, patients, 1000) <= 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("patients", [5, 10, 20])
def test_so_are_three_equal_methods_together(patients: int, quick) -> None:
    assert gains(like_dice, patients, 1000, methods=3) <= 0.05


def test_a_test_without_verdict_rules_would_call_more_gains() -> None:
    """A bootstrap interval alone calls heavy-tailed equal methods a gain in more than 5 % of the simulations."""
    rng = np.random.default_rng(20)
    low = [np.percentile(d[rng.integers(0, 20, (499, 20))].mean(axis=1), 2.5)
           for d in (like_dice(rng, 20) for _ in range(1000))]  # fmt: skip
    assert np.mean(np.array(low) > 0) > 0.05
