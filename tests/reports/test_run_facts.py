from __future__ import annotations

import json
from pathlib import Path

from nnssl.comparison.sources import Compared, read_source
from nnssl.reports.run_facts import decisions_of, facts_of_runs
from nnssl.training.record import RunRecord
from tests.comparison.folders_for_tests import numbered, write_run


def test_every_departure_from_the_defaults_is_a_decision(tmp_path: Path) -> None:
    config = {"threshold": 0.7, "optimizer": "adamw", "of_the_future": 3}
    fold = write_run(tmp_path, "FixMatchTrainer", None, num_iterations=100, seed=4, labelled="7", config=config)
    record = RunRecord.read(fold)
    assert record is not None
    found = {each.name: (each.value, each.default) for each in decisions_of(record)}
    assert found["num_iterations"] == ("100", "250000")
    assert found["seed"] == ("4", "0")
    assert found["labelled"] == ("7", "none")
    assert found["optimizer"] == ("adamw", "auto")
    assert found["threshold"][0] == "0.7"
    assert found["of_the_future"] == ("3", "?")
    assert set(found) == {"num_iterations", "seed", "labelled", *config}
    assert all(each.meaning for each in decisions_of(record) if each.name != "of_the_future")


def test_log_pseudo_labels_and_commands_are_read(tmp_path: Path) -> None:
    fold = write_run(tmp_path, "SelfTrainingTrainer", numbered([0.5]), seed=2)
    (fold / "progress.jsonl").write_text('{"iteration": 5, "loss": 1.0}\n{"loss": 2}\n')
    (fold / "pseudo_labels").mkdir()
    entries = {"a": {"score": 0.5, "kept": False}, "b": {"score": 0.75}, "c": {"score": None}}
    (fold / "pseudo_labels" / "cases.json").write_text(json.dumps(entries))
    (facts,) = facts_of_runs(Compared("mine", (read_source(fold),)))
    assert facts.title == "mine, seed 2, fold 0"
    assert facts.rows == [{"iteration": 5, "loss": 1.0}]
    assert facts.pseudo_scores == {"a": (0.5, False), "b": (0.75, True)}
    assert facts.commands == ["nnssl_train 1 2d 0 -tr SelfTrainingTrainer"]


def test_broken_files_of_a_run_leave_out_their_part(tmp_path: Path) -> None:
    fold = write_run(tmp_path, "SelfTrainingTrainer", numbered([0.5]))
    (fold / "progress.jsonl").write_text("{")
    (fold / "pseudo_labels").mkdir()
    (fold / "pseudo_labels" / "cases.json").write_text("[]")
    (fold / "run.json").write_text("{}")
    (facts,) = facts_of_runs(Compared("mine", (read_source(fold),)))
    assert (facts.rows, facts.pseudo_scores, facts.record, facts.commands) == ([], {}, None, [])
    assert facts.title == "mine, fold_0"
