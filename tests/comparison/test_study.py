from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.cli.compare import main
from nnssl.comparison import efficiency, statistics
from nnssl.comparison.study import compare_study
from nnssl.errors import UsageError
from nnssl.sweep.api import keep_study
from nnssl.sweep.places import Places
from nnssl.sweep.study import Study, StudyRun, study_runs
from nnssl.training.record import DataHashes, RunRecord
from tests.comparison.folders_for_tests import DATASET, numbered, write_summary

TRAINERS = ("SupervisedTrainer", "FixMatchTrainer")
PATIENTS = 24


def scores(run: StudyRun) -> np.ndarray:
    """Return Dice: 0.5 with 2 labels, 0.7 with 8, and 0.1 more for FixMatch; seeds and picks move it a little."""
    rng = np.random.default_rng([len(run.command), run.settings.seed])
    budget = run.budget
    base = {None: 0.9, 2: 0.5, 8: 0.7}[int(budget.value) if budget else None]
    gain = 0.1 * (run.trainer == "FixMatchTrainer" and not run.settings.config)
    level = 0.02 * run.settings.seed + 0.04 * (budget.pick if budget else 0)
    return np.clip(base + gain + level + rng.normal(0, 0.02, PATIENTS), 0, 1)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a study whose runs are all done, and return its folder."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    monkeypatch.setattr(efficiency, "BAND_RESAMPLES", 499)
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / DATASET).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    asked = Study(DATASET, ("2d",), TRAINERS, control=True, labelled=("2", "8", "all"), picks=2, seeds=(0, 1),
                  num_iterations=100)  # fmt: skip
    for run in study_runs(asked):
        write_run(run)
    keep_study(asked, tmp_path / "study")
    return tmp_path / "study"


def write_run(run: StudyRun) -> Path:
    folder = Places.of(DATASET).folder(run)
    folder.mkdir(parents=True)
    hashes = DataHashes(labelled=str(run.budget), validation="v", splits="s")
    RunRecord(DATASET, run.trainer, "p", "2d", run.fold, run.settings, state="done", iteration=100, data=hashes,
              unlabelled_from=0).write(folder)  # fmt: skip
    write_summary(folder / "validation", numbered(scores(run)))
    return folder


def test_each_budget_is_compared_over_seeds_and_picks(study: Path) -> None:
    found = compare_study(study)
    assert [group.labelled for group in found.groups] == ["2", "8", "all"]
    assert {group.configuration for group in found.groups} == {"2d"}
    few = found.groups[0]
    assert few.comparison.baseline == "SupervisedTrainer"
    names = [method.name for method in few.comparison.methods]
    assert names == ["FixMatchTrainer", "FixMatchTrainer@unlabelled_weight=0"]
    fixmatch, control = few.comparison.methods
    assert len(fixmatch.pairs.by_run) == 4  # two seeds of two picks
    assert fixmatch.judgement.interval.mean == pytest.approx(0.1, abs=0.01)
    assert (fixmatch.verdict, control.verdict) == ("helped", "no evidence")
    assert fixmatch.control is not None
    assert fixmatch.control[0] == control.name


def test_the_patients_scores_are_means_over_seeds_and_picks(study: Path) -> None:
    (group, *_) = compare_study(study).groups
    asked = Study(DATASET, ("2d",), TRAINERS, labelled=("2",), picks=2, seeds=(0, 1), num_iterations=100)
    runs = [run for run in study_runs(asked) if run.trainer == "SupervisedTrainer"]
    expected = np.mean([scores(run) for run in runs], axis=0)
    assert group.comparison.methods[0].pairs.baseline == pytest.approx(expected)


def test_spread_over_seeds_and_picks(study: Path) -> None:
    spread = compare_study(study).groups[0].spreads["FixMatchTrainer"]
    assert spread.seeds == pytest.approx(0.02 / np.sqrt(2), abs=0.006)
    assert spread.picks == pytest.approx(0.04 / np.sqrt(2), abs=0.006)


def test_ranks_are_over_seeds_and_picks(study: Path) -> None:
    found = compare_study(study).groups[0].ranks
    assert found is not None
    assert (found.order[0], found.runs, found.first["FixMatchTrainer"]) == ("FixMatchTrainer", 4, 1.0)


def test_the_gap_is_to_the_baseline_on_all_labels(study: Path) -> None:
    few, *_, everything = compare_study(study).groups
    gap = few.comparison.methods[0].gap_closed
    assert few.comparison.all_labels is not None
    assert few.comparison.all_labels.name == "SupervisedTrainer, all labels"
    assert gap is not None
    assert gap.low < gap.mean < gap.high
    assert gap.mean == pytest.approx(0.1 / (0.9 - 0.5 - 0.02), abs=0.03)  # picks moved the baseline by 0.02
    assert everything.comparison.all_labels is None


def test_labels_are_worth_what_the_curve_says(study: Path) -> None:
    curve = compare_study(study).curves["2d"]
    assert curve.budgets == (2, 8)  # without the preprocessed data set nobody knows how many labels all are
    (worth, *_) = [each for each in curve.worth if each.method == "FixMatchTrainer"]
    assert worth.labels == pytest.approx(4, rel=0.1)
    assert 2 < worth.low < worth.labels < worth.high < 8


def test_picks_are_no_unfair_labels(study: Path) -> None:
    for group in compare_study(study).groups:
        assert not any("other labelled cases" in note for note in group.comparison.notes)


def test_unfinished_runs_and_their_partners_do_not_count(study: Path) -> None:
    (run,) = study_runs(Study(DATASET, ("2d",), TRAINERS[1:], labelled=("2",), num_iterations=100))
    folder = Places.of(DATASET).folder(run)
    record = RunRecord.read(folder)
    assert record is not None
    dataclasses.replace(record, state="stopped", iteration=50).write(folder)
    found = compare_study(study)
    group = found.groups[0]
    assert (found.left, group.alone) == (1, 2)  # the baseline and the control with this seed and pick have no partner
    assert group.comparison.methods[0].name == "FixMatchTrainer"
    assert [len(method.pairs.by_run) for method in group.comparison.methods] == [3, 3]
    runs = study_runs(Study(DATASET, ("2d",), TRAINERS[:1], labelled=("2",), picks=2, seeds=(0, 1), num_iterations=100))
    expected = np.mean([scores(run) for run in runs[1:]], axis=0)
    assert group.comparison.methods[0].pairs.baseline == pytest.approx(expected)


def test_what_is_refused(study: Path) -> None:
    with pytest.raises(UsageError, match="unknown method"):
        compare_study(study, baseline="NoTrainer")
    with pytest.raises(UsageError, match="unknown metric"):
        compare_study(study, metric="dice")
    with pytest.raises(UsageError, match="no finished run beside"):
        compare_study(study, configuration="3d_fullres")


def test_the_command(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study), "-o", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["baseline"] == "SupervisedTrainer"
    assert [(row["labelled"], row["verdict"]) for row in printed["methods"]] == [
        (labels, verdict) for labels in ("2", "8", "all") for verdict in ("helped", "no evidence")
    ]
    assert printed["curves"]["2d"]["budgets"] == [2, 8]
    names = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*")}
    assert {"study_comparison.json", "curve.csv", "curve_2d.png", "curve_2d.svg", "2d_2/comparison.csv"} <= names
    assert main([str(study), "-d", "1"]) == 2
    assert "without -d" in capsys.readouterr().err
