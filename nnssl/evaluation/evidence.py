"""Decides about post-processing: by the scores of held-out predictions, or by the anatomy in labelled cases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnssl.data.labels import Label
from nnssl.evaluation.mask_pairs import FilePair, bring_to_reference, read_labels
from nnssl.evaluation.metrics import overlap_counts
from nnssl.evaluation.postprocessing import (
    FOREGROUND,
    IntegerMask,
    Postprocessing,
    Step,
    candidates,
    count_components,
    keep_largest,
)
from nnssl.evaluation.structures import Structures
from nnssl.system.workers import run_parallel

CaseT = TypeVar("CaseT")
Dice = dict[Label, float]  # structure -> Dice, NaN where neither mask has the structure
HOLES = "what is removed from a region would be a hole in the region around it"


def read_mask(reader: type[Any], file: Path) -> IntegerMask:
    """Return the values (z, y, x) of a label file; the errors are those of `read_labels`."""
    return read_labels(reader, file).values


def read_pair(reader: type[Any], files: FilePair) -> tuple[IntegerMask, IntegerMask]:
    """Return prediction and reference (z, y, x) on the axes of the reference; origins and directions may differ.

    Raises:
        DataError: a file cannot be read, or shape or spacing differ.
    """
    reference = read_labels(reader, files.reference)
    prediction, _ = bring_to_reference(read_labels(reader, files.prediction), reference, files, same_placement=False)
    return prediction.values, reference.values


def decide_by_scores(
    cases: Mapping[str, CaseT],
    load: Callable[[CaseT], tuple[IntegerMask, IntegerMask]],
    structures: Structures,
    num_processes: int = 1,
) -> Postprocessing:
    """Decide by the Dice of predictions of labelled cases that their network has not seen.

    The rule is nnU-Net's: a step is taken if the mean Dice over structures rises and the mean of no structure falls,
    first for the whole foreground, then for each structure on what the steps before have left. For regions, the rule is
    stricter than nnU-Net's, which looks at the region itself only: overlapping regions change each other.

    Args:
        cases: name -> what `load` takes.
        load: returns prediction and reference of a case, label values of equal shape (*S).
        structures: the labels or regions; voxels with the ignore label in the reference do not count.
        num_processes: worker processes.

    Raises:
        DataError: a case cannot be read, or its shapes differ.
        EnvironmentProblem: a worker process was lost.
    """
    considered = candidates(structures)
    decided: list[Step] = []
    for group in _groups(considered, structures):
        taken = tuple(step.labels for step in decided if step.applied)
        score = partial(_case_scores, load, structures, taken, tuple(step.labels for step in group))
        tables = run_parallel(score, cases, num_processes, "deciding about post-processing").values()
        before, *after = (_mean_dice(column, structures) for column in zip(*tables, strict=True))
        decided += [_judged(step, before, result, structures) for step, result in zip(group, after, strict=True)]
    return Postprocessing("cross-validation", len(cases), tuple(decided))


def decide_by_anatomy(
    cases: Mapping[str, CaseT],
    load: Callable[[CaseT], IntegerMask],
    structures: Structures,
    num_processes: int = 1,
) -> Postprocessing:
    """Decide by the labels of cases: what is one component in every labelled case is one in a prediction, too.

    A structure may be missing from some cases, not from all. A case with ignored voxels tells nothing about components,
    so nothing is decided then. Of regions only the union is reduced.

    Args:
        cases: name -> what `load` takes.
        load: returns the reference of a case, label values (*S).
        structures: the labels or regions.
        num_processes: worker processes.

    Raises:
        DataError: a case cannot be read.
        EnvironmentProblem: a worker process was lost.
    """
    considered = candidates(structures)
    count = partial(_case_counts, load, tuple(step.labels for step in considered), structures.ignore_label)
    tables = run_parallel(count, cases, num_processes, "deciding about post-processing").values()
    counts = {step: [table[column] for table in tables] for column, step in enumerate(considered)}
    regions = any(isinstance(label, tuple) for label in structures.names)
    steps = [
        dataclasses.replace(step, reason=HOLES) if regions and step.name != FOREGROUND else _single(step, counts[step])
        for step in considered
    ]
    return Postprocessing("labelled anatomy", len(cases), tuple(steps))


def _groups(considered: Sequence[Step], structures: Structures) -> list[list[Step]]:
    """Return steps that can be judged together: labels cannot change each other, regions can."""
    whole, *single = considered
    if any(isinstance(label, tuple) for label in structures.names):
        return [[whole], *([step] for step in single)]
    return [[whole], single] if single else [[whole]]


def _case_scores(
    load: Callable[[CaseT], tuple[IntegerMask, IntegerMask]],
    structures: Structures,
    taken: Sequence[Sequence[int]],
    tried: Sequence[Sequence[int]],
    case: CaseT,
) -> list[Dice]:
    """Return the Dice of a case after the steps that are taken, and after each further step that is tried."""
    prediction, reference = load(case)
    for labels in taken:
        prediction = keep_largest(prediction, labels)
    scores = [_dice(prediction, reference, structures)]
    for labels in tried:
        changed = keep_largest(prediction, labels)
        scores.append(scores[0] if changed is prediction else _dice(changed, reference, structures))
    return scores


def _dice(prediction: IntegerMask, reference: IntegerMask, structures: Structures) -> Dice:
    counts = overlap_counts(prediction, reference, structures.names, ignore_label=structures.ignore_label)
    return {label: counts[label]["Dice"] for label in structures.names}


def _mean_dice(cases: Sequence[Dice], structures: Structures) -> Dice:
    return {label: _mean(case[label] for case in cases) for label in structures.names}


def _mean(values: Iterable[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan


def _judged(step: Step, before: Dice, after: Dice, structures: Structures) -> Step:
    """Return a step with the verdict of the scores; a structure without a score in any case has no say."""
    old, new = _mean(before.values()), _mean(after.values())
    means = f"mean Dice {old:.4f} before, {new:.4f} after"
    losers = [structures.names[label] for label in before if after[label] < before[label]]
    if losers:
        return dataclasses.replace(step, reason=f"{means}; {', '.join(losers)} would lose")
    return dataclasses.replace(step, applied=new > old, reason=means)


def _case_counts(
    load: Callable[[CaseT], IntegerMask], parts: Sequence[Sequence[int]], ignore_label: int | None, case: CaseT
) -> list[int | None]:
    """Return the number of components of each structure; None where the case has ignored voxels."""
    mask = load(case)
    if ignore_label is not None and bool(np.any(mask == ignore_label)):
        return [None] * len(parts)
    return [count_components(mask, labels) for labels in parts]


def _single(step: Step, counts: Sequence[int | None]) -> Step:
    """Return a step with the verdict of the component counts of all cases."""
    ignored = counts.count(None)
    present = [count for count in counts if count]
    one = present.count(1)
    if ignored:
        reason = f"{ignored} of {len(counts)} cases have ignored voxels, which may hide components"
    elif not present:
        reason = "no case has this structure"
    else:
        reason = f"one component in {one} of {len(present)} cases that have this structure"
    return dataclasses.replace(step, applied=not ignored and bool(present) and one == len(present), reason=reason)
