"""New labelled cases in existing folds: they are learned from, and no validation case moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnssl.names import LABELLED_ORDER, UNLABELLED_KEY

Split = dict[str, Any]


def with_new_cases(
    splits: Sequence[Mapping[str, Any]], cases: Iterable[str], patients: Mapping[str, str]
) -> list[Split]:
    """Return folds that learn from further labelled cases.

    A case joins `train` of every fold that neither validates on nor tests its patient, its patient joins the end of
    `labelled_order`, so that label budgets mean the same cases as before, and the case leaves `unlabelled`.
    `val` stays.

    A fold that validates on its only training patient does so for lack of others: with new patients it learns from
    these, and validates on cases that it has not learned from.

    Args:
        splits: the folds.
        cases: the new cases.
        patients: case -> patient; a case that is not listed is its own patient.
    """
    return [_with_new_cases(split, sorted(cases), patients) for split in splits]


def _with_new_cases(split: Mapping[str, Any], cases: Sequence[str], patients: Mapping[str, str]) -> Split:
    held_out = {patients.get(case, case) for key in ("val", "test") for case in split.get(key, ())}
    joining = [case for case in cases if patients.get(case, case) not in held_out and case not in split["train"]]
    train, val, order = list(split["train"]), list(split["val"]), list(split.get(LABELLED_ORDER, ()))
    if set(train) == set(val):
        if joining:
            train, order = [], []
        else:  # further scans of the only patient
            new = [case for case in cases if case not in train and patients.get(case, case) in held_out]
            train, val = train + new, val + new
    known = {patients.get(entry, entry) for entry in order}
    order += [name for name in dict.fromkeys(patients.get(case, case) for case in joining) if name not in known]
    changed: Split = {**split, "train": train + joining, "val": val}
    if LABELLED_ORDER in split:
        changed[LABELLED_ORDER] = order
    if UNLABELLED_KEY in split:
        changed[UNLABELLED_KEY] = [case for case in split[UNLABELLED_KEY] if case not in set(cases)]
    return changed
