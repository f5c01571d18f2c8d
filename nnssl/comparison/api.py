"""`nnssl.compare`: methods beside a baseline on the same cases, with intervals, tests and plain verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnssl.comparison.notes import find_control, notes_on_cases, notes_on_patients, notes_on_references, notes_on_runs
from nnssl.comparison.pairing import Pairs, pair
from nnssl.comparison.result import Comparison, MethodComparison
from nnssl.comparison.scores import METRICS
from nnssl.comparison.sources import Compared, methods_of_dataset, named_methods, read_source
from nnssl.comparison.statistics import Floats, Interval, Judgement, gap_closed, judge, mean_interval
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.system.files import check_output_file, check_writable, without_nan, write_json, write_text

FILES = ("comparison.csv", "comparison_patients.csv", "comparison.json", "comparison.png", "comparison.svg")


def compare(  # noqa: PLR0913 - the public API names every option
    places: Sequence[str | Path] = (),
    *,
    baseline: str | Path | None = None,
    dataset: str | int | None = None,
    plans: str | None = None,
    configuration: str | None = None,
    fold: str | int | None = None,
    metric: str = "Dice",
    all_labels: str | Path | None = None,
    output_folder: str | Path | None = None,
) -> Comparison:
    """Compare methods with a baseline on the same cases, and say of each whether it helped.

    The differences are paired by patient: mean over the seeds of a method, over the structures of a case, and over the
    cases of a patient. The mean difference has a bootstrap 95 % interval from 20 patients on, and the t interval below.
    p is Wilcoxon's signed-rank test with Holm's adjustment for the number of methods. No mask is opened: the scores are
    those in `summary.json`, of nnssl or of stock nnU-Net.

    Args:
        places: for each method the folder of a fold or a model, or a folder with `summary.json`; `NAME=PLACE` gives a
            name, and several places of one name are seeds of one method.
        baseline: one of the places or names, or a further place; None for the only run of `SupervisedTrainer`.
        dataset: instead of places: all finished and validated runs of this data set, by name or id.
        plans: with `dataset`: plans name.
        configuration: with `dataset`: for instance `3d_fullres`.
        fold: with `dataset`: only this fold; None takes the folds of each run together.
        metric: Dice, IoU, nsd, hd95_mm, assd_mm, hd95_vox_pooled or asd_vox; of distances smaller is better.
        all_labels: place of the run on all labels: how much of the gap to it does each method close?
        output_folder: writes comparison.csv, comparison_patients.csv, comparison.json, comparison.png and .svg there.

    Raises:
        UsageError: an argument is wrong, or nothing says which run is the baseline.
        DataError: a place holds no scores, or has no case in common with the baseline.
        EnvironmentProblem: a file cannot be read or written, or `nnUNet_results` is not set.
    """
    _check_options(places, dataset, (plans, configuration, fold), metric)
    output = None if output_folder is None else Path(output_folder)
    if output is not None:
        _check_output(output)
    if dataset is None:
        base, methods = named_methods(places, baseline)
    else:
        base, methods = methods_of_dataset(
            dataset, plans, configuration, fold, None if baseline is None else str(baseline)
        )
    whole = None if all_labels is None else read_source(all_labels)
    result = compare_methods(base, methods, metric, None if whole is None else Compared(whole.name, (whole,)))
    if output is not None:
        write_results(result, output)
    return result


def compare_methods(
    baseline: Compared, methods: Sequence[Compared], metric: str = "Dice", all_labels: Compared | None = None
) -> Comparison:
    """Return the comparison of methods that were read; see `compare`.

    Raises:
        DataError: a method has no case in common with the baseline, or a summary lacks the metric.
    """
    described = METRICS[metric]
    everyone = [baseline, *methods, *([all_labels] if all_labels else [])]
    patients = {case: name for each in reversed(everyone) for run in each.runs for case, name in run.patients.items()}
    pairs = [pair(baseline.runs, method.runs, metric, patients, method.name) for method in methods]
    judged = judge([each.differences for each in pairs], higher_is_better=described.higher_is_better)
    whole = None
    if all_labels is not None:
        gap = pair(baseline.runs, all_labels.runs, metric, patients, all_labels.name)
        (judged_whole,) = judge([gap.differences], higher_is_better=described.higher_is_better)
        whole = _method(all_labels, baseline, gap, judged_whole, patients)
    results = [
        _method(method, baseline, each, judgement, patients)
        for method, each, judgement in zip(methods, pairs, judged, strict=True)
    ]
    results = [dataclasses.replace(each, gap_closed=_gap(each, whole)) for each in results]
    controls = [find_control(method, methods) for method in methods]
    means = {each.name: each.judgement.interval.mean for each in results}
    results = [
        each if control is None else dataclasses.replace(each, control=(control.name, means[control.name]))
        for each, control in zip(results, controls, strict=True)
    ]
    own = pair(baseline.runs, baseline.runs, metric, patients, baseline.name)
    compared = list(zip(methods, results, strict=True))
    notes = _notes(baseline, compared, patients)
    if all_labels is not None and whole is not None:
        notes += notes_on_cases(whole.pairs, all_labels.name, baseline.name)
        notes += notes_on_references(all_labels, baseline) + notes_on_runs(all_labels, baseline, same_labels=False)
    mean = float(own.baseline.mean())
    return Comparison(baseline.name, mean, metric, described, tuple(results), whole, tuple(dict.fromkeys(notes)))


def write_results(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the result as CSV, JSON, PNG and SVG into a folder, and return the files.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    from nnssl.comparison.plots import plot_comparison
    from nnssl.comparison.tables import methods_csv, patients_csv

    files = [folder / name for name in FILES]
    write_text(files[0], methods_csv(comparison))
    write_text(files[1], patients_csv(comparison))
    write_json(files[2], without_nan(comparison.to_dict()))
    plot_comparison(comparison, files[3:])
    return files


def _method(
    method: Compared, baseline: Compared, pairs: Pairs, judgement: Judgement, patients: dict[str, str]
) -> MethodComparison:
    names = {label: name for run in reversed(baseline.runs) for label, name in run.structures.items()}
    by_structure = {names[label]: _of(values) for label, values in pairs.by_structure.items() if len(values)}
    by_metric = {}
    for metric in METRICS:
        try:
            found = pair(baseline.runs, method.runs, metric, patients, method.name).differences
        except DataError:  # a summary of stock nnU-Net has Dice and IoU only
            continue
        by_metric[metric] = _of(found)
    folders = tuple(str(folder) for run in method.runs for folder in run.folders)
    return MethodComparison(method.name, folders, pairs, judgement, by_structure, by_metric)


def _notes(
    baseline: Compared, compared: Sequence[tuple[Compared, MethodComparison]], patients: dict[str, str]
) -> list[str]:
    """Return the notes on patients, left-out cases, references and runs."""
    notes = notes_on_patients((case for run in baseline.runs for case in run.cases), patients)
    notes += notes_on_runs(baseline, baseline)
    for method, result in compared:
        notes += notes_on_cases(result.pairs, method.name, baseline.name)
        notes += notes_on_references(method, baseline) + notes_on_runs(method, baseline)
    return notes


def _of(differences: Floats) -> tuple[Interval, int]:
    return mean_interval(differences), len(differences)


def _gap(method: MethodComparison, whole: MethodComparison | None) -> Interval | None:
    """Return the share of the gap that a method closes, over the patients that both have; None without a gap run."""
    if whole is None:
        return None
    gains, gap = (dict(zip(each.patients, each.differences, strict=True)) for each in (method.pairs, whole.pairs))
    common = [name for name in gains if name in gap]
    if not common:
        return Interval(math.nan, math.nan, math.nan)
    return gap_closed(np.array([gains[name] for name in common]), np.array([gap[name] for name in common]))


def _check_options(
    places: Sequence[str | Path], dataset: str | int | None, narrowing: tuple[object, ...], metric: str
) -> None:
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, option="-metric")
    example = "nnssl_compare A B -baseline A, or nnssl_compare -d ID"
    if bool(places) == (dataset is not None):
        raise UsageError("give the runs or folders to compare, or a data set", run=example)
    if dataset is None and any(value is not None for value in narrowing):
        raise UsageError("plans, configuration and fold choose among the runs of a data set", run=example)


def _check_output(folder: Path) -> None:
    check_writable(folder, "the output folder", "choose another folder")
    for name in FILES:
        check_output_file(folder / name)
