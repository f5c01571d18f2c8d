"""Which cases one set of plans may see: splits, label budget, plans tag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.raw import RawDataset
from nnssl.data.scans import ScanFacts
from nnssl.data.splits import FoldCases, LabelBudget, check_splits, completed_split, fold_cases, make_splits
from nnssl.errors import DataError
from nnssl.system.files import read_json, write_json

SPLITS = "splits_final.json"
Splits = list[dict[str, Any]]


@dataclass(frozen=True)
class Scope:
    """The cases that one set of plans is made from, and their place on disk.

    Attributes:
        raw: the raw data set.
        preprocessed: its folder below `nnUNet_preprocessed`.
        tag: what the plans name gains by a label budget, empty without one.
        labelled: cases whose labels decide fingerprint and plans.
        with_labels: cases that are preprocessed with their labels: the labelled ones and, under a label budget, the
            fold's validation cases.
        unlabelled: cases that are preprocessed without a label.
        kept_with_labels: cases of other folds with the same plans, whose data stay where they are.
        kept_unlabelled: likewise, of those without a label.
        facts: what the check of the raw data learned, by case.
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
        """Return case -> hash of the files it is made from."""
        return {case: self.facts[case].source_hash for case in cases}

    def dataset_json(self) -> dict[str, Any]:
        """Return a dataset.json that lists the labelled cases of the scope only, as nnU-Net reads it."""
        cases = {
            name: {
                "images": [str(image.absolute()) for image in self.raw.labelled[name].images],
                "label": str(Path(str(self.raw.labelled[name].label)).absolute()),
            }
            for name in self.labelled
        }
        return {**self.raw.dataset_json, "numTraining": len(cases), "dataset": cases}

    def compared_facts(self) -> dict[str, ScanFacts]:
        """Return the facts with hidden training cases as unlabelled ones, and without validation cases."""
        kinds = dict.fromkeys(self.labelled, "labelled") | dict.fromkeys(self.unlabelled, "unlabelled")
        kinds |= {case: "test" for case, facts in self.facts.items() if facts.kind == "test"}
        return {case: dataclasses.replace(self.facts[case], kind=kind) for case, kind in kinds.items()}


def make_scope(
    raw: RawDataset,
    preprocessed: Path,
    splits: Splits,
    fold: int | str,
    budget: LabelBudget | None,
) -> Scope:
    """Return the cases of a plan; `facts` is empty until the raw data are checked.

    Without a label budget the fold does not matter: plans see every labelled case, as nnU-Net's do.

    Raises:
        UsageError: the fold does not exist.
        DataError: the budget is larger than the fold.
    """
    order = [case for case in raw.dataset_json.get("dataset", raw.labelled) if case in raw.labelled]
    cases = fold_cases(splits, fold, budget, raw.patients())
    if budget is None:
        everything = tuple(order)
        return Scope(raw, preprocessed, "", everything, everything, tuple(raw.unlabelled), frozenset(), frozenset(), {})
    folds: list[int | str] = [*range(len(splits)), "all"]
    same = [other for f in folds if set((other := _of_fold(raw, splits, f, budget)).labelled) == set(cases.labelled)]
    first = _of_fold(raw, splits, 0, budget)
    with_labels = set(cases.labelled) | set(cases.validation)
    return Scope(
        raw,
        preprocessed,
        budget.tag if set(first.labelled) == set(cases.labelled) else f"{budget.tag}-fold{fold}",
        labelled=tuple(case for case in order if case in set(cases.labelled)),
        with_labels=tuple(case for case in order if case in with_labels),
        unlabelled=tuple(sorted(cases.unlabelled)),
        kept_with_labels=frozenset(case for other in same for case in (*other.labelled, *other.validation)),
        kept_unlabelled=frozenset(case for other in same for case in other.unlabelled),
        facts={},
    )


def _of_fold(raw: RawDataset, splits: Splits, fold: int | str, budget: LabelBudget) -> FoldCases:
    try:
        return fold_cases(splits, fold, budget, raw.patients())
    except DataError:  # a fold too small for this budget has nothing in common with the one that is planned
        return FoldCases((), (), ())


def settle_splits(raw: RawDataset, preprocessed: Path, protocol: Splits | None = None) -> tuple[Splits, list[str]]:
    """Return the folds that `splits_final.json` in the preprocessed folder must hold, and warnings.

    Folds of a published protocol win, then a file in the raw folder, then one that is already there, else folds are
    made. The unlabelled scans of a fold are those of `imagesUn` now, unless the protocol or the raw folder lists them.

    Raises:
        DataError: a file is no list of folds, names unknown cases, or disagrees with the folds that win.
    """
    theirs, ours = raw.folder / SPLITS, preprocessed / SPLITS
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
    used = {case for fold in folds for key in ("train", "val", "unlabelled", "test") for case in fold.get(key, ())}
    left = sorted(set(patients) - used)
    names = ", ".join(left[:5]) + (" …" if len(left) > 5 else "")
    return folds, [f"{len(left)} scan(s) are in no fold of {path}: {names}"] if left else []


def _without_unlabelled(splits: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    if not isinstance(splits, list) or not all(isinstance(fold, dict) for fold in splits):
        return splits
    return [{key: cases for key, cases in fold.items() if key != "unlabelled" or "protocol" in fold} for fold in splits]


def write_splits(preprocessed: Path, splits: Splits) -> None:
    """Write `splits_final.json`, unless it says the same already."""
    path = preprocessed / SPLITS
    if not path.is_file() or read_json(path) != splits:
        write_json(path, splits)


def _same_folds(first: Any, second: Any) -> bool:  # noqa: ANN401 - whatever a user wrote
    """Return whether every fold of `first` trains and validates on the same cases in `second`."""
    try:
        pairs = [tuple(set(fold[key]) for key in ("train", "val")) for fold in first]
        others = [tuple(set(fold[key]) for key in ("train", "val")) for fold in second]
    except (TypeError, KeyError):
        return False
    return bool(pairs) and pairs == others[: len(pairs)]
