import pytest

from nnssl.data.domains import Setting, seen_part, setting_fold
from nnssl.data.raw import read_raw_dataset
from nnssl.data.splits import LabelBudget, completed_split
from nnssl.errors import DataError, UsageError
from nnssl.planning.scope import make_scope, settle_setting, settle_splits, write_splits
from tests.planning.raw_for_tests import read_json, write_json, write_scan

CASES = [f"case_{number}" for number in range(6)]
TWO_FOLDS = [
    {"train": CASES[:4], "val": CASES[4:], "labelled_order": CASES[:4]},
    {"train": CASES[2:], "val": CASES[:2], "labelled_order": CASES[:1:-1]},
]


def settled(data):
    raw = read_raw_dataset(906)
    data.preprocessed.mkdir(parents=True, exist_ok=True)
    splits, warnings = settle_splits(raw, data.preprocessed)
    write_splits(data.preprocessed, splits)
    return raw, splits, warnings


def test_without_a_file_folds_are_made_and_stay(data):
    _, splits, warnings = settled(data)
    assert len(splits) == 5
    assert warnings == []
    assert sorted(case for split in splits for case in split["val"]) == CASES
    assert settled(data)[1] == splits == read_json(data.preprocessed / "splits_final.json")


def test_made_folds_take_up_new_scans(data):
    settled(data)
    write_scan(data.raw / "imagesUn", "un_9", 200)
    assert all("un_9" in split["unlabelled"] for split in settled(data)[1])


def test_the_users_file_wins_and_is_completed(data):
    write_json(data.raw / "splits_final.json", TWO_FOLDS[:1])
    splits = settled(data)[1]
    assert splits == [{**TWO_FOLDS[0], "unlabelled": ["un_0", "un_1", "un_2"]}]
    write_json(data.raw / "splits_final.json", [{**TWO_FOLDS[0], "labelled_order": CASES[3::-1]}])
    assert settled(data)[1][0]["labelled_order"] == CASES[3::-1]


def test_disagreeing_files_are_an_error_that_says_what_to_delete(data):
    settled(data)
    before = (data.preprocessed / "splits_final.json").read_bytes()
    write_json(data.raw / "splits_final.json", TWO_FOLDS)
    with pytest.raises(DataError, match="folds in the raw folder") as caught:
        settled(data)
    assert "delete" in caught.value.run
    assert (data.preprocessed / "splits_final.json").read_bytes() == before


def test_folds_that_only_the_preprocessed_file_has_are_kept(data):
    data.preprocessed.mkdir(parents=True)
    write_json(data.preprocessed / "splits_final.json", TWO_FOLDS)
    write_json(data.raw / "splits_final.json", TWO_FOLDS[:1])
    assert [split["train"] for split in settled(data)[1]] == [CASES[:4], CASES[2:]]


def test_a_file_of_stock_nnunet_is_completed(data):
    data.preprocessed.mkdir(parents=True)
    stock = [{"train": CASES[:3], "val": CASES[3:5]}]
    write_json(data.preprocessed / "splits_final.json", stock)
    raw, splits, warnings = settled(data)
    assert splits == [completed_split(stock[0], ["un_0", "un_1", "un_2"], raw.patients())]
    assert len(warnings) == 1
    assert "case_5" in warnings[0]


def test_a_file_of_stock_nnunet_takes_up_new_scans_and_lets_old_ones_go(data):
    data.preprocessed.mkdir(parents=True)
    write_json(data.preprocessed / "splits_final.json", [{"train": CASES[:3], "val": CASES[3:]}])
    settled(data)
    write_scan(data.raw / "imagesUn", "un_9", 200)
    for file in (data.raw / "imagesUn").glob("un_0_*"):
        file.unlink()
    assert settled(data)[1][0]["unlabelled"] == ["un_1", "un_2", "un_9"]


def test_an_order_that_the_user_wrote_into_the_preprocessed_file_stays(data):
    splits = settled(data)[1]
    mine = [{**split, "labelled_order": sorted(split["labelled_order"], reverse=True)} for split in splits]
    write_json(data.preprocessed / "splits_final.json", mine)
    assert settled(data)[1] == mine


@pytest.mark.parametrize("content", ['[{"train": ["stranger"], "val": ["case_1"]}]', "{}", "[", '[{"train": []}]'])
def test_a_file_that_does_not_fit_is_an_error(data, content):
    data.preprocessed.mkdir(parents=True)
    (data.preprocessed / "splits_final.json").write_text(content)
    with pytest.raises(DataError):
        settled(data)


def test_without_a_budget_every_label_counts_whatever_the_fold(data):
    raw, splits, _ = settled(data)
    scope = make_scope(raw, data.preprocessed, splits, 2, None)
    assert (scope.tag, scope.labelled, scope.with_labels) == ("", tuple(CASES), tuple(CASES))
    assert scope.unlabelled == ("un_0", "un_1", "un_2")


