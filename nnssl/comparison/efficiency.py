"""Label efficiency: how many labels does the baseline need for the score that a method has with fewer?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnssl.comparison.statistics import Floats, Interval, mean_interval

BAND = (2.5, 97.5)
BAND_RESAMPLES = 1999


@dataclass(frozen=True)
class Worth:
    """How many labelled patients a method's score is worth.

    Attributes:
        method: its name.
        labelled: number of labelled patients that the method had.
        unlabelled: number of unlabelled scans that it had, None where no file tells.
        labels: that the baseline needs for the same mean score; 0 stands for fewer than its smallest budget, infinity
            for more than its largest one.
        low: lower end of the 95 % band over patients, likewise.
        high: upper end.
    """

    method: str
    labelled: int
    unlabelled: int | None
    labels: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Mean scores over label budgets.

    Attributes:
        budgets: numbers of labelled patients, rising.
        means: method -> for each budget the mean over patients with its 95 % interval, None where it was not trained.
        worth: of each method and budget.
        patients: number of patients that all runs share.
    """

    budgets: tuple[int, ...]
    means: Mapping[str, tuple[Interval | None, ...]]
    worth: tuple[Worth, ...]
    patients: int


def labels_needed(budgets: Sequence[int], means: Floats, score: Floats) -> Floats:
    """Return the number of labels at which a baseline reaches a score; higher scores are better.

    The curve through the baseline's means is made rising first (isotonic regression): more labels never count as worse.
    Between two budgets it is linear in the logarithm of the number of labels.

    Args:
        budgets: numbers of labelled patients, rising, of length B.
        means: the baseline's means, of shape (B,).
        score: of shape (N,).

    Returns:
        Numbers of shape (N,): 0 below the curve, infinity above it. On a flat part of the curve, its smallest number.
    """
    from scipy.optimize import isotonic_regression

    rising = isotonic_regression(means).x
    kept = np.concatenate([[True], np.diff(rising) > 0])  # the first budget of each flat part
    logs = np.interp(score, rising[kept], np.log(np.asarray(budgets, dtype=float))[kept])
    needed: Floats = np.where(score < rising[0], 0.0, np.where(score > rising[-1], math.inf, np.exp(logs)))
    return needed


def worth_of(budgets: Sequence[int], baseline: Floats, method: Floats, *, higher_is_better: bool) -> Interval:
    """Return how many labels a method's mean score is worth, with a 95 % bootstrap band over patients.

    Every resample draws patients, for the baseline's curve and the method together, so that the pairs stay.

    Args:
        budgets: numbers of labelled patients, rising, of length B.
        baseline: scores of shape (B, patients).
        method: scores of the same patients, of shape (patients,).
        higher_is_better: False for distances.
    """
    sign = 1.0 if higher_is_better else -1.0
    curve, ours = sign * baseline, sign * method
    patients = len(ours)
    found = labels_needed(budgets, curve.mean(axis=1), np.array([ours.mean()]))[0]
    if patients < 2:
        return Interval(float(found), math.nan, math.nan)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, patients, (BAND_RESAMPLES, patients))
    curves, scores = curve[:, drawn].mean(axis=2).T, ours[drawn].mean(axis=1)
    resampled = [labels_needed(budgets, row, np.array([score]))[0] for row, score in zip(curves, scores, strict=True)]
    low, high = np.percentile(resampled, BAND, method="inverted_cdf")  # no mean of a number and infinity
    return Interval(float(found), float(low), float(high))


def make_curve(
    budgets: Sequence[int],
    scores: Mapping[str, Sequence[Mapping[str, float] | None]],
    baseline: str,
    unlabelled: Sequence[int | None],
    *,
    higher_is_better: bool = True,
) -> Curve | None:
    """Return the curve of the methods of a study, None where the baseline has fewer than two budgets.

    Args:
        budgets: numbers of labelled patients, rising.
        scores: method -> for each budget patient -> score, None where it was not trained.
        baseline: one of the methods.
        unlabelled: for each budget the number of unlabelled scans, None where no file tells.
        higher_is_better: False for distances.
    """
    trained = [number for number, found in enumerate(scores[baseline]) if found]
    everywhere = [set(found) for rows in scores.values() for found in rows if found]
    people = sorted(set.intersection(*everywhere)) if everywhere else []
    if len(trained) < 2 or not people:
        return None
    values = {
        name: [None if found is None else np.array([found[person] for person in people]) for found in rows]
        for name, rows in scores.items()
    }
    known = [budgets[number] for number in trained]
    base = np.stack([row for row in values[baseline] if row is not None])
    worth = []
    for name, rows in values.items():
        for budget, scans, row in zip(budgets, unlabelled, rows, strict=True):
            if name != baseline and row is not None:
                found = worth_of(known, base, row, higher_is_better=higher_is_better)
                worth.append(Worth(name, budget, scans, found.mean, found.low, found.high))
    means = {name: tuple(None if row is None else mean_interval(row) for row in rows) for name, rows in values.items()}
    return Curve(tuple(budgets), means, tuple(worth), len(people))


def worth_sentence(worth: Worth, curve: Curve, baseline: str) -> str:
    """Return a plain sentence: `5 labels + 200 scans with A are worth 11.2 labels [7.0, more than 20] of B`."""
    scans = "" if worth.unlabelled is None else f" + {worth.unlabelled} scans"
    parts = [_labels(value, curve) for value in (worth.labels, worth.low, worth.high)]
    band = "" if math.isnan(worth.low) else f" [{parts[1]}, {parts[2]}]"
    return f"{worth.labelled} labels{scans} with {worth.method} are worth {parts[0]}{band} labels of {baseline}"


def _labels(value: float, curve: Curve) -> str:
    if value == 0:
        return f"fewer than {curve.budgets[0]}"
    return f"more than {curve.budgets[-1]}" if math.isinf(value) else f"{value:.1f}"
