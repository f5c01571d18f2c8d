"""Means, spreads and counts over cases, in the layout of nnU-Net's summary.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnssl.data.labels import Label
from nnssl.evaluation.mask_pairs import CaseMetrics, FilePair, MeasuredCase, Measurement

FLAGS = ("missed", "spurious")
SPREADS = ("Dice", "IoU", "hd95_mm", "assd_mm", "nsd", "hd95_vox_pooled", "asd_vox")


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured.

    The metrics are those of nnU-Net under their names (`Dice`, `IoU`, `TP`, `FP`, `FN`, `TN`, `n_pred`, `n_ref`), and
    `hd95_mm`, `assd_mm`, `nsd`; the paper metrics add `hd95_vox_pooled` and `asd_vox`.

    Attributes:
        summary_file: the summary that was written.
        structures: label or region -> name.
        cases: case -> label -> metric -> value, with the flags `missed` and `spurious`; NaN if a case has no value.
        files: case -> its two files.
        mean: label -> metric -> mean over the cases that have a value.
        sd: label -> metric -> sample standard deviation over these cases (NaN for fewer than two).
        counts: label -> `n_cases` (the structure is in the reference or the prediction), `n_missed`, `n_spurious`.
        foreground_mean: metric -> mean over structures of their means, without background and structures without value.
        foreground_sd: metric -> sample standard deviation over cases of the mean over structures.
        without_prediction: references that are left out because no prediction has their name.
        without_reference: predictions that are left out because no reference has their name.
        conventions: the definitions behind the numbers, in words.
        notes: what a user should know about the files, one line each.
        domains: domain -> the same for its cases alone; empty where dataset.json gives the cases fewer than two
            domains. Cases without a domain are in none.
    """

    summary_file: Path
    structures: dict[Label, str]
    cases: dict[str, CaseMetrics]
    files: dict[str, FilePair]
    mean: dict[Label, dict[str, float]]
    sd: dict[Label, dict[str, float]]
    counts: dict[Label, dict[str, int]]
    foreground_mean: dict[str, float]
    foreground_sd: dict[str, float]
    without_prediction: tuple[str, ...]
    without_reference: tuple[str, ...]
    conventions: dict[str, str | float]
    notes: tuple[str, ...] = ()
    domains: Mapping[str, EvaluationResult] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: nnU-Net's keys and further ones; labels are strings, NaN stays NaN."""
        domains = {"domains": {name: part.scores for name, part in self.domains.items()}} if self.domains else {}
        return {
            **self.scores,
            **domains,
            "structures": _with_text_keys(self.structures),
            "without_prediction": list(self.without_prediction),
            "without_reference": list(self.without_reference),
            "conventions": self.conventions,
            "notes": list(self.notes),
            "metric_per_case": [
                {
                    "reference_file": str(self.files[case].reference),
                    "prediction_file": str(self.files[case].prediction),
                    "metrics": _with_text_keys(metrics),
                }
                for case, metrics in self.cases.items()
            ],
        }

    @property
    def scores(self) -> dict[str, Any]:
        """Means, spreads and counts, as summary.json holds them."""
        return {
            "foreground_mean": self.foreground_mean,
            "mean": _with_text_keys(self.mean),
            "foreground_sd": self.foreground_sd,
            "sd": _with_text_keys(self.sd),
            "counts": _with_text_keys(self.counts),
            "num_cases": len(self.cases),
        }


def summarise(
    measured: Mapping[str, MeasuredCase],
    files: Mapping[str, FilePair],
    measurement: Measurement,
    *,
    summary_file: Path,
    unmatched: tuple[tuple[str, ...], tuple[str, ...]],
    domains: Mapping[str, str],
) -> EvaluationResult:
    """Return means, spreads and counts of the measured cases (at least one).

    Args:
        measured: case -> its metrics and notes.
        files: case -> its two files.
        measurement: how the cases were measured.
        summary_file: path of the summary.
        unmatched: cases without a prediction, and without a reference.
        domains: case -> domain, for the cases that have one.
    """
    result = _of_cases(measured, files, measurement, summary_file, unmatched)
    there = sorted({domains[case] for case in measured if case in domains})
    parts = {name: {case: metrics for case, metrics in measured.items() if domains.get(case) == name} for name in there}
    by_domain = {
        name: _of_cases(part, {case: files[case] for case in part}, measurement, summary_file, ((), ()))
        for name, part in parts.items()
    }
    return replace(result, domains=by_domain) if len(there) > 1 else result