def test_a_budget_hides_the_other_training_cases(data):
    write_json(data.raw / "splits_final.json", TWO_FOLDS)
    raw, splits, _ = settled(data)
    scope = make_scope(raw, data.preprocessed, splits, 0, LabelBudget.parse("2"))
    assert scope.tag == "@lab2"
    assert scope.labelled == ("case_0", "case_1")
    assert scope.with_labels == ("case_0", "case_1", "case_4", "case_5")
    assert scope.unlabelled == ("case_2", "case_3", "un_0", "un_1", "un_2")


def test_a_fold_with_other_labels_has_a_tag_of_its_own(data):
    write_json(data.raw / "splits_final.json", TWO_FOLDS)
    raw, splits, _ = settled(data)
    scope = make_scope(raw, data.preprocessed, splits, 1, LabelBudget.parse("50%"))
    assert scope.tag == "@lab50pct-fold1"
    assert scope.labelled == ("case_4", "case_5")
    assert make_scope(raw, data.preprocessed, splits, "all", LabelBudget.parse("2")).tag == "@lab2"


def test_folds_with_the_same_labels_share_plans_and_keep_each_others_cases(data):
    same = [TWO_FOLDS[0], {"train": [*CASES[:2], *CASES[4:]], "val": CASES[2:4], "labelled_order": CASES}]
    write_json(data.raw / "splits_final.json", same)
    raw, splits, _ = settled(data)
    first, second = (make_scope(raw, data.preprocessed, splits, fold, LabelBudget.parse("2")) for fold in (0, 1))
    assert first.tag == second.tag == "@lab2"
    assert set(second.with_labels) <= first.kept_with_labels
    assert set(second.unlabelled) <= first.kept_unlabelled


@pytest.mark.parametrize(("fold", "budget", "error"), [(7, None, UsageError), (0, "9", DataError)])
def test_what_the_splits_do_not_have_is_an_error(data, fold, budget, error):
    raw, splits, _ = settled(data)
    with pytest.raises(error):
        make_scope(raw, data.preprocessed, splits, fold, LabelBudget.parse(budget) if budget else None)


def with_domains(data, domains="AABBCC"):
    description = read_json(data.raw / "dataset.json")
    description["cases"] = {case: {"domain": domain} for case, domain in zip(CASES, domains, strict=True)}
    description["cases"] |= {"un_0": {"domain": "A"}, "un_1": {"domain": "C"}}
    write_json(data.raw / "dataset.json", description)
    data.preprocessed.mkdir(parents=True, exist_ok=True)
    return read_raw_dataset(906)


def test_a_setting_narrows_the_scope_and_tags_the_plans(data):
    raw, setting = with_domains(data), Setting.parse("umda:A:B")
    fold = setting_fold(setting, raw)
    scope = make_scope(seen_part(raw, fold), data.preprocessed, [fold], 0, None, setting)
    assert scope.tag == "@umda-A-B"
    assert len(scope.labelled) == 1
    assert set(scope.with_labels) == {"case_0", "case_1"}
    assert {"case_2", "case_3"} - set(scope.unlabelled) == set(fold["test"])
    assert not {"un_1", "un_2", "case_4", "case_5"} & {*scope.with_labels, *scope.unlabelled}
    assert scope.kept_with_labels == set(scope.with_labels)
    assert list(scope.dataset_json()["dataset"]) == list(scope.labelled)
    budget = make_scope(seen_part(raw, fold), data.preprocessed, [fold], 0, LabelBudget.parse("1"), setting)
    assert budget.tag == "@umda-A-B@lab1"


def test_the_splits_of_settings_stand_beside_each_other_and_are_kept(data):
    raw = with_domains(data)
    settled(data)
    own = (data.preprocessed / "splits_final.json").read_bytes()
    for text in ("umda:A:B", "mdg:C"):
        setting = Setting.parse(text)
        fold = setting_fold(setting, raw)
        settle_setting(data.preprocessed, setting, fold)
        write_splits(data.preprocessed, [fold], setting)
        settle_setting(data.preprocessed, setting, fold)
    assert (data.preprocessed / "splits_final.json").read_bytes() == own
    assert read_json(data.preprocessed / "splits_final@mdg-C.json")[0]["setting"] == "mdg:C"
    changed = setting_fold(Setting.parse("mdg:C"), with_domains(data, "ABBBCC"))
    with pytest.raises(DataError, match="not those that were planned before") as caught:
        settle_setting(data.preprocessed, Setting.parse("mdg:C"), changed)
    assert "splits_final@mdg-C.json" in caught.value.run
