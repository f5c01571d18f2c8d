from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.data.splits import (
    FoldCases,
    LabelBudget,
    budget_with_pick,
    cases_of_run,
    check_splits,
    completed_split,
    fold_cases,
    make_splits,
    parse_fold,
    read_splits,
    splits_file,
)
from nnssl.errors import DataError, UsageError

LABELLED = [f"p{number:02d}_{frame}" for number in range(12) for frame in ("ed", "es")]
UNLABELLED = ["p00_mid", "p05_mid", "x1", "x2"]
PATIENTS = {case: case.split("_")[0] for case in LABELLED + UNLABELLED}


def patients_of(cases: list[str]) -> set[str]:
    return {PATIENTS[case] for case in cases}


@pytest.mark.parametrize(("text", "fold"), [("0", 0), ("12", 12), ("all", "all")])
def test_folds_that_a_user_names(text: str, fold: int | str) -> None:
    assert parse_fold(text) == fold


@pytest.mark.parametrize("text", ["", "-1", "1.0", "first", "ALL", "²", "١", " 1"])
def test_what_is_no_fold(text: str) -> None:
    with pytest.raises(UsageError, match="is not a fold") as caught:
        parse_fold(text, "-f")
    assert caught.value.where == f"-f {text}"
    assert "number or 'all'" in caught.value.why


def test_folds_are_grouped_by_patient_and_cover_every_case() -> None:
    splits = make_splits(LABELLED, UNLABELLED, PATIENTS)
    assert len(splits) == 5
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(LABELLED)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(LABELLED)
        assert not patients_of(fold["train"]) & patients_of(fold["val"])
        assert len(patients_of(fold["val"])) in (2, 3)


def test_scans_of_validation_patients_are_not_learned_from() -> None:
    for fold in make_splits(LABELLED, UNLABELLED, PATIENTS):
        assert not patients_of(fold["unlabelled"]) & patients_of(fold["val"])
        expected = [case for case in UNLABELLED if PATIENTS[case] not in patients_of(fold["val"])]
        assert fold["unlabelled"] == expected


def test_labelled_order_is_the_training_patients_shuffled() -> None:
    for fold in make_splits(LABELLED, UNLABELLED, PATIENTS):
        assert sorted(fold["labelled_order"]) == sorted(patients_of(fold["train"]))
        assert fold["labelled_order"] != sorted(fold["labelled_order"])


def test_splits_do_not_depend_on_the_order_of_the_cases() -> None:
    assert make_splits(LABELLED[::-1], UNLABELLED[::-1], PATIENTS) == make_splits(LABELLED, UNLABELLED, PATIENTS)


@pytest.mark.parametrize(("people", "folds"), [(1, 1), (2, 2), (4, 4), (5, 5), (6, 5)])
def test_number_of_folds(people: int, folds: int) -> None:
    splits = make_splits(LABELLED[: 2 * people], [], PATIENTS)
    assert len(splits) == folds
    assert all(fold["train"] and fold["val"] for fold in splits)
    if 1 < people < 5:
        assert all(len(patients_of(fold["val"])) == 1 for fold in splits)


def test_a_single_patient_validates_on_its_training_cases() -> None:
    (fold,) = make_splits(LABELLED[:2], UNLABELLED, PATIENTS)
    assert fold["train"] == fold["val"] == LABELLED[:2]
    assert fold["unlabelled"] == sorted(UNLABELLED)


def test_completed_split_keeps_what_is_given() -> None:
    given = {"train": ["p00_ed", "p01_ed"], "val": ["p05_ed"], "name": "paper"}
    made = completed_split(given, UNLABELLED, PATIENTS)
    assert made["unlabelled"] == ["p00_mid", "x1", "x2"]
    assert sorted(made["labelled_order"]) == ["p00", "p01"]
    assert made["name"] == "paper"
    kept = completed_split({**given, "unlabelled": ["x2"], "labelled_order": ["p01_ed"]}, UNLABELLED, PATIENTS)
    assert (kept["unlabelled"], kept["labelled_order"]) == (["x2"], ["p01_ed"])