def _of_cases(
    measured: Mapping[str, MeasuredCase],
    files: Mapping[str, FilePair],
    measurement: Measurement,
    summary_file: Path,
    unmatched: tuple[tuple[str, ...], tuple[str, ...]],
) -> EvaluationResult:
    names = measurement.structures.names
    cases = {name: case.metrics for name, case in measured.items()}
    columns = {label: _columns(case[label] for case in cases.values()) for label in names}
    metrics = [name for name in next(iter(columns.values())) if name not in FLAGS]
    spreads = [name for name in metrics if name in SPREADS]
    mean = {label: {name: _mean(column[name]) for name in metrics} for label, column in columns.items()}
    foreground = [label for label in names if label != 0]
    case_means = {
        name: [_mean(case[label][name] for label in foreground) for case in cases.values()] for name in spreads
    }
    return EvaluationResult(
        summary_file=summary_file,
        structures=dict(names),
        cases=cases,
        files=dict(files),
        mean=mean,
        sd={label: {name: _sd(column[name]) for name in spreads} for label, column in columns.items()},
        counts={label: _counts(column) for label, column in columns.items()},
        foreground_mean={name: _mean(mean[label][name] for label in foreground) for name in metrics},
        foreground_sd={name: _sd(values) for name, values in case_means.items()},
        without_prediction=unmatched[0],
        without_reference=unmatched[1],
        conventions=conventions(measurement),
        notes=tuple(note for case in measured.values() for note in case.notes),
    )


def conventions(measurement: Measurement) -> dict[str, str | float]:
    """Return the definitions behind the numbers, in words."""
    words: dict[str, str | float] = {
        "metrics": "paper" if measurement.paper else "standard",
        "nsd_tolerance_mm": measurement.nsd_tolerance_mm,
        "surface": "mask minus its erosion by face neighbours; the image border counts as outside; "
        "image axes of one voxel do not count",
        "hd95_mm": "larger of the two directed 95th percentiles of surface distances, mm",
        "assd_mm": "mean of the surface distances of both directions pooled, mm",
        "nsd": "share of both surfaces' voxels within the tolerance of the other surface",
        "absent_in_both": "not counted (NaN)",
        "absent_in_one": "Dice, IoU and nsd 0; distances the image diagonal",
        "mean": "over the cases that have a value; foreground_mean over the structures that have a mean",
        "sd": "sample standard deviation over cases",
    }
    if measurement.postprocessing:
        words["postprocessing"] = str(measurement.postprocessing)
    if measurement.paper:
        words["hd95_vox_pooled"] = "95th percentile of both directions pooled, voxels (medpy's hd95 without spacing)"
        words["asd_vox"] = "mean distance from the prediction's to the reference's surface, voxels (medpy's asd)"
    return words


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    listed = list(rows)
    return {name: [row[name] for row in listed] for name in listed[0]}


def _counts(column: Mapping[str, list[float]]) -> dict[str, int]:
    return {
        "n_cases": len(_present(column["Dice"])),
        "n_missed": sum(map(int, column["missed"])),
        "n_spurious": sum(map(int, column["spurious"])),
    }


def _present(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Iterable[float]) -> float:
    present = _present(values)
    return math.fsum(present) / len(present) if present else math.nan


def _sd(values: Iterable[float]) -> float:
    present = _present(values)
    return statistics.stdev(present) if len(present) > 1 else math.nan


def _with_text_keys(by_label: Mapping[Label, Any]) -> dict[str, Any]:
    return {str(label): value for label, value in by_label.items()}
