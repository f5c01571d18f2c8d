"""Patient-grouped splits and label budgets.

`splits_final.json` keeps nnU-Net's `train` and `val` and gains two keys that stock nnU-Net ignores. `unlabelled` holds
the scans of `imagesUn` that the fold may learn from; `labelled_order` holds the order in which a label budget takes the
training patients of the fold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnssl.data.raw import patient_of
from nnssl.errors import DataError, UsageError
from nnssl.names import BUDGET_TAG, DOMAINS_KEY, LABELLED_ORDER, SPLITS_JSON, UNLABELLED_KEY
from nnssl.system.files import read_json

SPLIT_SEED = 12345  # nnU-Net's own


@dataclass(frozen=True)
class FoldCases:
    """The cases of one fold under one label budget; training cases outside the budget are in `unlabelled`."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class LabelBudget:
    """How many training patients keep their labels, and which ones.

    Attributes:
        value: a count, or a percentage of the patients of the fold.
        percent: whether `value` is a percentage.
        pick: 0 keeps the first patients of `labelled_order`; 1, 2, … are other choices, each seeded with its number.
    """

    value: float
    percent: bool
    pick: int = 0

    @classmethod
    def parse(cls, text: str) -> LabelBudget:
        """Return the budget for a text such as `7`, `10%` or, with another pick of the patients, `7-pick1`.

        Raises:
            UsageError: the text is no budget.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)(?:-pick(\d+))?", text.strip())
        if match:
            value, percent = float(match[1]), bool(match[2])
            if value > 0 and (value <= 100 if percent else value == int(value)):
                return cls(value, percent, int(match[3] or 0))
        raise UsageError(
            f"'{text}' is not a label budget",
            where=f"-labelled {text}",
            why="a budget is a number of patients, or a percentage of the training patients above 0 %",
            run="-labelled 7 or -labelled 10%",
        )

    @property
    def tag(self) -> str:
        """The ending of the plans name: `@lab7`, `@lab10pct` or `@lab7-pick1`."""
        return f"{BUDGET_TAG}{self.value:g}" + ("pct" if self.percent else "") + self._pick

    def __str__(self) -> str:
        return f"{self.value:g}" + ("%" if self.percent else "") + self._pick

    @property
    def _pick(self) -> str:
        return f"-pick{self.pick}" if self.pick else ""

    def count(self, patients: int, domain: str = "") -> int:
        """Return the number of patients that keep their labels, at least one.

        Args:
            patients: training patients of the fold, or of one domain.
            domain: name of the domain; a percentage of a domain is rounded up, that of a fold to the nearest number.

        Raises:
            DataError: the budget is larger than the number of patients.
        """
        share = round(patients * self.value / 100, 6)  # 5 % of 20 is 1, not a little more
        wanted = max(1, math.ceil(share) if domain else math.floor(share + 0.5)) if self.percent else int(self.value)
        if wanted > patients:
            raise DataError(
                f"the label budget asks for {wanted} patients, the {f'domain {domain}' if domain else 'fold'} has "
                f"{patients}",
                where=f"-labelled {self}",
                run=f"-labelled {patients} or less, or leave -labelled out",
            )
        return wanted


def budget_with_pick(labelled: str | int | None, pick: int) -> str | None:
    """Return the text of a label budget with the number of a pick: `7` and 1 give `7-pick1`.

    Args:
        labelled: the budget, None for all labels.
        pick: 0 leaves the budget as it is.

    Raises:
        UsageError: the pick is negative, there is no budget, or the budget names another pick.
    """
    if not pick:
        return None if labelled is None else str(labelled)
    if pick < 0 or labelled is None:
        raise UsageError(
            "-pick must be 0 or larger" if pick < 0 else "-pick chooses the patients of a label budget",
            where=f"-pick {pick}",
            run="-labelled 7 -pick 1",
        )
    budget = LabelBudget.parse(str(labelled))
    if budget.pick not in (0, pick):
        raise UsageError("-labelled and -pick name different picks", where=f"-labelled {labelled} -pick {pick}")
    return str(replace(budget, pick=pick))


def parse_fold(text: str, option: str = "fold") -> int | Literal["all"]:
    """Return the fold that a user names: a number, or `all` for a run on every labelled case.

    Args:
        text: what the user gave.
        option: where the user gave it, for the message.

    Raises:
        UsageError: the text is neither a whole number, 0 or larger, nor `all`.
    """
    if text == "all":
        return "all"
    if text.isascii() and text.isdecimal():
        return int(text)
    raise UsageError(f"'{text}' is not a fold", where=f"{option} {text}", why="a fold is a number or 'all'")


def make_splits(
    labelled: Sequence[str], unlabelled: Sequence[str], patients: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return min(5, n) cross-validation folds grouped by patient; below five patients each fold leaves one out.

    Args:
        labelled: labelled case names.
        unlabelled: names of the scans in `imagesUn`.
        patients: case name -> patient, for all of them.

    Returns:
        One dict for each fold with `train`, `val`, `unlabelled` and `labelled_order`. Neither `train` nor `unlabelled`
        holds scans of a validation patient. With a single labelled patient the only fold validates on its training
        cases.
    """
    people = sorted({patients[case] for case in labelled})
    order = [people[i] for i in np.random.RandomState(SPLIT_SEED).permutation(len(people))]
    parts = [sorted(order[k :: min(5, len(order))]) for k in range(min(5, len(order)))]
    splits = []
    for part in parts:
        held_out = set(part) if len(people) > 1 else set()
        train = [case for case in sorted(labelled) if patients[case] not in held_out]
        val = [case for case in sorted(labelled) if patients[case] in part]
        splits.append(completed_split({"train": train, "val": val}, unlabelled, patients))
    return splits


