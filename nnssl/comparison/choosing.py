"""Which method to use: cross-validation on labelled cases with the one-standard-error rule; no test case is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.comparison.pairing import pair
from nnssl.comparison.scores import METRICS, Scores
from nnssl.comparison.sources import Compared, finished_methods, group_places
from nnssl.comparison.statistics import ROUNDING, Floats
from nnssl.errors import DataError, UsageError, unknown_name
from nnssl.names import FOLD_PREFIX, SUMMARY_JSON, VALIDATION_FOLDER
from nnssl.registry import simplicity
from nnssl.system.files import check_writable, write_json
from nnssl.training.settings import RunSettings

CHOICE_JSON = "choice.json"


@dataclass(frozen=True)
class Candidate:
    """A method that can be chosen.

    Attributes:
        name: of the method.
        trainer: class name of its trainer.
        mean: over patients, in the unit of the metric's file (Dice in [0, 1]).
        standard_error: of this mean: standard deviation over patients / √patients.
        good_enough: within one standard error of the best.
        models: the model folders, several where the method has several seeds.
    """

    name: str
    trainer: str
    mean: float
    standard_error: float
    good_enough: bool
    models: tuple[str, ...]


@dataclass(frozen=True)
class MethodChoice:
    """What cross-validation chose.

    Attributes:
        metric: key of `METRICS`.
        chosen: name of the simplest method within one standard error of the best.
        best: name of the method with the best mean.
        limit: the worst mean that is good enough: the best mean and one standard error of the best.
        patients: number of patients that all methods were validated on.
        methods: the candidates, the simplest first.
        left_out: number of validated cases that some run lacks.
    """

    metric: str
    chosen: str
    best: str
    limit: float
    patients: int
    methods: tuple[Candidate, ...]
    left_out: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        """The model folders of the chosen method."""
        return next(each.models for each in self.methods if each.name == self.chosen)

    @property
    def lines(self) -> list[str]:
        """The candidates, the choice and its reason, and the next command, for the terminal."""
        described = METRICS[self.metric]
        factor, width = described.factor, max(len(each.name) for each in self.methods)
        lines = [
            f"{each.name:{width}}  {each.mean * factor:.1f} ± {each.standard_error * factor:.1f}"
            f"{'  good enough' if each.good_enough else ''}"
            for each in self.methods
        ]
        lines[:0] = [
            f"{described.unit}, mean ± standard error over {self.patients} patients; the simplest method first"
        ]
        word = "best" if self.chosen == self.best else f"simplest within one standard error of {self.best}"
        lines.append(f"chosen: {self.chosen}, the {word}; the limit is {self.limit * factor:.1f}")
        if self.left_out:
            lines.append(f"note: {self.left_out} case(s) that not every run was validated on are left out")
        return [*lines, f"next: nnssl_predict -i IMAGES -o MASKS -m {' '.join(self.models)}"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "chosen": self.chosen,
            "best": self.best,
            "metric": self.metric,
            "limit": self.limit,
            "patients": self.patients,
            "cases_left_out": self.left_out,
            "models": list(self.models),
            "methods": [{**vars(each), "models": list(each.models)} for each in self.methods],
        }


def choose(  # noqa: PLR0913 - the options of `nnssl.compare`
    places: Sequence[str | Path] = (),
    *,
    dataset: str | int | None = None,
    plans: str | None = None,
    configuration: str | None = None,
    fold: str | int | None = None,
    metric: str = "Dice",
    output_folder: str | Path | None = None,
) -> MethodChoice:
    """Choose a method by the validation scores of the runs: the simplest within one standard error of the best.

    The scores are those of the validation cases of the folds, which are labelled cases that the fold did not train on.
    Places that are no runs, such as predictions of test cases, are refused, so that no test case has a say. The mean is
    over the patients that all runs validated, and the standard error is that of the best method's mean (Breiman et al.
    1984, Classification and Regression Trees). The order of simplicity is that of `nnssl.registry.METHODS`; of equally
    simple methods the better one comes first.

    Args:
        places: folders of runs, at least two methods; `NAME=PLACE` as in `nnssl.compare`.
        dataset: instead of places: all finished and validated runs of this data set.
        plans: with `dataset`: plans name.
        configuration: with `dataset`: for instance `3d_fullres`.
        fold: with `dataset`: only this fold.
        metric: see `nnssl.compare`.
        output_folder: writes choice.json there.

    Raises:
        UsageError: an argument is wrong, there is one method only, or a place is no run.
        DataError: the runs were validated on no common cases, on fewer than two patients, or with other label budgets.
        EnvironmentProblem: a file cannot be read or written, or `nnUNet_results` is not set.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, option="-metric")
    if bool(places) == (dataset is not None):
        raise UsageError("name either runs or a data set", run="nnssl_compare RUN RUN --choose, or -d ID --choose")
    if dataset is None and (plans, configuration, fold) != (None, None, None):
        raise UsageError("-p, -c and -f go with -d", run="nnssl_compare -d ID --choose")
    output = None if output_folder is None else Path(output_folder)
    if output is not None:
        check_writable(output, "the output folder", "choose another folder with -o")
    if dataset is None:
        methods = list(group_places(places, check=_check_run).values())
    else:
        methods = finished_methods(dataset, plans, configuration, fold)
    choice = choose_among(methods, metric)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / CHOICE_JSON, choice.to_dict())
    return choice