@pytest.mark.parametrize(
    ("text", "tag", "shown"),
    [
        ("7", "@lab7", "7"),
        ("10%", "@lab10pct", "10%"),
        (" 2.5% ", "@lab2.5pct", "2.5%"),
        ("100%", "@lab100pct", "100%"),
        ("7-pick3", "@lab7-pick3", "7-pick3"),
        ("10%-pick1", "@lab10pct-pick1", "10%-pick1"),
        ("7-pick0", "@lab7", "7"),
    ],
)
def test_budget_text(text: str, tag: str, shown: str) -> None:
    budget = LabelBudget.parse(text)
    assert (budget.tag, str(budget)) == (tag, shown)
    assert LabelBudget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "text", ["0", "0%", "-1", "1.5", "101%", "seven", "", "10 %", "%", "1e2", "7%7", "7-pick", "7-pick-1"]
)
def test_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="is not a label budget") as caught:
        LabelBudget.parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "patients", "count"),
    [("7", 70, 7), ("10%", 70, 7), ("5%", 70, 4), ("1%", 10, 1), ("15%", 10, 2), ("14%", 10, 1), ("100%", 9, 9)],
)
def test_budget_count_rounds_halves_up_and_keeps_one(text: str, patients: int, count: int) -> None:
    assert LabelBudget.parse(text).count(patients) == count


def test_budget_larger_than_the_fold() -> None:
    with pytest.raises(DataError, match="asks for 8 patients, the fold has 7") as caught:
        LabelBudget.parse("8").count(7)
    assert "-labelled 7" in caught.value.run


FOLDS = [
    {
        "train": ["p02_ed", "p02_es", "p03_ed", "p04_ed"],
        "val": ["p05_ed"],
        "unlabelled": ["x1"],
        "labelled_order": ["p04", "p02", "p03"],
    },
    {
        "train": ["p05_ed", "p04_ed"],
        "val": ["p02_ed", "p02_es", "p03_ed"],
        "unlabelled": ["x2"],
        "labelled_order": ["p05"],
    },
]


def cases_of(fold: int | str, budget: str | None = None) -> FoldCases:
    return fold_cases(FOLDS, fold, LabelBudget.parse(budget) if budget else None, PATIENTS)


def test_without_a_budget_all_labels_are_seen() -> None:
    assert cases_of(0) == FoldCases(("p02_ed", "p02_es", "p03_ed", "p04_ed"), ("x1",), ("p05_ed",))


def test_a_budget_takes_the_first_patients_and_hides_the_others() -> None:
    assert cases_of(0, "1") == FoldCases(("p04_ed",), ("p02_ed", "p02_es", "p03_ed", "x1"), ("p05_ed",))
    assert cases_of(0, "2") == FoldCases(("p02_ed", "p02_es", "p04_ed"), ("p03_ed", "x1"), ("p05_ed",))
    assert cases_of(0, "3").labelled == cases_of(0).labelled
    assert cases_of(0, "34%") == cases_of(0, "1")


def test_smaller_budgets_are_parts_of_larger_ones() -> None:
    splits = make_splits(LABELLED, UNLABELLED, PATIENTS)
    for fold, split in enumerate(splits):
        before: set[str] = set()
        for count in range(1, len(split["labelled_order"]) + 1):
            found = fold_cases(splits, fold, LabelBudget.parse(str(count)), PATIENTS)
            assert before < set(found.labelled)
            assert len(patients_of(list(found.labelled))) == count
            assert not set(found.labelled) & set(found.unlabelled)
            assert set(found.labelled) | set(found.unlabelled) == set(split["train"]) | set(split["unlabelled"])
            assert list(found.validation) == split["val"]
            before = set(found.labelled)


