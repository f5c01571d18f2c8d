"""A comparison as text: the table and the sentences for a terminal, and the two CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from nnssl.comparison.result import Comparison, MethodComparison
from nnssl.comparison.scores import Metric
from nnssl.comparison.statistics import FEWEST, HELPED, HURT, Interval

GAP = "  "
COLUMNS = ("mean", "baseline_mean", "mean_difference", "ci_low", "ci_high", "p", "p_holm", "p_t_holm", "decided_by",
           "patients", "exploratory", "runs", "seed_sd", "verdict")  # fmt: skip


def comparison_text(comparison: Comparison) -> str:
    """Return the table, one sentence a method, what is known about controls, gaps and runs, and the notes."""
    lines = [*comparison_table(comparison), ""]
    for method in comparison.methods:
        lines += [sentence(method, comparison.described), *_details(method, comparison)]
    decided_by = {method.judgement.decided_by for method in comparison.methods}
    if "t" in decided_by:
        lines.append("note: with so few patients Wilcoxon's test cannot reach 0.05; the t test (with Holm) decides")
    if "" in decided_by:
        lines.append(f"note: fewer than {FEWEST} patients are no evidence, whatever the difference")
    lines += [f"note: {note}" for note in comparison.notes]
    return "\n".join(lines)


def comparison_table(comparison: Comparison) -> list[str]:
    """Return aligned lines: the baseline, then a row a method."""
    metric = comparison.described
    header = ["method", f"mean {metric.title}", f"difference [95 %], {_short_unit(metric)}", "p (Holm)", "patients"]
    rows = [[*header, "verdict"]]
    rows.append([comparison.baseline, value_text(comparison.baseline_mean, metric), "-", "-", "-", "baseline"])
    for method in comparison.methods:
        judged = method.judgement
        exploratory = ", exploratory" if judged.exploratory else ""
        rows.append(
            [
                method.name,
                value_text(method.mean, metric),
                difference_text(judged.interval, metric),
                f"{judged.p_holm:.3g}",
                str(len(method.pairs.patients)),
                judged.verdict + exploratory,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def sentence(method: MethodComparison, metric: Metric) -> str:
    """Return the verdict on one method as a plain sentence."""
    judged, patients = method.judgement, len(method.pairs.patients)
    decided = judged.verdict in (HELPED, HURT)
    subject = f"{method.name} {judged.verdict}" if decided else f"no evidence that {method.name} helped or hurt"
    people = f"{patients} patient{'' if patients == 1 else 's'}"
    remarks = ["exploratory"] if judged.exploratory else []
    if not decided and (judged.interval.low > 0 or judged.interval.high < 0):
        remarks.append(f"p {judged.p_holm:.2g}")  # the interval alone would suggest a verdict
    difference = difference_text(judged.interval, metric, unit=f" {metric.unit}")
    return f"{subject}: {difference} on {people}" + (f" ({', '.join(remarks)})" if remarks else "")


def methods_csv(comparison: Comparison) -> str:
    """Return a row a method, with the numbers of the JSON in the metric's own unit."""
    rows = [method.to_dict() for method in comparison.methods]
    header = ("method", "baseline", "metric", *COLUMNS)
    return _csv(
        header, [[row["name"], comparison.baseline, comparison.metric, *(row[key] for key in COLUMNS)] for row in rows]
    )


def patients_csv(comparison: Comparison) -> str:
    """Return a row for each method and patient: the baseline's value, the method's, and the difference."""
    rows = [
        [method.name, patient, float(base), float(ours), float(ours - base)]
        for method in comparison.methods
        for patient, base, ours in zip(method.pairs.patients, method.pairs.baseline, method.pairs.method, strict=True)
    ]
    return _csv(("method", "patient", "baseline_value", "method_value", "difference"), rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _details(method: MethodComparison, comparison: Comparison) -> list[str]:
    """Return the lines below a method's sentence."""
    metric = comparison.described
    lines: list[str] = []
    if len(method.pairs.by_run) > 1:
        each = ", ".join(_signed(value, metric) for value in method.pairs.by_run)
        lines.append(f"{len(method.pairs.by_run)} runs: {each}; sd {_plain(method.seed_sd, metric)} {metric.unit}")
    if method.control is not None:
        name, gain = method.control
        lines.append(
            f"{name}, the same training without losses on unlabelled scans, has {_signed(gain, metric)} "
            f"of these {_signed(method.judgement.interval.mean, metric)} {metric.unit}"
        )
    gained = (method.judgement.interval.mean > 0) == metric.higher_is_better
    if comparison.all_labels is not None and gained:
        lines.append(_gap_line(method, comparison.all_labels.name))
    return [f"  {line}" for line in lines]


def _gap_line(method: MethodComparison, name: str) -> str:
    found = method.gap_closed
    if found is None or math.isnan(found.mean):
        return f"there is no gap to {name}"
    if math.isnan(found.low):
        return f"the gap to {name} is not certain, so that a closed share has no interval"
    return f"closes {found.mean:.0%} [{found.low:.0%}, {found.high:.0%}] of the gap to {name}"


def _short_unit(metric: Metric) -> str:
    return metric.unit.split()[-1] if metric.higher_is_better else metric.unit.split()[0]


def value_text(value: float, metric: Metric) -> str:
    """Return a value of a metric."""
    return f"{value:.3f}" if metric.higher_is_better else f"{value:.2f}"


def _signed(value: float, metric: Metric) -> str:
    return f"{value * metric.factor:+.1f}"


def _plain(value: float, metric: Metric) -> str:
    return f"{value * metric.factor:.1f}"


def difference_text(interval: Interval, metric: Metric, unit: str = "") -> str:
    """Return a mean difference with its interval, in the unit of the metric's differences; `unit` follows the mean."""
    mean = f"{_signed(interval.mean, metric)}{unit}"
    if math.isnan(interval.low):
        return f"{mean} [no interval]"
    return f"{mean} [{_plain(interval.low, metric)}, {_plain(interval.high, metric)}]"
