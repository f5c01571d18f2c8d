"""The result of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnssl.comparison.pairing import Pairs
from nnssl.comparison.scores import Metric
from nnssl.comparison.statistics import Interval, Judgement, Verdict


@dataclass(frozen=True)
class MethodComparison:
    """One method beside the baseline.

    Attributes:
        name: of the method.
        folders: where its summaries stand.
        pairs: the paired values, patient by patient.
        judgement: interval, tests and verdict.
        by_structure: name of a structure -> its mean difference with interval, and the number of patients; no verdict.
        by_metric: metric -> likewise, for the metrics that both sides have.
        gap_closed: share of the gap to the run on all labels, None without such a run.
        control: name and mean difference of the regime control, None without one.
    """

    name: str
    folders: tuple[str, ...]
    pairs: Pairs
    judgement: Judgement
    by_structure: dict[str, tuple[Interval, int]]
    by_metric: dict[str, tuple[Interval, int]]
    gap_closed: Interval | None = None
    control: tuple[str, float] | None = None

    @property
    def verdict(self) -> Verdict:
        """`helped`, `no evidence` or `hurt`."""
        return self.judgement.verdict

    @property
    def mean(self) -> float:
        """Mean of the method over patients."""
        return float(self.pairs.method.mean())

    @property
    def seed_sd(self) -> float:
        """Sample standard deviation over seeds of the mean difference, NaN for a single run."""
        return float(np.std(self.pairs.by_run, ddof=1)) if len(self.pairs.by_run) > 1 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        judged, pairs = self.judgement, self.pairs
        return {
            "name": self.name,
            "mean_difference": judged.interval.mean,
            "ci_low": judged.interval.low,
            "ci_high": judged.interval.high,
            "p_holm": judged.p_holm,
            "patients": len(pairs.patients),
            "verdict": judged.verdict,
            "exploratory": judged.exploratory,
            "decided_by": judged.decided_by,
            "p": judged.p,
            "p_t_holm": judged.p_t_holm,
            "mean": self.mean,
            "baseline_mean": float(pairs.baseline.mean()),
            "runs": len(pairs.by_run),
            "run_mean_differences": list(pairs.by_run),
            "seed_sd": self.seed_sd,
            "structures": {name: _interval(*found) for name, found in self.by_structure.items()},
            "metrics": {name: _interval(*found) for name, found in self.by_metric.items()},
            "gap_closed": None if self.gap_closed is None else vars(self.gap_closed),
            "control": None if self.control is None else {"name": self.control[0], "mean_difference": self.control[1]},
            "cases_missing": list(pairs.only_baseline),
            "cases_missing_in_baseline": list(pairs.only_method),
            "cases_without_value": list(pairs.without_value),
            "differences": dict(zip(pairs.patients, map(float, pairs.differences), strict=True)),
            "folders": list(self.folders),
        }


@dataclass(frozen=True)
class Comparison:
    """Methods beside a baseline.

    Attributes:
        baseline: its name.
        baseline_mean: mean of the baseline over its patients.
        metric: key of the metric.
        described: title and unit of the metric, and whether higher is better.
        methods: in the order given.
        all_labels: name and comparison of the run on all labels, None without one.
        notes: what a reader must know, one line each.
    """

    baseline: str
    baseline_mean: float
    metric: str
    described: Metric
    methods: tuple[MethodComparison, ...]
    all_labels: MethodComparison | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN stands for what cannot be calculated."""
        return {
            "baseline": self.baseline,
            "methods": [method.to_dict() for method in self.methods],
            "metric": self.metric,
            "higher_is_better": self.described.higher_is_better,
            "baseline_mean": self.baseline_mean,
            "all_labels": None if self.all_labels is None else self.all_labels.to_dict(),
            "notes": list(self.notes),
        }


def _interval(found: Interval, patients: int) -> dict[str, float | int]:
    return {"mean_difference": found.mean, "ci_low": found.low, "ci_high": found.high, "patients": patients}
