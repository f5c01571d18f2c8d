"""The cases that one set of plans may use: splits, label budget, plans tag."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.domains import Fold, Setting
from nnssl.data.raw import RawDataset, listed
from nnssl.data.scans import ScanFacts
from nnssl.data.splits import (
    FoldCases,
    LabelBudget,
    check_splits,
    completed_split,
    fold_cases,
    make_splits,
    splits_file,
)
from nnssl.errors import DataError
from nnssl.names import DATA_CHECK, SPLITS_JSON, UNLABELLED_KEY
from nnssl.system.files import read_json, write_json

Splits = list[dict[str, Any]]


@dataclass(frozen=True)
class Scope:
    """The cases that one set of plans is made from, and the folders of the data set.

    Attributes:
        raw: the raw data set.
        preprocessed: folder of the data set below `nnUNet_preprocessed`.
        tag: end of the plans name that stands for setting and label budget; empty without these.
        labelled: cases whose labels decide fingerprint and plans.
        with_labels: cases that are preprocessed with their labels: the labelled ones and, under a label budget, the
            fold's validation cases.
        unlabelled: cases that are preprocessed without a label.
        kept_with_labels: cases with labels that other folds with the same plans need; their data stay on disk.
        kept_unlabelled: the same for cases without a label.
        facts: result of the check of the raw data, by case.
    """

    raw: RawDataset
    preprocessed: Path
    tag: str
    labelled: tuple[str, ...]
    with_labels: tuple[str, ...]
    unlabelled: tuple[str, ...]
    kept_with_labels: frozenset[str]
    kept_unlabelled: frozenset[str]
    facts: Mapping[str, ScanFacts]

    def sources(self, cases: Sequence[str]) -> dict[str, str]:
        """Return case -> hash of its source files."""
        return {case: self.facts[case].source_hash for case in cases}

    def dataset_json(self) -> dict[str, Any]:
        """Return a dataset.json, in nnU-Net's format, that lists only the labelled cases of the scope."""
        cases = {
            name: {
                "images": [str(image.absolute()) for image in self.raw.labelled[name].images],
                "label": str(Path(str(self.raw.labelled[name].label)).absolute()),
            }
            for name in self.labelled
        }
        return {**self.raw.dataset_json, "numTraining": len(cases), "dataset": cases}

    def compared_facts(self) -> dict[str, ScanFacts]:
        """Return the facts of the labelled, unlabelled and test cases; hidden training cases count as unlabelled."""
        kinds = dict.fromkeys(self.labelled, "labelled") | dict.fromkeys(self.unlabelled, "unlabelled")
        kinds |= {case: "test" for case, facts in self.facts.items() if facts.kind == "test"}
        return {case: dataclasses.replace(self.facts[case], kind=kind) for case, kind in kinds.items()}


def make_scope(
    raw: RawDataset,
    preprocessed: Path,
    splits: Splits,
    fold: int | str,
    budget: LabelBudget | None,
    setting: Setting | None = None,
) -> Scope:
    """Return the cases of a plan; `facts` is empty until the raw data are checked.

    Without a label budget the fold does not matter: plans use every labelled case, as nnU-Net's plans do. Under a
    setting of domains, plans use what its only fold labels.

    Raises:
        UsageError: the fold does not exist.
        DataError: the budget is larger than the fold.
    """
    order = [case for case in raw.dataset_json.get("dataset", raw.labelled) if case in raw.labelled]
    cases = fold_cases(splits, fold, budget, raw.patients())
    if setting is None and budget is None:
        everything = tuple(order)
        return Scope(raw, preprocessed, "", everything, everything, tuple(raw.unlabelled), frozenset(), frozenset(), {})
    with_labels = set(cases.labelled) | set(cases.validation)
    folds: list[int | str] = [*range(len(splits)), "all"] if setting is None else [fold]
    all_folds = [_cases_of_fold(raw, splits, other, budget) for other in folds]
    same = [other for other in all_folds if set(other.labelled) == set(cases.labelled)]
    tag = (setting.tag if setting else "") + (budget.tag if budget else "")
    return Scope(
        raw,
        preprocessed,
        tag if set(all_folds[0].labelled) == set(cases.labelled) else f"{tag}-fold{fold}",
        labelled=tuple(case for case in order if case in set(cases.labelled)),
        with_labels=tuple(case for case in order if case in with_labels),
        unlabelled=tuple(sorted(cases.unlabelled)),
        kept_with_labels=frozenset(case for other in same for case in (*other.labelled, *other.validation)),
        kept_unlabelled=frozenset(case for other in same for case in other.unlabelled),
        facts={},
    )


def _cases_of_fold(raw: RawDataset, splits: Splits, fold: int | str, budget: LabelBudget | None) -> FoldCases:
    try:
        return fold_cases(splits, fold, budget, raw.patients())
    except DataError:  # a fold that is too small for this budget shares no plans with the planned fold
        return FoldCases((), (), ())


