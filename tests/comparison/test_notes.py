from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnssl.comparison.notes import find_control, notes_on_cases, notes_on_patients, notes_on_references, notes_on_runs
from nnssl.comparison.pairing import Pairs
from nnssl.comparison.sources import Compared, read_source
from tests.comparison.folders_for_tests import numbered, write_run, write_summary

CASES = numbered([0.5, 0.6])
NO_PAIRS = Pairs((), np.zeros(0), np.zeros(0), {}, (), (), (), (), 0, 0)


def compared(folder: Path) -> Compared:
    source = read_source(folder)
    return Compared(source.name, (source,))


@pytest.fixture
def make(tmp_path: Path):
    def run(trainer: str = "CCETrainer", **options) -> Compared:
        return compared(write_run(tmp_path, trainer, CASES, **options))

    return run


def test_equal_runs_need_no_note(make) -> None:
    assert notes_on_runs(make(), make("SupervisedTrainer")) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"labelled": "x"}, "was trained on other labelled cases than SupervisedTrainer"),
        ({"validation": "x"}, "was validated on other cases"),
        ({"splits": "x"}, "has other splits"),
        ({"dataset_json": "x"}, "has another dataset.json"),
    ],
)
def test_other_data_are_named(make, data, words: str) -> None:
    baseline = make("SupervisedTrainer", data={"dataset_json": "d"})
    (line,) = notes_on_runs(make(data={"dataset_json": "d", **data}), baseline)
    assert line.startswith(f"CCETrainer {words}")
    whole = notes_on_runs(make("DSMTTrainer", data={"dataset_json": "d", **data}), baseline, same_labels=False)
    assert len(whole) == ("validation" in data)


def test_folds_are_compared_with_themselves_only(make, tmp_path: Path) -> None:
    assert notes_on_runs(make(fold="0"), make("SupervisedTrainer", fold="1")) == []


def test_other_lengths_and_unfinished_runs_are_named(make) -> None:
    method = make(num_iterations=50, state="stopped")
    assert notes_on_runs(method, make("SupervisedTrainer")) == [
        "CCETrainer is not finished: stopped at iteration 50 of 50",
        "unequal iterations: CCETrainer 50, SupervisedTrainer 100",
    ]


def test_runs_without_unlabelled_scans_and_runs_that_started_trained_are_named(make) -> None:
    baseline = make("SupervisedTrainer", unlabelled_from=None)
    assert notes_on_runs(baseline, baseline) == []
    assert notes_on_runs(make(unlabelled_from=None), baseline) == [
        "CCETrainer: no unlabelled scan counted in fold 0; that run is supervised"
    ]
    (line,) = notes_on_runs(make("DSMTTrainer", start_from="A/fold_0/checkpoint_final.pth"), baseline)
    assert line.startswith("DSMTTrainer started from trained weights")
    assert line.endswith("A/fold_0/checkpoint_final.pth")


def test_folders_without_records_need_no_note(make, tmp_path: Path) -> None:
    assert notes_on_runs(compared(write_summary(tmp_path / "x", CASES)), make()) == []


def test_references_of_other_sizes_are_named(tmp_path: Path) -> None:
    sizes = {"a": {"a": 5, "b": 7}, "b": {"a": 5, "b": 8}}
    a, b = (
        compared(write_summary(tmp_path / name, {case: {"1": {"Dice": 0.5, "n_ref": n}} for case, n in found.items()}))
        for name, found in sizes.items()
    )
    assert notes_on_references(b, a) == ["b was scored against other references than a in 1 case(s) (b)"]
    assert notes_on_references(a, a) == []


def test_left_out_cases_are_named() -> None:
    pairs = replace(
        NO_PAIRS, only_baseline=tuple("abcdefg"), only_method=("z",), without_value=("y",), half_empty=2, dropped=3
    )
    lines = notes_on_cases(pairs, "M", "B")
    assert lines[0] == "M lacks 7 case(s) (a, b, c, d, e and 2 more): left out beside M"
    assert lines[1] == "B, the baseline, lacks 1 case(s) (z): left out beside M"
    assert all(word in line for word, line in zip(("(y)", "3 structure(s)", "2 structure(s)"), lines[2:], strict=True))
    assert notes_on_cases(NO_PAIRS, "M", "B") == []


def test_cases_that_stand_for_patients_are_said() -> None:
    assert notes_on_patients("ab", {"a": "1", "b": "1"}) == []
    assert notes_on_patients("ab", {}) == ["no dataset.json names patients: 2 case(s) (a, b) count as one patient each"]
    assert "names no patient of some: 1 case(s) (b)" in notes_on_patients("ab", {"a": "1"})[0]


def test_the_control_is_the_same_training_without_unlabelled_losses(make) -> None:
    whole = make("FixMatchTrainer")
    control = make("FixMatchTrainer", tag="c", config={"unlabelled_weight": 0.0})
    others = [
        whole,
        make("CCETrainer", tag="c", config={"unlabelled_weight": 0.0}),
        make("FixMatchTrainer", tag="long", num_iterations=200, config={"unlabelled_weight": 0.0}),
        make("FixMatchTrainer", tag="preset", config={"unlabelled_weight": 0.0, "preset": "plain"}),
    ]
    assert find_control(whole, [*others, control]) is control
    assert find_control(whole, others) is None
    assert find_control(control, [whole, control]) is None