def completed_split(split: Mapping[str, Any], unlabelled: Sequence[str], patients: Mapping[str, str]) -> dict[str, Any]:
    """Return a split to which the keys `unlabelled` and `labelled_order` are added where the split lacks them.

    A given `labelled_order` (patients or cases) stays; the default is a seeded shuffle of the training patients.
    """
    people = sorted({patients[case] for case in split["train"]})
    shuffled = [people[i] for i in np.random.RandomState(SPLIT_SEED).permutation(len(people))]
    held_out = {patients[case] for key in ("val", "test") for case in split.get(key, ())} - set(people)
    return {
        **split,
        UNLABELLED_KEY: split.get(
            UNLABELLED_KEY, [case for case in sorted(unlabelled) if patients[case] not in held_out]
        ),
        LABELLED_ORDER: split.get(LABELLED_ORDER, shuffled),
    }


def check_splits(
    splits: Any,  # noqa: ANN401 - whatever the file holds
    labelled: Iterable[str],
    unlabelled: Iterable[str],
    path: Path,
    patients: Mapping[str, str] | None = None,
) -> None:
    """Check a `splits_final.json` that a user wrote.

    Args:
        splits: content of the file.
        labelled: labelled cases of the data set.
        unlabelled: its unlabelled cases.
        path: the file, for the message.
        patients: case name -> patient; None where every case is its own patient.

    Raises:
        DataError: the content is not a list of folds, a fold names cases that the data set does not have, or a fold
            learns from a patient that it validates on.
    """
    people = patients or {}
    _check_form(splits, path)
    known, known_unlabelled = set(labelled), set(unlabelled)
    for number, fold in enumerate(splits):
        strangers = sorted((set(fold["train"]) | set(fold["val"])) - known)
        strangers += sorted(set(fold.get(UNLABELLED_KEY, ())) - known_unlabelled)
        if strangers:
            raise DataError(
                f"fold {number} names {len(strangers)} case(s) that the data set does not have",
                where=path,
                why=", ".join(strangers[:5]),
                run="correct or delete this file and plan again",
            )
        if set(fold["train"]) == set(fold["val"]):
            continue  # the user wants this, as with a single labelled patient
        held_out = {people.get(case, case) for case in fold["val"]}
        both = [case for case in [*fold["train"], *fold.get(UNLABELLED_KEY, ())] if people.get(case, case) in held_out]
        if both:
            raise DataError(
                f"fold {number} learns from {len(both)} case(s) of patients that it validates on",
                where=path,
                why=", ".join(both[:5]),
                run="keep all scans of a patient on one side",
            )


def _check_form(splits: Any, path: Path) -> None:  # noqa: ANN401
    folds = splits if isinstance(splits, list) else []
    if not folds or not all(isinstance(fold, dict) and _has_names(fold) for fold in folds):
        raise DataError(
            "the splits file is not a list of folds with case names in 'train' and 'val'",
            where=path,
            run="correct or delete this file and plan again",
        )


def _has_names(fold: Mapping[str, Any]) -> bool:
    """Return whether all lists of a fold hold names, and whether `train` and `val` are not empty."""
    lists = [fold.get("train"), fold.get("val"), fold.get(UNLABELLED_KEY, []), fold.get(LABELLED_ORDER, [])]
    named = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
    return named and bool(lists[0]) and bool(lists[1])


def splits_file(tag: str = "") -> str:
    """Return the name of the splits file of a setting with this tag, or of the data set's own folds."""
    stem, dot, ending = SPLITS_JSON.partition(".")
    return f"{stem}{tag}{dot}{ending}"


