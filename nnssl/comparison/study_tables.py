"""The comparison of a study as text and as files."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from nnssl.comparison.api import FILES, write_results
from nnssl.comparison.efficiency import worth_sentence
from nnssl.comparison.plots import plot_curve
from nnssl.comparison.study import BudgetComparison, StudyComparison
from nnssl.comparison.tables import comparison_text
from nnssl.system.files import check_output_file, check_writable, without_nan, write_json, write_text

STUDY_JSON = "study_comparison.json"
CURVE_COLUMNS = ("configuration", "method", "labelled", "mean", "ci_low", "ci_high", "worth_labels", "worth_low",
                 "worth_high")  # fmt: skip


def study_text(study: StudyComparison) -> str:
    """Return the comparison of each budget, then the worth of labels."""
    parts = []
    for group in study.groups:
        title = group.title
        parts.append("\n".join([title, "-" * len(title), comparison_text(group.comparison), *_level_lines(group)]))
    baseline = study.groups[0].comparison.baseline
    for configuration, curve in study.curves.items():
        title = f"{configuration}, what labels are worth ({curve.patients} patients in all runs)"
        sentences = [worth_sentence(worth, curve, baseline) for worth in curve.worth]
        parts.append("\n".join([title, "-" * len(title), *sentences]))
    if study.left:
        parts.append(f"note: {study.left} run(s) of the study are not done and do not count")
    return "\n\n".join(parts)


def _level_lines(group: BudgetComparison) -> list[str]:
    """Return what seeds and picks move, and how stable the order is."""
    metric = group.comparison.described
    lines = []
    for name, spread in group.spreads.items():
        known = [
            f"sd {value * metric.factor:.1f} {metric.unit} over {what}"
            for what, value in (("seeds", spread.seeds), ("picks of the labelled patients", spread.picks))
            if not math.isnan(value)
        ]
        lines += [f"{name}: {', '.join(known)}"] if known else []
    if group.ranks is not None:
        best = ", ".join(f"{name} in {share:.0%}" for name, share in group.ranks.first.items() if share)
        lines.append(
            f"order by the means: {', '.join(group.ranks.order)}; the best of {group.ranks.runs} seeds and picks: "
            f"{best}; agreement (Kendall's tau) {group.ranks.agreement:.2f}"
        )
    if group.alone:
        lines.append(
            f"note: {group.alone} finished run(s) do not count: a method has no run with their seed and pick yet"
        )
    return lines


def curve_csv(study: StudyComparison) -> str:
    """Return a row for each configuration, method and budget of the curves."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    for configuration, curve in study.curves.items():
        worth = {(each.method, each.labelled): each for each in curve.worth}
        for method, means in curve.means.items():
            for budget, mean in zip(curve.budgets, means, strict=True):
                if mean is not None:
                    each = worth.get((method, budget))
                    values = (each.labels, each.low, each.high) if each else ("", "", "")
                    writer.writerow([configuration, method, budget, mean.mean, mean.low, mean.high, *values])
    return text.getvalue()


def check_study_output(folder: Path) -> None:
    """Check that the files can be written; nothing is created.

    Raises:
        EnvironmentProblem: they cannot.
    """
    check_writable(folder, "the output folder", "choose another folder")
    check_output_file(folder / STUDY_JSON)


def write_study(study: StudyComparison, folder: Path) -> None:
    """Write the whole result, one folder with the files of a comparison for each budget, and the curves.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    write_json(folder / STUDY_JSON, without_nan(study.to_dict()))
    for group in study.groups:
        place = folder / f"{group.configuration}_{group.labelled.replace('%', 'pct')}"
        for name in FILES:
            check_output_file(place / name)
        write_results(group.comparison, place)
    write_text(folder / "curve.csv", curve_csv(study))
    for configuration, curve in study.curves.items():
        files = [folder / f"curve_{configuration}.{ending}" for ending in ("png", "svg")]
        plot_curve(curve, study.groups[0].comparison.described, files)
