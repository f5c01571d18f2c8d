"""Statistics of paired differences: intervals, tests, verdicts, and the share of a gap that a method closes.

The rules were chosen by simulation (`tests/comparison/test_statistics.py`): where the two methods are equally good in
every patient, at most 5 % of the comparisons end in `helped`, for 5, 10, 20 and 60 patients and for heavy tails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Verdict = Literal["helped", "no evidence", "hurt"]
HELPED: Verdict = "helped"
NO_EVIDENCE: Verdict = "no evidence"
HURT: Verdict = "hurt"

LEVEL = 0.05
BOOTSTRAP_FROM = 20  # patients; fewer are an exploratory comparison
FEWEST = 5  # patients; with 4, equal methods give 4 differences of one sign in 1 of 16 comparisons
RESAMPLES = 9999
ROUNDING = 1e-12  # differences up to this size come from rounding


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `low` and `high` are NaN where the values allow no interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """What the paired differences of one method show.

    Attributes:
        interval: mean difference with its interval, in the unit of the metric.
        p: two-sided Wilcoxon signed-rank test.
        p_holm: the same, adjusted for the number of methods (Holm).
        p_t_holm: paired t test, adjusted likewise.
        decided_by: `wilcoxon`, or `t` where so few patients cannot bring Wilcoxon's test below 0.05; empty where no
            test can decide.
        exploratory: whether there are fewer than 20 patients.
        verdict: of the method.
    """

    interval: Interval
    p: float
    p_holm: float
    p_t_holm: float
    decided_by: str
    exploratory: bool
    verdict: Verdict


def judge(differences: Sequence[Floats], *, higher_is_better: bool = True) -> list[Judgement]:
    """Return what each method's differences from the baseline show.

    `helped` and `hurt` need an interval on one side of zero and an adjusted p below 0.05. Fewer than 5 patients are
    never evidence.

    Args:
        differences: for each method the values of shape (patients,), method minus baseline, finite; at least one.
        higher_is_better: False for distances.
    """
    wilcoxon = [wilcoxon_p(values) for values in differences]
    t_test = [t_test_p(values) for values in differences]
    judgements = []
    for values, p, p_holm, p_t_holm in zip(differences, wilcoxon, holm(wilcoxon), holm(t_test), strict=True):
        interval, decided_by = mean_interval(values), deciding_test(len(values), len(differences))
        decisive = {"wilcoxon": p_holm, "t": p_t_holm, "": 1.0}[decided_by] < LEVEL
        better, worse = (HELPED, HURT) if higher_is_better else (HURT, HELPED)
        verdict = NO_EVIDENCE
        if decisive and interval.low > 0:
            verdict = better
        elif decisive and interval.high < 0:
            verdict = worse
        exploratory = len(values) < BOOTSTRAP_FROM
        judgements.append(Judgement(interval, p, p_holm, p_t_holm, decided_by, exploratory, verdict))
    return judgements


def deciding_test(patients: int, methods: int) -> str:
    """Return the test that decides: `wilcoxon`, `t`, or an empty text for fewer than 5 patients.

    The smallest p of Wilcoxon's test with n patients is 2 / 2^n. Holm multiplies it by the number of methods.
    """
    if patients < FEWEST:
        return ""
    return "wilcoxon" if methods * 2.0 ** (1 - patients) < LEVEL else "t"


def mean_interval(values: Floats) -> Interval:
    """Return the mean of values with its 95 % interval.

    From 20 values on, the interval is the percentile bootstrap of the mean with 9,999 resamples and a fixed seed. (BCa
    intervals of heavy-tailed differences exclude zero too often.) Fewer values have the t interval, one has none.

    Args:
        values: of shape (patients,), finite, at least one.
    """
    from scipy import stats

    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(values) <= ROUNDING:
        return Interval(mean, mean, mean)
    if len(values) < BOOTSTRAP_FROM:
        t_interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        return Interval(mean, float(t_interval.low), float(t_interval.high))
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def wilcoxon_p(differences: Floats) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; differences of zero are left out, and 1 if all are zero.

    Args:
        differences: of shape (patients,), finite, at least one.
    """
    from scipy import stats

    values = np.where(np.abs(differences) <= ROUNDING, 0.0, differences)
    return float(stats.wilcoxon(values).pvalue) if values.any() else 1.0


def t_test_p(differences: Floats) -> float:
    """Return the two-sided p of the paired t test; 1 where there is no difference or a single patient.

    Args:
        differences: of shape (patients,), finite, at least one.
    """
    from scipy import stats

    if len(differences) < 2 or np.abs(differences).max() <= ROUNDING:
        return 1.0
    if np.ptp(differences) <= ROUNDING:
        return 0.0  # the same difference in every patient
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method, in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="holm")[1]]


def gap_closed(gains: Floats, gap: Floats) -> Interval:
    """Return the share of a gap that a method closes, mean(gains) / mean(gap), with its 95 % interval.

    From 20 patients on, the interval is the percentile bootstrap of the ratio over patients. With fewer, it holds every
    share g for which a t test of `gains - g * gap` does not reject zero (Fieller 1954). The interval is NaN where the
    interval of the gap itself holds zero, the mean as well where there is no gap.

    Args:
        gains: method minus baseline, of shape (patients,).
        gap: the run on all labels minus baseline, of the same patients.
    """
    from scipy import stats

    whole = mean_interval(gap)
    if abs(whole.mean) <= ROUNDING:
        return Interval(math.nan, math.nan, math.nan)
    share = float(gains.mean()) / whole.mean
    if not (whole.low > 0 or whole.high < 0):
        return Interval(share, math.nan, math.nan)
    if len(gap) < BOOTSTRAP_FROM:
        return Interval(share, *_fieller(gains, gap))
    found = stats.bootstrap(
        (gains, gap),
        _ratio_of_means,
        n_resamples=RESAMPLES,
        method="percentile",
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(share, float(found.low), float(found.high))


def _ratio_of_means(above: Floats, below: Floats, axis: int = -1) -> Floats:
    ratio: Floats = above.mean(axis=axis) / below.mean(axis=axis)
    return ratio


def _fieller(gains: Floats, gap: Floats) -> tuple[float, float]:
    """Return the roots g of (mean(gains) - g mean(gap))² = t² var(gains - g gap) / n, for a gap that is not zero."""
    from scipy import stats

    n = len(gap)
    factor = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) ** 2 / n
    covariance = np.cov(gains, gap)
    a = float(gap.mean() ** 2 - factor * covariance[1, 1])
    b = float(gains.mean() * gap.mean() - factor * covariance[0, 1])
    c = float(gains.mean() ** 2 - factor * covariance[0, 0])
    width = math.sqrt(max(b * b - a * c, 0.0))
    return (b - width) / a, (b + width) / a