def settle_splits(raw: RawDataset, preprocessed: Path, protocol: Splits | None = None) -> tuple[Splits, list[str]]:
    """Return the folds that `splits_final.json` in the preprocessed folder must hold, and warnings.

    The folds come from the first of these sources that exists: the published protocol, the file in the raw folder, the
    file in the preprocessed folder, nnssl's own division. The unlabelled scans of a fold are those in `imagesUn` now,
    unless the protocol or the raw folder lists them.

    Raises:
        DataError: a file is no list of folds, names unknown cases, or disagrees with the folds of an earlier source.
    """
    theirs, ours = raw.folder / SPLITS_JSON, preprocessed / SPLITS_JSON
    labelled, unlabelled, patients = list(raw.labelled), list(raw.unlabelled), raw.patients()
    existing = _without_unlabelled(read_json(ours, "delete it and plan again")) if ours.is_file() else None
    path = theirs if protocol or theirs.is_file() else ours
    given = protocol or (read_json(theirs) if path is theirs else existing)
    if given is None:
        return make_splits(labelled, unlabelled, patients), []
    check_splits(given, labelled, unlabelled, path, patients)
    if path is theirs and existing is not None and not _same_folds(given, existing):
        new, other = (
            ("of the protocol", "leave -protocol out") if protocol else ("in the raw folder", f"delete {theirs}")
        )
        raise DataError(
            f"the folds {new} are not those of the preprocessed folder",
            where=str(ours) if protocol else f"{theirs}\n{ours}",
            why="runs that were trained on the old folds could not be compared with new ones",
            run=f"delete {ours} to use the new folds, or {other} to keep the old ones",
        )
    more = existing[len(given) :] if path is theirs and existing is not None else []  # as nnU-Net allows
    folds = [completed_split(fold, unlabelled, patients) for fold in [*given, *more]]
    used = {case for fold in folds for key in ("train", "val", UNLABELLED_KEY, "test") for case in fold.get(key, ())}
    left = sorted(set(patients) - used)
    return folds, [f"{len(left)} scan(s) are in no fold of {path}: {listed(left)}"] if left else []


def settle_setting(preprocessed: Path, setting: Setting, fold: Fold) -> None:
    """Check that the fold of a setting is the one that earlier runs were trained on.

    Raises:
        DataError: the splits file of the setting holds other training or validation cases.
    """
    path = preprocessed / splits_file(setting.tag)
    if path.is_file() and not _same_folds([fold], read_json(path, "delete it and plan again")):
        raise DataError(
            f"the cases of {setting} are not those that were planned before",
            where=path,
            why="labelled cases or their domains changed, and runs on other cases could not be compared",
            run=f"delete {path} to use the new cases",
        )


def without_cases(splits: Splits, cases: Collection[str]) -> Splits:
    """Return the folds without these unlabelled scans, also where a user or a protocol lists them."""
    return [
        {**fold, UNLABELLED_KEY: [case for case in fold.get(UNLABELLED_KEY, ()) if case not in cases]}
        for fold in splits
    ]


def _without_unlabelled(splits: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    if not isinstance(splits, list) or not all(isinstance(fold, dict) for fold in splits):
        return splits
    return [
        {key: cases for key, cases in fold.items() if key != UNLABELLED_KEY or "protocol" in fold} for fold in splits
    ]


def write_splits(preprocessed: Path, splits: Splits, setting: Setting | None = None) -> None:
    """Write `splits_final.json`, or the splits file of a setting, unless the file holds these folds already."""
    path = preprocessed / splits_file(setting.tag if setting else "")
    if not path.is_file() or read_json(path) != splits:
        write_json(path, splits)


def write_data_check(scope: Scope, warnings: Sequence[str]) -> None:
    """Write what the check found into `data_check.json`: facts of every scan under its kind, and the warnings.

    The tag of the label budget ends the name: `data_check@lab7.json`. Reports and data sheets read this file.
    """
    scans = {case: dataclasses.asdict(facts) for case, facts in sorted(scope.compared_facts().items())}
    write_json(scope.preprocessed / f"{DATA_CHECK}{scope.tag}.json", {"scans": scans, "warnings": list(warnings)})


def _same_folds(first: Any, second: Any) -> bool:  # noqa: ANN401 - whatever a user wrote
    """Return whether every fold of `first` trains and validates on the same cases in `second`."""
    try:
        pairs = [tuple(set(fold[key]) for key in ("train", "val")) for fold in first]
        others = [tuple(set(fold[key]) for key in ("train", "val")) for fold in second]
    except (TypeError, KeyError):
        return False
    return bool(pairs) and pairs == others[: len(pairs)]