def choose_among(methods: Sequence[Compared], metric: str) -> MethodChoice:
    """Return the choice among methods that were read; see `choose`."""
    if len(methods) < 2:
        raise UsageError("there is only one method", why="a choice needs two", run="nnssl_runs lists all runs")
    _check_same_conditions(methods)
    values, left_out = _values(methods, metric)
    patients = len(values[0])
    if patients < 2:
        raise DataError(
            "all methods were validated on one patient only",
            where=methods[0].runs[0].folders[0],
            why="a mean of one patient has no standard error",
            run="validate other folds: nnssl_train … 1",
        )
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    means = [float(each.mean()) for each in values]
    errors = [float(each.std(ddof=1)) / math.sqrt(patients) for each in values]
    best = max(range(len(methods)), key=lambda i: sign * means[i])
    limit = means[best] - sign * errors[best]
    order = sorted(range(len(methods)), key=lambda i: (simplicity(methods[i].trainer), -sign * means[i]))
    candidates = tuple(
        Candidate(
            methods[i].name, methods[i].trainer, means[i], errors[i], sign * (means[i] - limit) >= -ROUNDING,
            _models(methods[i]),
        )
        for i in order
    )  # fmt: skip
    chosen = next(each.name for each in candidates if each.good_enough)
    return MethodChoice(metric, chosen, methods[best].name, limit, patients, candidates, left_out)


def _check_run(place: Path) -> None:
    """Refuse a place that is no fold and no model, before a score is read."""
    folds = [place] if place.name.startswith(FOLD_PREFIX) else list(place.glob(f"{FOLD_PREFIX}*"))
    if (place / SUMMARY_JSON).is_file() or not any((fold / VALIDATION_FOLDER).is_dir() for fold in folds):
        raise UsageError(
            "a method is chosen among runs",
            where=place,
            why="this is no fold and no model; scores of test cases have no say in a choice",
            run="name the folders of runs, or nnssl_compare -d ID --choose",
        )


def _check_same_conditions(methods: Sequence[Compared]) -> None:
    """Check that all runs are cross-validated runs of one data set with one label budget."""
    kinds: dict[tuple[str, str, str], str] = {}
    for source in (source for method in methods for source in method.sources):
        record = source.record
        whole = [folder for folder in source.scores.folders if folder.parent.name == f"{FOLD_PREFIX}all"]
        if whole:
            raise UsageError(
                "fold all is validated on its own training cases", where=whole[0], run="choose among numbered folds"
            )
        settings = record.settings if record else RunSettings()
        kinds[record.dataset if record else "", settings.labelled or "", settings.setting or ""] = source.text
    if len(kinds) > 1:
        raise DataError(
            "the runs have other data sets, label budgets or settings",
            where=next(iter(kinds.values())),
            why="\n".join(f"{place}: {' '.join(filter(None, kind)) or 'no record'}" for kind, place in kinds.items()),
            run="choose among runs on the same labels: nnssl_compare -d ID -p PLANS --choose",
        )


def _values(methods: Sequence[Compared], metric: str) -> tuple[list[Floats], int]:
    """Return each method's values of shape (patients,) on the common cases, and the number of the other cases."""
    runs = [run for method in methods for run in method.runs]
    listed = [set(run.cases) for run in runs]
    common = set.intersection(*listed)
    if not common:
        raise DataError(
            "the runs were validated on no common case", where=runs[0].folders[0], run="compare the same folds: -f"
        )
    patients = {case: name for run in reversed(runs) for case, name in run.patients.items()}
    shared = partial(_restricted, common=common)
    everyone = [shared(run) for run in runs]
    pairs = [pair(everyone, list(map(shared, each.runs)), metric, patients, each.name) for each in methods]
    names = sorted(set.intersection(*(set(each.patients) for each in pairs)))
    found = [dict(zip(each.patients, each.method, strict=True)) for each in pairs]
    return [np.array([each[name] for name in names]) for each in found], len(set.union(*listed) - common)


def _restricted(run: Scores, common: set[str]) -> Scores:
    cases: Mapping[str, Any] = {case: scores for case, scores in run.cases.items() if case in common}
    return Scores(run.folders, cases, run.structures, run.patients)


def _models(method: Compared) -> tuple[str, ...]:
    return tuple(str(source.scores.folders[0].parents[1]) for source in method.sources)