def test_a_pick_is_a_seeded_choice_of_as_many_patients() -> None:
    people = [f"p{i:02}" for i in range(20)]
    (split, *_), budgets = make_splits(people, [], {name: name for name in people}), ("5", "5-pick1", "5-pick2")
    first, second, third = (fold_cases([split], 0, LabelBudget.parse(text), {}) for text in budgets)
    seeded = np.random.RandomState([12345, 1]).permutation(len(split["train"]))[:5]
    assert sorted(second.labelled) == sorted(sorted(split["train"])[i] for i in seeded)
    assert len({first.labelled, second.labelled, third.labelled}) == 3
    for each in (first, second, third):
        assert len(each.labelled) == 5
        assert each.validation == first.validation
        assert sorted(each.labelled + each.unlabelled) == sorted(split["train"])


def test_a_pick_keeps_all_scans_of_a_patient_together() -> None:
    for number in range(1, 6):
        found = cases_of(0, f"1-pick{number}")
        assert len(patients_of(list(found.labelled))) == 1
        assert not patients_of(list(found.labelled)) & patients_of(list(found.unlabelled))


def test_budget_and_pick_make_one_text() -> None:
    assert budget_with_pick("7", 0) == "7"
    assert budget_with_pick(None, 0) is None
    assert budget_with_pick("10%", 2) == "10%-pick2"
    assert budget_with_pick("7-pick2", 2) == "7-pick2"
    for labelled, pick, fragment in (("7", -1, "0 or larger"), (None, 1, "label budget"), ("7-pick2", 1, "different")):
        with pytest.raises(UsageError, match=fragment):
            budget_with_pick(labelled, pick)


def test_order_may_name_cases() -> None:
    split = [{**FOLDS[0], "labelled_order": ["p03_ed", "p02_es", "p02_ed", "p04_ed"]}]
    found = fold_cases(split, 0, LabelBudget.parse("2"), PATIENTS)
    assert found.labelled == ("p02_ed", "p02_es", "p03_ed")


def test_unlisted_cases_are_their_own_patients() -> None:
    split = [{"train": ["a", "b"], "val": ["c"], "labelled_order": ["b", "a"]}]
    assert fold_cases(split, 0, LabelBudget.parse("1"), {}) == FoldCases(("b",), ("a",), ("c",))


def test_fold_all_trains_and_validates_on_everything() -> None:
    everything = ("p02_ed", "p02_es", "p03_ed", "p04_ed", "p05_ed")
    assert cases_of("all") == FoldCases(everything, ("x1", "x2"), everything)
    assert cases_of("all", "1") == FoldCases(
        ("p04_ed",), ("p02_ed", "p02_es", "p03_ed", "p05_ed", "x1", "x2"), ("p04_ed",)
    )


@pytest.mark.parametrize("fold", [2, -1, "0", "every"])
def test_unknown_fold(fold: int | str) -> None:
    with pytest.raises(UsageError, match=f"fold {fold} does not exist") as caught:
        cases_of(fold)
    assert "folds 0 to 1" in caught.value.why


def test_order_that_does_not_cover_the_budget() -> None:
    with pytest.raises(DataError, match="names 1 training patients, the budget needs 2"):
        cases_of(1, "2")
    assert cases_of(1, "1").labelled == ("p05_ed",)


def test_good_splits_pass() -> None:
    folds = make_splits(LABELLED, UNLABELLED, PATIENTS)
    check_splits(folds, LABELLED, UNLABELLED, Path("splits_final.json"), PATIENTS)
    check_splits([{"train": ["p00_ed"], "val": ["p00_ed"]}], LABELLED, UNLABELLED, Path("splits_final.json"))


