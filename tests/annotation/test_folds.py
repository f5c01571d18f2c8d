from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.annotation.folds import with_new_cases
from nnssl.data.splits import LabelBudget, check_splits, fold_cases, make_splits

LABELLED = [f"case{n}" for n in range(7)]
UNLABELLED = ["new1", "new2", "follow_up"]
PATIENTS = {case: case for case in [*LABELLED, *UNLABELLED]} | {"follow_up": "case3"}


def test_new_cases_join_the_training_of_folds_that_do_not_validate_on_their_patient() -> None:
    before = make_splits(LABELLED, UNLABELLED, PATIENTS)
    after = with_new_cases(before, ["new1", "follow_up"], PATIENTS)
    check_splits(after, [*LABELLED, "new1", "follow_up"], ["new2"], Path(), PATIENTS)
    held = 0
    for old, new in zip(before, after, strict=True):
        assert new["val"] == old["val"]
        validates = "case3" in old["val"]
        held += validates
        assert new["train"] == old["train"] + ([] if validates else ["follow_up"]) + ["new1"]
        assert new["unlabelled"] == ["new2"]
        assert new["labelled_order"] == [*old["labelled_order"], "new1"]
        budget = LabelBudget.parse("2")
        known, more = (fold_cases([split], 0, budget, PATIENTS).labelled for split in (old, new))
        assert set(known) <= set(more)
        assert {PATIENTS[case] for case in more} == {PATIENTS[case] for case in known}
    assert held == 1
    assert before == make_splits(LABELLED, UNLABELLED, PATIENTS)


def test_folds_of_stock_nnunet_stay_without_the_keys_of_nnssl() -> None:
    assert with_new_cases([{"train": ["a"], "val": ["b"]}], ["c"], {}) == [{"train": ["a", "c"], "val": ["b"]}]


def test_tested_patients_are_not_learned_from() -> None:
    (split,) = with_new_cases([{"train": ["a"], "val": ["b"], "test": ["c"]}], ["d"], {"d": "c"})
    assert split["train"] == ["a"]


@pytest.mark.parametrize(
    ("new", "patients", "train", "val"),
    [
        (["x"], {}, ["x"], ["a"]),
        (["a2"], {"a": "a", "a2": "a"}, ["a", "a2"], ["a", "a2"]),
        (["a2", "x"], {"a": "a", "a2": "a"}, ["x"], ["a"]),
    ],
)
def test_a_single_patient_is_validated_on_and_no_longer_learned_from_when_there_are_others(
    new, patients, train, val
) -> None:
    before = {"train": ["a"], "val": ["a"], "unlabelled": [*new, "y"], "labelled_order": ["a"]}
    (after,) = with_new_cases([before], new, patients)
    assert (after["train"], after["val"], after["unlabelled"]) == (train, val, ["y"])
    assert after["labelled_order"] == (["x"] if "x" in new else ["a"])
    check_splits([after], ["a", *new], ["y"], Path(), patients)


def test_a_case_that_was_added_before_is_not_added_again() -> None:
    split = {"train": ["a", "c"], "val": ["b"], "labelled_order": ["a", "c"]}
    assert with_new_cases([split], ["c"], {}) == [split]
