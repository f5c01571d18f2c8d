"""What a report on a study says beyond a report on runs: every label budget, and what labels are worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from nnssl.comparison.efficiency import Curve, worth_sentence
from nnssl.comparison.scores import Metric
from nnssl.comparison.statistics import Interval
from nnssl.comparison.study import ALL, BudgetComparison, StudyComparison, compare_study
from nnssl.errors import UsageError
from nnssl.names import STUDY_DB
from nnssl.reports.run_facts import RunFacts, facts_of_runs
from nnssl.reports.tables import Table, methods_table, value_text


@dataclasses.dataclass(frozen=True)
class ReportedStudy:
    """A study of a report, whose verdict is that of its smallest label budget.

    Attributes:
        comparison: of the whole study.
    """

    comparison: StudyComparison

    @property
    def main(self) -> BudgetComparison:
        """The group with the smallest label budget, of the first configuration of the study."""
        first = self.comparison.groups[0].configuration
        return min((group for group in self.comparison.groups if group.configuration == first), key=_budget)

    @property
    def baseline(self) -> str:
        """Name of the baseline."""
        return self.main.comparison.baseline

    def runs(self) -> list[RunFacts]:
        """Return what is known about each run of every budget; of several configurations, its name says which."""
        several = len({group.configuration for group in self.comparison.groups}) > 1
        found: list[RunFacts] = []
        for group in self.comparison.groups:
            for method in group.methods:
                name = f"{method.name}, {group.configuration}" if several else method.name
                found += facts_of_runs(dataclasses.replace(method, name=name))
        return found

    def tables(self) -> list[Table]:
        """Return the mean scores over the budgets, and the comparison of each budget beside the main one."""
        metric = self.main.comparison.described
        means = [_means_table(name, curve, metric) for name, curve in self.comparison.curves.items()]
        others = [group for group in self.comparison.groups if group is not self.main]
        return means + [
            dataclasses.replace(methods_table(group.comparison), title=f"{group.title}: methods beside the baseline")
            for group in others
        ]

    def sentences(self) -> list[str]:
        """Return what the labels of each method are worth, and what is missing."""
        found = [
            f"{name}: {worth_sentence(worth, curve, self.baseline)} ({curve.patients} patients in all runs)."
            for name, curve in self.comparison.curves.items()
            for worth in curve.worth
        ]
        left = self.comparison.left
        return found + ([f"{left} run(s) of the study are not done and do not count."] if left else [])


def _budget(group: BudgetComparison) -> float:
    """Return the size of a label budget, in patients or percent."""
    return math.inf if group.labelled == ALL else float(group.labelled.rstrip("%"))


def _means_table(configuration: str, curve: Curve, metric: Metric) -> Table:
    header = ("method", *(f"{budget} labelled" for budget in curve.budgets))
    rows = [[name, *(_mean_text(mean, metric) for mean in means)] for name, means in curve.means.items()]
    return Table(f"{configuration}: mean {metric.title} over patients [95 %]", header, rows)


def _mean_text(mean: Interval | None, metric: Metric) -> str:
    if mean is None:
        return "–"
    value, low, high = (value_text(number, metric) for number in (mean.mean, mean.low, mean.high))
    return f"{value} [{low}, {high}]"


def is_study(places: Sequence[str | Path]) -> bool:
    """Return whether the places are the folder of one study.

    Raises:
        UsageError: a study stands beside other places.
    """
    studies = [place for place in places if (Path(place) / STUDY_DB).is_file()]
    if studies and len(places) > 1:
        raise UsageError(
            "a study stands alone in a report", where=studies[0], run=f"nnssl_report {studies[0]} -o FOLDER"
        )
    return bool(studies)


def read_study(
    folder: str | Path, baseline: str | Path | None, configuration: str | None, fold: str | int | None, metric: str
) -> ReportedStudy:
    """Compare the finished runs of a study; errors as for `compare_study`."""
    study = compare_study(
        folder,
        baseline=None if baseline is None else str(baseline),
        configuration=configuration,
        fold=None if fold is None else str(fold),
        metric=metric,
    )
    return ReportedStudy(study)
