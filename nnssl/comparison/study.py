"""`nnssl_compare STUDY`: the finished runs, one comparison for each label budget, and the curve over budgets."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.comparison.api import compare_methods
from nnssl.comparison.efficiency import Curve, make_curve
from nnssl.comparison.pairing import pair
from nnssl.comparison.result import Comparison
from nnssl.comparison.scores import METRICS, merge_scores, read_scores
from nnssl.comparison.sources import Compared, Source, choose_method
from nnssl.comparison.stability import Key, Ranks, Spread, ranks, spread
from nnssl.data.raw import patient_of
from nnssl.data.splits import cases_of_run, parse_fold
from nnssl.errors import NnsslError, UsageError, unknown_name
from nnssl.names import DATASET_JSON, PREPROCESSED_VARIABLE, SUMMARY_JSON, TAG_SEPARATOR, VALIDATION_FOLDER
from nnssl.sweep.api import study_status
from nnssl.sweep.places import Places, progress_of
from nnssl.sweep.study import StudyRun
from nnssl.system.files import environment_folder, read_object
from nnssl.training.record import RunRecord
from nnssl.training.settings import automatic_tag

ALL = "all"
ALL_LABELS_NAME = "{}, all labels"


@dataclass(frozen=True)
class BudgetComparison:
    """The comparison of the runs with one label budget and configuration.

    Attributes:
        configuration: for instance `3d_fullres`.
        labelled: the budget as text; `all` for every label.
        comparison: of its methods; seeds and picks of a method are averaged within each patient first.
        spreads: method -> how much seeds and picks move its difference.
        ranks: how stable the order is, None for a single seed and pick.
        alone: number of finished runs that do not count, because a method has no finished run with their seed and pick.
        methods: the runs that are compared, the baseline first.
    """

    configuration: str
    labelled: str
    comparison: Comparison
    spreads: dict[str, Spread]
    ranks: Ranks | None
    alone: int = 0
    methods: tuple[Compared, ...] = ()

    @property
    def title(self) -> str:
        """Configuration and label budget in words."""
        labels = "every label" if self.labelled == ALL else f"{self.labelled} labelled patients"
        return f"{self.configuration}, {labels}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "configuration": self.configuration,
            "labelled": self.labelled,
            **self.comparison.to_dict(),
            "spreads": {name: dataclasses.asdict(each) for name, each in self.spreads.items()},
            "ranks": None if self.ranks is None else dataclasses.asdict(self.ranks),
            "runs_alone": self.alone,
        }


@dataclass(frozen=True)
class StudyComparison:
    """What a study shows.

    Attributes:
        groups: one for each configuration and label budget, in the order of the study.
        curves: configuration -> label-efficiency curve, for those with two budgets or more.
        left: number of runs that are not done and do not count.
    """

    groups: tuple[BudgetComparison, ...]
    curves: dict[str, Curve]
    left: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: `methods` holds those of all budgets."""
        places = ("configuration", "labelled")
        return {
            "baseline": self.groups[0].comparison.baseline,
            "methods": [
                {**method, **{key: group[key] for key in places}}
                for group in (each.to_dict() for each in self.groups)
                for method in group["methods"]
            ],
            "comparisons": [group.to_dict() for group in self.groups],
            "curves": {name: dataclasses.asdict(curve) for name, curve in self.curves.items()},
            "runs_left": self.left,
        }


@dataclass(frozen=True)
class _Done:
    run: StudyRun
    folder: Path


@dataclass(frozen=True)
class _Group:
    """The methods with one configuration and budget; `keys` are pick and seed of each run of a method, in order."""

    configuration: str
    labelled: str
    methods: dict[str, Compared]
    keys: dict[str, tuple[Key, ...]]
    first: StudyRun