@pytest.mark.parametrize(
    ("splits", "fragment"),
    [
        ({}, "not a list of folds"),
        ([], "not a list of folds"),
        ([1], "not a list of folds"),
        (["train val"], "not a list of folds"),
        ([{"train": ["p00_ed"]}], "not a list of folds"),
        ([{"train": [], "val": ["p00_ed"]}], "not a list of folds"),
        ([{"train": ["p00_ed"], "val": []}], "not a list of folds"),
        ([{"train": ["nobody"], "val": ["p00_ed"]}], "names 1 case"),
        ([{"train": ["p01_ed"], "val": ["p00_ed"], "unlabelled": ["nobody"]}], "names 1 case"),
        ([{"train": ["p01_ed", "p00_ed"], "val": ["p00_ed"]}], "patients that it validates on"),
        ([{"train": ["p01_ed", "p00_es"], "val": ["p00_ed"]}], "patients that it validates on"),
    ],
)
def test_bad_splits(splits: object, fragment: str) -> None:
    with pytest.raises(DataError, match=fragment) as caught:
        check_splits(splits, LABELLED, UNLABELLED, Path("splits_final.json"), PATIENTS)
    assert caught.value.where == "splits_final.json"


def test_read_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path / "Dataset007_Toy")
    assert caught.value.run == "nnssl_plan_and_preprocess -d Dataset007_Toy"
    (tmp_path / "splits_final.json").write_text(json.dumps(FOLDS))
    assert read_splits(tmp_path) == FOLDS


def test_cases_of_a_run_come_from_the_preprocessed_folder(tmp_path: Path) -> None:
    splits = [{"train": ["a1", "a2", "b1"], "val": ["c1"], "unlabelled": ["u"], "labelled_order": ["a", "b"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    dataset_json = {"cases": {case: {"patient": case[0]} for case in ("a1", "a2", "b1", "c1")}}
    found = cases_of_run(tmp_path, dataset_json, 0, LabelBudget.parse("1"))
    assert found == FoldCases(("a1", "a2"), ("b1", "u"), ("c1",))
    assert cases_of_run(tmp_path, dataset_json, 0, None).labelled == ("a1", "a2", "b1")


def test_a_budget_of_a_fold_with_domains_holds_for_each_domain() -> None:
    train = [case for case in LABELLED if case < "p10"]
    domains = {case: "A" if case < "p07" else "B" for case in train}
    order = [f"p{number:02d}" for number in (9, 3, 8, 1, 0, 2, 4, 5, 6, 7)]
    fold = {"train": train, "val": LABELLED[-2:], "unlabelled": [], "labelled_order": order, "domains": domains}
    for budget, expected in (("1", {"p03", "p09"}), ("20%", {"p03", "p01", "p09"}), ("1%", {"p03", "p09"})):
        seen = fold_cases([fold], 0, LabelBudget.parse(budget), PATIENTS)
        assert patients_of(list(seen.labelled)) == expected
        assert sorted(seen.labelled + seen.unlabelled) == train
    with pytest.raises(DataError, match="asks for 4 patients, the domain B has 3"):
        fold_cases([fold], 0, LabelBudget.parse("4"), PATIENTS)


@pytest.mark.parametrize(("percent", "patients", "count"), [("5%", 20, 1), ("5%", 21, 2), ("2%", 50, 1), ("2%", 95, 2)])
def test_a_percentage_of_a_domain_is_rounded_up(percent: str, patients: int, count: int) -> None:
    assert LabelBudget.parse(percent).count(patients, "A") == count


def test_each_setting_has_a_splits_file(tmp_path: Path) -> None:
    assert (splits_file(), splits_file("@mdg-D")) == ("splits_final.json", "splits_final@mdg-D.json")
    for tag, cases in (("", ["a"]), ("@mdg-D", ["b"])):
        (tmp_path / splits_file(tag)).write_text(json.dumps([{"train": cases, "val": cases}]))
    assert read_splits(tmp_path)[0]["train"] == ["a"]
    assert read_splits(tmp_path, "@mdg-D")[0]["train"] == ["b"]
    assert cases_of_run(tmp_path, {}, 0, None, "@mdg-D") == FoldCases(("b",), (), ("b",))
