"""How far predictions of one scan agree, and what such a score is worth: plain functions on arrays.

No reference is needed for the score of a scan. Roy et al. 2019 (Bayesian QuickNAT) take the mean pairwise Dice of
several predictions of a scan as its quality. Risk and coverage follow Geifman & El-Yaniv 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there, None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def entropy(probs: FloatArray, regions: bool) -> NDArray[np.float32]:
    """Return the entropy of each voxel (*S), in [0, 1]: 0 is certain, 1 is a uniform distribution.

    Args:
        probs: (C, *S), probabilities of classes, or of regions that may overlap.
        regions: the channels are regions; the entropy is then the mean of their binary entropies.
    """
    p = np.clip(probs, 1e-7, 1)
    if not regions:
        return (-(p * np.log(p)).sum(0) / math.log(len(p))).astype(np.float32)
    q = np.clip(1 - probs, 1e-7, 1)
    return (-(p * np.log(p) + q * np.log(q)).mean(0) / math.log(2)).astype(np.float32)


def mean_entropy(voxels: FloatArray, where: NDArray[np.bool_]) -> float:
    """Return the mean of the entropy over the voxels `where`, or over all voxels where there are none."""
    return float(voxels[where].mean() if where.any() else voxels.mean())


def rank_correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, in [-1, 1]; None for fewer than three cases or where one side is constant."""
    from scipy.stats import rankdata

    if len(scores) < 3 or len(set(scores)) < 2 or len(set(truth)) < 2:
        return None
    return float(np.corrcoef(rankdata(scores), rankdata(truth))[0, 1])


@dataclass(frozen=True)
class RiskCoverage:
    """How the mean error falls when the worst-scored cases are left out.

    Attributes:
        coverage: share of the cases that are kept, best scores first: 1/n, 2/n, …, 1.
        risk: mean of 1 - Dice over the kept cases.
        area: mean of `risk`, the area under the curve.
        area_random: of scores that say nothing.
        area_ideal: of scores that order the cases as their Dice does.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float
    area_random: float
    area_ideal: float


def risk_coverage(scores: Sequence[float], dice: Sequence[float]) -> RiskCoverage:
    """Return the risk-coverage curve of scores, the higher the better; equal scores are averaged over their orders.

    Args:
        scores: one a case.
        dice: true Dice of the cases, in [0, 1].
    """
    error = 1 - np.asarray(dice, float)
    mean_error = {score: float(error[np.asarray(scores) == score].mean()) for score in set(scores)}
    ordered = [mean_error[score] for score in sorted(scores, reverse=True)]
    count = np.arange(1, len(error) + 1)
    risk = np.cumsum(ordered) / count
    ideal = np.cumsum(np.sort(error)) / count
    return RiskCoverage(
        tuple((count / len(error)).tolist()),
        tuple(risk.tolist()),
        float(risk.mean()),
        float(error.mean()),
        float(ideal.mean()),
    )