def compare_study(
    folder: str | Path,
    *,
    baseline: str | None = None,
    configuration: str | None = None,
    fold: str | None = None,
    metric: str = "Dice",
) -> StudyComparison:
    """Compare the finished runs of a study, for each label budget.

    Args:
        folder: of the study.
        baseline: name of a method; None for `SupervisedTrainer`.
        configuration: only this one.
        fold: only this one; None takes the folds of a run together.
        metric: see `nnssl.compare`.

    Raises:
        UsageError: there is no study, no baseline, or nothing beside it.
        DataError: methods have no case in common, or a summary lacks the metric.
        EnvironmentProblem: a file cannot be read, or one of nnU-Net's folders is not set.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, option="-metric")
    tasks = study_status(folder)
    runs = [task.job for task in tasks if isinstance(task.job, StudyRun)]
    asked = [
        run for run in runs if configuration in (None, run.configuration) and (fold is None or str(fold) == run.fold)
    ]
    places = Places.of(runs[0].dataset)
    done = [_Done(run, place) for run in asked if progress_of(place := places.folder(run), run) == "done"]
    groups = _groups(asked, done)
    bases = [choose_method(group.methods, baseline, listed=True) for group in groups]
    made = []
    for group, base in zip(groups, bases, strict=True):
        balanced, alone = _balanced(group, base.name)
        if len(balanced.methods) > 1:
            found = _compared(balanced, base.name, metric, _whole(groups, bases, group))
            made.append(dataclasses.replace(found, alone=alone))
    if not made:
        raise UsageError(
            "the study has no finished run beside the baseline",
            where=folder,
            why=f"{len(done)} of {len(asked)} runs are done",
            run=f"nnssl_sweep -o {folder}",
        )
    return StudyComparison(tuple(made), _curves(groups, bases, metric), len(asked) - len(done))


def _groups(asked: Sequence[StudyRun], done: Sequence[_Done]) -> list[_Group]:
    """Return the runs by configuration and budget; a method is a trainer with its settings, whatever seed and pick.

    Args:
        asked: all runs of the study, which give the order of the methods.
        done: the finished ones.
    """
    order = list(dict.fromkeys(map(_name, asked)))
    conditions: dict[tuple[str, str], list[_Done]] = {}
    for each in done:
        conditions.setdefault((each.run.configuration, _labels(each.run)), []).append(each)
    groups = []
    for (configuration, labelled), members in conditions.items():
        methods: dict[str, dict[Key, list[_Done]]] = {}
        for each in members:
            budget = each.run.budget
            key = (budget.pick if budget else 0, each.run.settings.seed)
            methods.setdefault(_name(each.run), {}).setdefault(key, []).append(each)
        compared = {
            name: Compared(name, tuple(_source(name, folds) for folds in found.values()))
            for name, found in sorted(methods.items(), key=lambda item: order.index(item[0]))
        }
        keys = {name: tuple(found) for name, found in methods.items()}
        groups.append(_Group(configuration, labelled, compared, keys, members[0].run))
    return groups


def _labels(run: StudyRun) -> str:
    budget = run.budget
    return str(dataclasses.replace(budget, pick=0)) if budget else ALL


def _name(run: StudyRun) -> str:
    """Return the trainer, and after `@` its settings without seed and length, which a study shares."""
    tag = automatic_tag(dataclasses.replace(run.settings, seed=0, num_iterations=type(run.settings)().num_iterations))
    return f"{run.trainer}{TAG_SEPARATOR}{tag}" if tag else run.trainer


def _source(name: str, folds: Sequence[_Done]) -> Source:
    records = {each.run.fold: record for each in folds if (record := RunRecord.read(each.folder)) is not None}
    numbered = [each for each in folds if each.run.fold != ALL] or list(folds)
    scores = merge_scores(read_scores(each.folder / VALIDATION_FOLDER / SUMMARY_JSON) for each in numbered)
    return Source(str(folds[0].folder.parent), name, scores, records, folds[0].run.trainer)


def _whole(groups: Sequence[_Group], bases: Sequence[Compared], group: _Group) -> Compared | None:
    """Return the baseline on all labels for a group with a budget, None where the study has none."""
    if group.labelled == ALL:
        return None
    for other, base in zip(groups, bases, strict=True):
        if other.labelled == ALL and other.configuration == group.configuration:
            return Compared(ALL_LABELS_NAME.format(base.name), base.sources)
    return None


def _balanced(group: _Group, baseline: str) -> tuple[_Group, int]:
    """Return the runs whose pick and seed all methods share, and the number of the others.

    Otherwise a difference of seeds or labelled patients would look like one of methods. A method that shares no pick
    and seed with the methods before it, the baseline first, is left out.
    """
    names = [baseline, *(name for name in group.methods if name != baseline)]
    common, kept = set(group.keys[baseline]), [baseline]
    for name in names[1:]:
        if shared := common & set(group.keys[name]):
            common = shared
            kept.append(name)
    methods, keys = {}, {}
    for name in kept:
        pairs = [(key, source) for key, source in zip(group.keys[name], group.methods[name].sources, strict=True)
                 if key in common]  # fmt: skip
        methods[name] = Compared(name, tuple(source for _, source in pairs))
        keys[name] = tuple(key for key, _ in pairs)
    alone = sum(map(len, group.keys.values())) - sum(map(len, keys.values()))
    return dataclasses.replace(group, methods=methods, keys=keys), alone


def _compared(group: _Group, baseline: str, metric: str, whole: Compared | None) -> BudgetComparison:
    base = group.methods[baseline]
    others = [method for method in group.methods.values() if method is not base]
    comparison = compare_methods(base, others, metric, whole)
    found = {
        method.name: spread(dict(zip(group.keys[method.name], method.pairs.by_run, strict=True)))
        for method in comparison.methods
        if len(method.pairs.by_run) == len(group.keys[method.name])
    }
    means = {
        name: {
            key: sum(values.values()) / len(values)
            for key, source in zip(group.keys[name], method.sources, strict=True)
            if (values := _by_patient(Compared(name, (source,)), metric))
        }
        for name, method in group.methods.items()
    }
    order = ranks(means, higher_is_better=METRICS[metric].higher_is_better)
    return BudgetComparison(group.configuration, group.labelled, comparison, found, order, 0, (base, *others))


def _by_patient(method: Compared, metric: str) -> dict[str, float]:
    """Return patient -> score, the mean over the runs of a method."""
    patients = {case: name for run in method.runs for case, name in run.patients.items()}
    found = pair(method.runs, method.runs, metric, patients, method.name)
    return dict(zip(found.patients, map(float, found.method), strict=True))


def _curves(groups: Sequence[_Group], bases: Sequence[Compared], metric: str) -> dict[str, Curve]:
    curves = {}
    for configuration in dict.fromkeys(group.configuration for group in groups):
        sized = [
            (*counts, group)
            for group in groups
            if group.configuration == configuration and (counts := _counts(group)) is not None
        ]
        sized.sort(key=lambda each: each[0])
        budgets, scans = [each[0] for each in sized], [each[1] for each in sized]
        base = next(base for base, group in zip(bases, groups, strict=True) if group.configuration == configuration)
        names = dict.fromkeys(name for *_, group in sized for name in group.methods)
        scores = {
            name: [_by_patient(group.methods[name], metric) if name in group.methods else None for *_, group in sized]
            for name in names
        }
        if base.name not in scores or len(set(budgets)) < len(budgets):
            continue
        better = METRICS[metric].higher_is_better
        curve = make_curve(budgets, scores, base.name, scans, higher_is_better=better)
        if curve is not None:
            curves[configuration] = curve
    return curves


def _counts(group: _Group) -> tuple[int, int | None] | None:
    """Return how many labelled patients and unlabelled scans a group has, by the splits of the data set.

    Without the preprocessed data set, a budget that is a number of patients is known, other budgets are not: None.
    """
    run = group.first
    budget = run.budget
    with contextlib.suppress(NnsslError, KeyError):
        preprocessed = environment_folder(PREPROCESSED_VARIABLE) / run.dataset
        description = read_object(preprocessed / DATASET_JSON)
        cases = cases_of_run(preprocessed, description, parse_fold(run.fold), budget)
        return len({patient_of(case, description) for case in cases.labelled}), len(cases.unlabelled)
    return None if budget is None or budget.percent else (int(budget.value), None)
