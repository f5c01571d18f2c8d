from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from nnssl.comparison.choosing import choose
from nnssl.errors import DataError, UsageError
from nnssl.registry import METHODS, simplicity
from tests.comparison.folders_for_tests import DATASET, numbered, write_dataset_json, write_run, write_summary

BASE = np.array([0.5, 0.6, 0.7, 0.8])
ERROR = BASE.std(ddof=1) / 2  # of the mean of four patients


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "nnUNet_results"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    return folder


def write(results, gains, **options):
    """Write one run a trainer, whose Dice is BASE plus a gain, and return the model folders."""
    return [write_run(results, name, numbered(BASE + gain), **options).parent for name, gain in gains.items()]


def test_the_simplest_method_within_one_standard_error_of_the_best(results) -> None:
    gains = {"DTLPTrainer": 0.10, "SupervisedTrainer": 0.0, "FixMatchTrainer": 0.10 - 0.9 * ERROR}
    write(results, gains)
    choice = choose(dataset=1)
    assert (choice.chosen, choice.best, choice.patients) == ("FixMatchTrainer", "DTLPTrainer", 4)
    assert choice.limit == pytest.approx(BASE.mean() + 0.10 - ERROR)
    assert [each.name for each in choice.methods] == ["SupervisedTrainer", "FixMatchTrainer", "DTLPTrainer"]
    assert [each.good_enough for each in choice.methods] == [False, True, True]
    assert [each.mean for each in choice.methods] == pytest.approx(
        [BASE.mean() + gains[each.name] for each in choice.methods]
    )
    assert [each.standard_error for each in choice.methods] == pytest.approx([ERROR] * 3)


def test_the_best_is_chosen_where_no_simpler_method_is_near(results) -> None:
    write(results, {"SupervisedTrainer": 0.0, "FixMatchTrainer": 0.01, "PLGDFTrainer": 0.01 + 1.1 * ERROR})
    assert choose(dataset=1).chosen == "PLGDFTrainer"


def test_of_distances_the_smaller_is_better(results) -> None:
    for trainer, distance in (("SupervisedTrainer", 9.0), ("FixMatchTrainer", 4.1), ("DSMTTrainer", 4.0)):
        values = distance + np.array([-1.0, -0.5, 0.5, 1.0])
        cases = {case: {"1": {"Dice": 0.5, "hd95_mm": value}} for case, value in numbered(values).items()}
        write_run(results, trainer, cases)
    choice = choose(dataset=1, metric="hd95_mm")
    assert (choice.chosen, choice.best) == ("FixMatchTrainer", "DSMTTrainer")
    assert choice.limit == pytest.approx(4 + np.std([-1, -0.5, 0.5, 1], ddof=1) / 2)


def test_patients_count_not_cases_and_only_those_of_all_runs(results) -> None:
    scores = {"a1": 0.2, "a2": 0.4, "b": 0.6, "c": 0.8}
    names = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d"}
    first = write_run(results, "SupervisedTrainer", scores)
    second = write_run(results, "FixMatchTrainer", {**scores, "d": 1.0})
    for fold in (first, second):
        write_dataset_json(fold.parent, names)
    choice = choose([first, second])
    assert (choice.patients, choice.left_out) == (3, 1)
    assert [each.mean for each in choice.methods] == pytest.approx([np.mean([0.3, 0.6, 0.8])] * 2)
    assert choice.methods[0].standard_error == pytest.approx(np.std([0.3, 0.6, 0.8], ddof=1) / np.sqrt(3))
    assert choice.chosen == "SupervisedTrainer"


def test_a_missed_and_a_spurious_structure_count_for_all_methods_alike(results) -> None:
    """In case_00 nothing is there: who draws nothing gets 1, also beside a third method that draws something."""
    empty = {"1": {"Dice": None, "n_ref": 0, "n_pred": 0}}
    spurious = {"1": {"Dice": 0.0, "n_ref": 0, "n_pred": 5}}
    others = {case: {"1": {"Dice": 0.5}} for case in ("case_01", "case_02")}
    for trainer, row in (("SupervisedTrainer", empty), ("FixMatchTrainer", empty), ("DSMTTrainer", spurious)):
        write_run(results, trainer, {"case_00": row, **others})
    means = {each.name: each.mean for each in choose(dataset=1).methods}
    assert means == pytest.approx({"SupervisedTrainer": 2 / 3, "FixMatchTrainer": 2 / 3, "DSMTTrainer": 1 / 3})