def read_splits(preprocessed: Path, tag: str = "") -> list[dict[str, Any]]:
    """Return the folds that planning wrote into a preprocessed data set folder.

    Args:
        preprocessed: the folder.
        tag: of a setting of domains, `@mdg-D` for example; empty for the data set's own folds.

    Raises:
        DataError: the file is missing or not a list of folds.
    """
    path = preprocessed / splits_file(tag)
    splits: list[dict[str, Any]] = read_json(path, f"nnssl_plan_and_preprocess -d {preprocessed.name}")
    _check_form(splits, path)
    return splits


def cases_of_run(
    preprocessed: Path, dataset_json: Mapping[str, Any], fold: int | str, budget: LabelBudget | None, tag: str = ""
) -> FoldCases:
    """Return the cases of a run from the files of a preprocessed data set; see `fold_cases`.

    Args:
        preprocessed: the data set's folder in nnUNet_preprocessed.
        dataset_json: the data set's description, which names the patients.
        fold: fold number, or "all".
        budget: the label budget, None for all labels.
        tag: of the setting of domains; empty without one.

    Raises:
        UsageError: the fold does not exist.
        DataError: the splits are missing or wrong, or the budget does not fit the fold.
    """
    splits = read_splits(preprocessed, tag)
    named = {case for split in splits for key in ("train", "val") for case in split[key]}
    return fold_cases(splits, fold, budget, {case: patient_of(case, dataset_json) for case in named})


def fold_cases(
    splits: Sequence[Mapping[str, Any]], fold: int | str, budget: LabelBudget | None, patients: Mapping[str, str]
) -> FoldCases:
    """Return the cases that a run on `fold` sees: labelled, unlabelled and validation.

    A budget keeps the first patients of `labelled_order`, or of a seeded shuffle for another pick, and turns the other
    training cases of the fold into unlabelled cases. Fold "all" trains and validates on every labelled case, as in
    nnU-Net. A fold whose `val` is its `train` also validates on its labelled cases. In a fold with `domains`, which a
    setting writes, the budget holds for each domain.

    Args:
        splits: the folds of `splits_final.json`.
        fold: fold number, or "all".
        budget: the label budget, None for all labels.
        patients: case name -> patient; a case that is not listed is its own patient.

    Raises:
        UsageError: the fold does not exist.
        DataError: the budget is larger than the fold, or `labelled_order` names too few patients.
    """
    domains: Mapping[str, str] = {}
    if fold == "all":
        train = sorted({case for split in splits for key in ("train", "val") for case in split[key]})
        order = list(dict.fromkeys(entry for split in splits for entry in split.get(LABELLED_ORDER, ())))
        extra = sorted({case for split in splits for case in split.get(UNLABELLED_KEY, ())})
        validation = train
    elif isinstance(fold, int) and 0 <= fold < len(splits):
        split = splits[fold]
        train, validation = list(split["train"]), list(split["val"])
        order, extra = list(split.get(LABELLED_ORDER, ())), list(split.get(UNLABELLED_KEY, ()))
        domains = split.get(DOMAINS_KEY, {})
    else:
        raise UsageError(
            f"fold {fold} does not exist",
            where=SPLITS_JSON,
            why=f"the data set has folds 0 to {len(splits) - 1}, and 'all'",
        )
    if budget is None:
        return FoldCases(tuple(train), tuple(extra), tuple(validation))
    chosen: set[str] = set()
    for domain in sorted({domains.get(case, "") for case in train}) or [""]:
        there = [case for case in train if domains.get(case, "") == domain]
        chosen |= _first_patients(there, order, budget, patients, domain)
    labelled = tuple(case for case in train if patients.get(case, case) in chosen)
    hidden = tuple(case for case in train if patients.get(case, case) not in chosen)
    return FoldCases(labelled, hidden + tuple(extra), labelled if set(validation) == set(train) else tuple(validation))


def _first_patients(
    train: Sequence[str], order: Sequence[str], budget: LabelBudget, patients: Mapping[str, str], domain: str
) -> set[str]:
    people = {patients.get(case, case) for case in train}
    ranked = [patient for patient in dict.fromkeys(patients.get(entry, entry) for entry in order) if patient in people]
    if budget.pick:
        everyone = sorted(people)
        ranked = [everyone[i] for i in np.random.RandomState([SPLIT_SEED, budget.pick]).permutation(len(everyone))]
    count = budget.count(len(people), domain)
    if len(ranked) < count:
        raise DataError(
            f"labelled_order names {len(ranked)} training patients, the budget needs {count}",
            where=SPLITS_JSON,
            run="complete labelled_order, or delete the file and plan again",
        )
    return set(ranked[:count])
