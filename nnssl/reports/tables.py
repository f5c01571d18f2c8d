"""The tables of a report as rows of text, and its two sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnssl.comparison import tables as text_tables
from nnssl.comparison.result import Comparison, MethodComparison
from nnssl.comparison.scores import METRICS, Metric, Scores
from nnssl.comparison.sources import Compared
from nnssl.comparison.statistics import HELPED, HURT, NO_EVIDENCE, Interval
from nnssl.comparison.tables import difference_text, sentence


@dataclass(frozen=True)
class Table:
    """A table: title, header, rows of text; the first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def main_method(comparison: Comparison) -> MethodComparison:
    """Return the method that the summary is about: the one with the largest gain."""
    sign = 1 if comparison.described.higher_is_better else -1
    return max(comparison.methods, key=lambda method: sign * method.judgement.interval.mean)


def summary_sentences(comparison: Comparison) -> tuple[str, str]:
    """Return the verdict on the main method, and what baseline and method reach."""
    method, metric = main_method(comparison), comparison.described
    judged = method.judgement
    first = f"{sentence(method, metric)}."
    base = value_text(comparison.baseline_mean, metric)
    level = f"The baseline {comparison.baseline} has a mean {metric.title} of {base}, {method.name}"
    level += f" has {value_text(method.mean, metric)}"
    tail = {
        HELPED: "the difference is larger than chance explains",
        HURT: "the loss is larger than chance explains",
    }.get(judged.verdict, "a difference of this size can be chance")
    few = ", and so few patients are a first look only" if judged.exploratory else ""
    if judged.verdict == NO_EVIDENCE:
        first = first.replace("no evidence", "No evidence", 1)
    return first, f"{level}; {tail}{few}."


def methods_table(comparison: Comparison) -> Table:
    """Return the baseline and a row a method: means, difference with interval, p, seeds, verdict."""
    metric = comparison.described
    difference = f"difference [95 %], {metric.unit}"
    header = ("method", f"mean {metric.title}", difference, "p (Holm)", "patients", "runs", "verdict")
    rows = [[comparison.baseline, value_text(comparison.baseline_mean, metric), "–", "–", "–", "–", "baseline"]]
    for method in comparison.methods:
        judged = method.judgement
        rows.append(
            [
                method.name,
                value_text(method.mean, metric),
                difference_text(judged.interval, metric),
                f"{judged.p_holm:.3g}",
                str(len(method.pairs.patients)),
                str(len(method.pairs.by_run)),
                judged.verdict + (", exploratory" if judged.exploratory else ""),
            ]
        )
    return Table("Methods beside the baseline", header, rows)


def differences_tables(comparison: Comparison) -> list[Table]:
    """Return the differences by structure, and by metric, a row a method."""
    tables = []
    structures = list(dict.fromkeys(name for method in comparison.methods for name in method.by_structure))
    rows = [
        [method.name, *(_found(method.by_structure.get(name), comparison.described) for name in structures)]
        for method in comparison.methods
    ]
    title = f"Difference by structure, {comparison.described.unit} [95 %]"
    tables.append(Table(title, ("method", *structures), rows))
    metrics = [name for name in METRICS if any(name in method.by_metric for method in comparison.methods)]
    header = [METRICS[name].title + (", points" if METRICS[name].higher_is_better else "") for name in metrics]
    rows = [
        [method.name, *(_found(method.by_metric.get(name), METRICS[name]) for name in metrics)]
        for method in comparison.methods
    ]
    tables.append(Table("Difference by metric [95 %]; of distances smaller is better", ("method", *header), rows))
    return tables


def structures_table(methods: Sequence[Compared]) -> Table:
    """Return for each method and structure: mean Dice, missed and spurious structures, over all its runs."""
    rows = []
    for method in methods:
        names = {label: name for run in method.runs for label, name in run.structures.items()}
        for label, name in names.items():
            rows.append([method.name, name, *_counts(method.runs, label)])
    header = ("method", "structure", "mean Dice", "cases with the structure", "missed", "spurious")
    return Table("Structures: missed (nothing drawn) and spurious (drawn, but not in the reference)", header, rows)


def cases_table(methods: Sequence[Compared], metric: str) -> Table:
    """Return each case with the mean over its structures for every method, the worst case of the last one first."""
    key = METRICS[metric]
    scores = [case_scores(method.runs[0], metric) for method in methods]
    order = rank_cases(methods[-1], metric)
    rows = [[case, *(value_text(found.get(case, math.nan), key) for found in scores)] for case in order]
    return Table(f"Cases, mean {key.title} of the first run, worst first", ("case", *(m.name for m in methods)), rows)


def case_scores(scores: Scores, metric: str) -> dict[str, float]:
    """Return case -> mean over the structures that have a value; cases without one are left out."""
    found = {}
    for case, labels in scores.cases.items():
        values = [each[metric] for each in labels.values() if math.isfinite(each.get(metric, math.nan))]
        if values:
            found[case] = sum(values) / len(values)
    return found


def rank_cases(method: Compared, metric: str) -> list[str]:
    """Return the cases of a method's first run, the worst first."""
    scores = case_scores(method.runs[0], metric)
    sign = 1 if METRICS[metric].higher_is_better else -1
    return sorted(scores, key=lambda case: (sign * scores[case], case))


def value_text(value: float, metric: Metric) -> str:
    """Return a value of a metric, `–` for NaN."""
    return "–" if math.isnan(value) else text_tables.value_text(value, metric)


def _found(entry: tuple[Interval, int] | None, metric: Metric) -> str:
    return "–" if entry is None else f"{difference_text(entry[0], metric)}, n = {entry[1]}"


def _counts(runs: Sequence[Scores], label: str) -> list[str]:
    rows = [scores[label] for run in runs for scores in run.cases.values() if label in scores]
    dice = [row["Dice"] for row in rows if math.isfinite(row.get("Dice", math.nan))]
    sizes = [(row.get("n_ref"), row.get("n_pred")) for row in rows]
    known = [(ref, pred) for ref, pred in sizes if ref is not None and pred is not None]
    present = sum(ref > 0 for ref, _ in known)
    missed = sum(ref > 0 and pred == 0 for ref, pred in known)
    spurious = sum(ref == 0 and pred > 0 for ref, pred in known)
    mean = f"{sum(dice) / len(dice):.3f}" if dice else "–"
    return [mean, *((str(present), str(missed), str(spurious)) if known else ("–", "–", "–"))]