def test_seeds_of_a_method_are_averaged_and_all_predict(results) -> None:
    write(results, {"SupervisedTrainer": 0.0})
    seeds = [write(results, {"FixMatchTrainer": g}, tag=f"s{i}", seed=i)[0] for i, g in enumerate((0.3, 0.2))]
    choice = choose(dataset=1)
    assert choice.methods[1].mean == pytest.approx(BASE.mean() + 0.25)
    assert choice.models == tuple(map(str, seeds))
    assert choice.lines[-1] == f"next: nnssl_predict -i IMAGES -o MASKS -m {seeds[0]} {seeds[1]}"


def test_no_test_case_is_opened_or_counts(results, tmp_path, monkeypatch) -> None:
    """Predictions and labels of test cases lie where users keep them; the choice reads none and stays as it is."""
    models = write(results, {"SupervisedTrainer": 0.0, "FixMatchTrainer": 0.3})
    before = choose(dataset=1).to_dict()
    raw = tmp_path / "nnUNet_raw" / DATASET
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    for folder in (raw / "labelsTs", raw / "imagesTs", *(model / "predictions" for model in models)):
        write_summary(folder, numbered(1 - BASE))
        (folder / "case_99.nii.gz").write_bytes(b"a test case")
    opened, real = [], {"io": io.open, "os": os.open}

    def spy(kind):
        def open_(file, *arguments, **options):
            opened.append(str(file))
            return real[kind](file, *arguments, **options)

        return open_

    monkeypatch.setattr("builtins.open", spy("io"))
    monkeypatch.setattr("io.open", spy("io"))
    monkeypatch.setattr("os.open", spy("os"))
    assert choose(dataset=1).to_dict() == before
    assert choose(models).to_dict()["chosen"] == before["chosen"]
    summaries = [file for file in opened if file.endswith("summary.json")]
    assert {Path(file).parent.name for file in summaries} == {"validation"}
    assert not [file for file in opened if "Ts" in file or "predictions" in file or "case_99" in file]
    opened.clear()
    for place in (models[0] / "predictions", raw / "labelsTs"):
        with pytest.raises(UsageError, match="chosen among runs"):
            choose([place, models[1]])
    assert not opened


def test_a_choice_is_written(results, tmp_path) -> None:
    write(results, {"SupervisedTrainer": 0.0, "FixMatchTrainer": 0.3})
    choice = choose(dataset=1, output_folder=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "choice.json").read_text())
    assert written == choice.to_dict()
    assert (written["chosen"], written["models"]) == ("FixMatchTrainer", list(choice.models))


def test_what_cannot_be_compared_is_refused(results) -> None:
    a, b = write(results, {"SupervisedTrainer": 0.0, "FixMatchTrainer": 0.1})
    few = write_run(results, "DSMTTrainer", numbered(BASE), plans="nnUNetPlans@lab3", labelled="3").parent
    with pytest.raises(DataError, match="label budgets"):
        choose([a, few])
    whole = write_run(results, "CCETrainer", numbered(BASE), fold="all").parent
    with pytest.raises(UsageError, match="fold all"):
        choose([a, whole])
    other = write_run(results, "DPTMTrainer", {"x": 0.5, "y": 0.6}).parent
    with pytest.raises(DataError, match="no common case"):
        choose([a, other])
    one = write_run(results, "PLGDFTrainer", {"case_00": 0.5}).parent
    with pytest.raises(DataError, match="one patient"):
        choose([a, one])
    with pytest.raises(UsageError, match="only one method"):
        choose([a])
    with pytest.raises(UsageError, match="either runs or a data set"):
        choose([a, b], dataset=1)
    with pytest.raises(UsageError, match="go with -d"):
        choose([a, b], fold=0)
    with pytest.raises(UsageError, match="metric"):
        choose([a, b], metric="dice")


def test_the_order_of_simplicity() -> None:
    order = sorted(["MyTrainer", *reversed(METHODS)], key=simplicity)
    assert order == [*METHODS, "MyTrainer"]
    assert order[0] == "SupervisedTrainer"
    assert simplicity("nnUNetTrainer_250epochs") == simplicity("SupervisedTrainer")
