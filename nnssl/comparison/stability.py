"""Seeds and picks of labelled patients: how much do they move a difference, and the order of methods?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Key = tuple[int, int]  # pick of the labelled patients, seed


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a mean difference; NaN where a level has one value only.

    Attributes:
        seeds: over seeds with the same labelled patients.
        picks: over picks, of the means over seeds.
    """

    seeds: float
    picks: float


@dataclass(frozen=True)
class Ranks:
    """How stable the order of the methods is over seeds and picks.

    Attributes:
        order: methods by their mean score, the best first.
        runs: number of seeds and picks that all methods share.
        first: method -> share of these in which it is the best.
        agreement: mean of Kendall's tau between the order of each run and the order of the means, in [-1, 1].
    """

    order: tuple[str, ...]
    runs: int
    first: Mapping[str, float]
    agreement: float


def spread(differences: Mapping[Key, float]) -> Spread:
    """Return the spread of mean differences over seeds and over picks.

    Args:
        differences: (pick, seed) -> mean difference over patients.
    """
    by_pick: dict[int, list[float]] = {}
    for (pick, _), value in differences.items():
        by_pick.setdefault(pick, []).append(value)
    within = [np.var(values, ddof=1) for values in by_pick.values() if len(values) > 1]
    means = [float(np.mean(values)) for values in by_pick.values()]
    return Spread(
        math.sqrt(np.mean(within)) if within else math.nan,
        float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
    )


def ranks(scores: Mapping[str, Mapping[Key, float]], *, higher_is_better: bool = True) -> Ranks | None:
    """Return how stable the order of methods is; None for a single method or fewer than two common runs.

    Args:
        scores: method -> (pick, seed) -> mean score over patients.
        higher_is_better: False for distances.
    """
    from scipy.stats import kendalltau

    common = sorted(set.intersection(*(set(found) for found in scores.values()))) if scores else []
    if len(scores) < 2 or len(common) < 2:
        return None
    sign = 1.0 if higher_is_better else -1.0
    names = list(scores)
    table = sign * np.array([[scores[name][key] for key in common] for name in names])  # (methods, runs)
    means = table.mean(axis=1)
    best = table.argmax(axis=0)
    taus = [kendalltau(column, means).statistic for column in table.T]
    finite = [float(tau) for tau in taus if math.isfinite(tau)]
    order = tuple(names[number] for number in np.argsort(-means, kind="stable"))
    first = {name: float((best == number).mean()) for number, name in enumerate(names)}
    return Ranks(order, len(common), first, float(np.mean(finite)) if finite else math.nan)
