"""Paired values by patient: what two methods scored on the same cases and structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nnssl.comparison.scores import METRICS, Scores
from nnssl.comparison.statistics import Floats
from nnssl.errors import DataError

EMPTY_MASK_KEYS = ("n_ref", "n_pred")


@dataclass(frozen=True)
class Pairs:
    """The values of a baseline and a method, patient by patient.

    Attributes:
        patients: names, sorted.
        baseline: values of shape (patients,): mean over seeds, then structures, then the patient's cases.
        method: likewise.
        by_structure: label -> differences, method minus baseline, of the patients that have the structure.
        by_run: mean difference from the baseline for each run (seed) of the method.
        only_baseline: cases that the method lacks.
        only_method: cases that the baseline lacks.
        without_value: common cases that count nowhere, because no structure has a value on both sides.
        half_empty: number of structures in cases that are not in the reference and that only some runs drew; an empty
            mask counts as perfect there.
        dropped: number of structures in cases that were left out because a value is missing for another reason.
    """

    patients: tuple[str, ...]
    baseline: Floats
    method: Floats
    by_structure: Mapping[str, Floats]
    by_run: tuple[float, ...]
    only_baseline: tuple[str, ...]
    only_method: tuple[str, ...]
    without_value: tuple[str, ...]
    half_empty: int
    dropped: int

    @property
    def differences(self) -> Floats:
        """Method minus baseline, of shape (patients,)."""
        return self.method - self.baseline


def pair(
    baseline: Sequence[Scores], method: Sequence[Scores], metric: str, patients: Mapping[str, str], name: str
) -> Pairs:
    """Return the paired values of a method and the baseline.

    A structure counts in a case if both sides have a value. If the structure is not in the reference, a side that drew
    nothing has no value in summaries. This side gets the best value (Dice 1, distance 0) if the other side drew
    something, so that spurious structures cost what they should. A structure that no side drew does not count.

    Args:
        baseline: the runs of the baseline, one a seed.
        method: the runs of the method, one a seed.
        metric: key of `METRICS`.
        patients: case -> patient; other cases are patients of their own.
        name: of the method, for the message.

    Raises:
        DataError: the two have no case, no structure or no value in common, or the summaries lack the metric.
    """
    sides = (baseline, method)
    listed = [{case for run in side for case in run.cases} for side in sides]
    cases = sorted(listed[0] & listed[1])
    labels = [
        label for label in baseline[0].structures if all(label in run.structures for side in sides for run in side)
    ]
    if not cases or not labels:
        what = "structure" if cases else "case"
        examples = [sorted(names)[:3] for names in (listed if not cases else [run[0].structures for run in sides])]
        raise DataError(
            f"{name} and the baseline have no {what} in common",
            where=method[0].folders[0],
            why=f"the baseline has {', '.join(examples[0])}; {name} has {', '.join(examples[1])}",
        )
    values = [np.stack([_values(run, cases, labels, metric) for run in side]) for side in sides]
    empty = [np.stack([_empty(run, cases, labels) for run in side]) for side in sides]
    somewhere = np.isfinite(np.concatenate(values)).any(axis=0)
    filled = [
        np.where(mask & somewhere, METRICS[metric].best, value) for value, mask in zip(values, empty, strict=True)
    ]
    means = [_mean(value, np.isfinite(value), axis=0) for value in filled]
    valid = np.isfinite(means[0]) & np.isfinite(means[1])
    people = [patients.get(case, case) for case in cases]
    has_value = [bool(row.any()) for row in valid]
    if not any(has_value):
        raise DataError(f"{name} and the baseline have no value of {metric} in common", where=method[0].folders[0])
    names = sorted({person for person, counts in zip(people, has_value, strict=True) if counts})
    index = {person: i for i, person in enumerate(names)}
    groups = np.array([index.get(person, len(names)) for person in people])
    average = partial(_by_patient, groups=groups, patients=len(names))
    base, ours = (average(mean, valid) for mean in means)
    each_run = [average(run - means[0], valid & np.isfinite(run)) for run in filled[1]]
    by_structure = {}
    for i, label in enumerate(labels):
        difference = average((means[1] - means[0])[:, [i]], valid[:, [i]])
        by_structure[label] = difference[np.isfinite(difference)]
    return Pairs(
        tuple(names),
        base,
        ours,
        by_structure,
        tuple(float(np.mean(run[np.isfinite(run)])) for run in each_run if np.isfinite(run).any()),
        tuple(sorted(listed[0] - listed[1])),
        tuple(sorted(listed[1] - listed[0])),
        tuple(case for case, counts in zip(cases, has_value, strict=True) if not counts),
        int((np.concatenate(empty).any(axis=0) & somewhere).sum()),
        int((somewhere & ~valid).sum()),
    )


def _values(run: Scores, cases: Sequence[str], labels: Sequence[str], metric: str) -> Floats:
    """Return the values of shape (cases, labels); NaN where the run has none."""
    if not any(metric in scores for case in run.cases.values() for scores in case.values()):
        known = sorted(
            {key for case in run.cases.values() for scores in case.values() for key in scores} & set(METRICS)
        )
        raise DataError(
            f"the summary has no {metric}",
            where=run.folders[0],
            why=f"its metrics are {', '.join(known)}; the summaries of stock nnU-Net have Dice and IoU only",
            run=f"nnssl_evaluate LABELS {run.folders[0]}" + (" -metrics paper" if "vox" in metric else ""),
        )
    return np.array(
        [[run.cases.get(case, {}).get(label, {}).get(metric, np.nan) for label in labels] for case in cases],
        dtype=np.float64,
    )


def _empty(run: Scores, cases: Sequence[str], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether reference and prediction are empty, of shape (cases, labels)."""
    found = [[run.cases.get(case, {}).get(label, {}) for label in labels] for case in cases]
    return np.array([[all(scores.get(key) == 0 for key in EMPTY_MASK_KEYS) for scores in row] for row in found])


def _mean(values: Floats, where: NDArray[np.bool_], axis: int) -> Floats:
    """Return the mean over the entries that count, NaN where none does."""
    count = where.sum(axis=axis)
    total = np.where(where, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _by_patient(values: Floats, where: NDArray[np.bool_], groups: NDArray[np.intp], patients: int) -> Floats:
    """Return the mean over structures, then over the cases of each patient; NaN for a patient without a value.

    Args:
        values: of shape (cases, labels).
        where: which of them count.
        groups: of shape (cases,): the number of each case's patient; `patients` stands for none.
        patients: their number.
    """
    by_case = _mean(values, where, axis=1)
    counted = np.isfinite(by_case)
    count = np.bincount(groups[counted], minlength=patients + 1)[:patients]
    total = np.bincount(groups[counted], weights=by_case[counted], minlength=patients + 1)[:patients]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
