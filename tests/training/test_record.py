from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from nnssl.data.splits import FoldCases
from nnssl.training.record import (
    DataHashes,
    Git,
    Machine,
    MaskScores,
    RunRecord,
    Scores,
    Session,
    git_state,
    new_session,
    plans_hash,
    training_seconds,
)
from nnssl.training.settings import RunSettings


def record() -> RunRecord:
    session = Session("nnssl_train 27 2d 0", "2026-01-01T00:00:00+00:00", git=Git("abc", True),
                      machine=Machine("Linux", "CPU", 2, "cpu"), versions={"nnssl": "0.1.0"})  # fmt: skip
    return RunRecord(
        dataset="Dataset027_ACDC",
        trainer="SupervisedTrainer",
        plans="nnUNetPlans@lab7",
        configuration="2d",
        fold="0",
        settings=RunSettings(num_iterations=10, seed=1, labelled="7", config={"momentum": 0.9}, tag="seed1"),
        sessions=(session,),
        data=DataHashes("a", "b", "c", "d", "e"),
        scores=Scores(0.5, {"1": 0.4, "2": None}, MaskScores(0.6, {"1": 0.5, "2": None})),
    )


def test_a_record_goes_round(tmp_path: Path) -> None:
    record().write(tmp_path)
    assert RunRecord.read(tmp_path) == record()
    json.loads((tmp_path / "run.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_keys_of_later_versions_are_ignored(tmp_path: Path) -> None:
    content = {**dataclasses.asdict(record()), "colour": "blue"}
    content["sessions"][0]["weather"] = content["settings"]["mood"] = "fine"
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert RunRecord.read(tmp_path) == record()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"settings": 3}'])
def test_what_is_no_record_is_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert RunRecord.read(tmp_path) is None


def test_the_end_of_a_session(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    summary = {"foreground_mean": {"Dice": 0.75}, "mean": {"1": {"Dice": 0.75}, "2": {"Dice": math.nan}}}
    (tmp_path / "validation" / "summary.json").write_text(json.dumps(summary))
    rows = [{"iteration": 4, "seconds_per_iteration": 0.5}, {"iteration": 10, "seconds_per_iteration": 1.0}]
    (tmp_path / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = record().ended(tmp_path, "done", 10, peak_device_bytes=7)
    assert (ended.state, ended.iteration, ended.seconds_per_iteration) == ("done", 10, 0.8)
    assert ended.scores == Scores(0.75, {"1": 0.75, "2": None})
    summary["mean"]["1"]["Dice"] = summary["foreground_mean"]["Dice"] = 0.8125
    (tmp_path / "validation" / "summary_postprocessed.json").write_text(json.dumps(summary))
    after = MaskScores(0.8125, {"1": 0.8125, "2": None})
    assert record().ended(tmp_path, "done", 10).scores == Scores(0.75, {"1": 0.75, "2": None}, after)
    assert ended.sessions[0].ended > ended.sessions[0].started
    assert ended.sessions[0].peak_memory_bytes > 10_000_000
    assert ended.sessions[0].peak_device_bytes == 7
    assert training_seconds(tmp_path) == (8.0, 10)
    assert training_seconds(tmp_path / "nowhere") == (0.0, 0)


def test_hashes_tell_data_and_plans_apart(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    cases = FoldCases(("a",), ("u",), ("v",))
    hashes = DataHashes.of(tmp_path, cases)
    assert hashes == DataHashes.of(tmp_path, cases)
    assert hashes.splits == ""
    (tmp_path / "splits_final@mdg-D.json").write_text("[]")
    assert DataHashes.of(tmp_path, cases).splits == ""
    assert DataHashes.of(tmp_path, cases, "@mdg-D").splits != ""
    others = DataHashes.of(tmp_path, FoldCases(("b",), ("u",), ("v",)))
    assert others.labelled != hashes.labelled
    assert others.unlabelled == hashes.unlabelled
    plans = {"plans_name": "P", "nnssl_semi": {"divisor": 2, "run": {"seed": 1}}}
    assert plans_hash(plans) == plans_hash({**plans, "nnssl_semi": {"divisor": 2, "run": {"seed": 2}}})
    assert plans_hash(plans) != plans_hash({**plans, "nnssl_semi": {"divisor": 3}})


def test_a_session_knows_versions_checkout_and_machine_but_no_host(monkeypatch) -> None:
    import platform

    session = new_session("nnssl_train", "cpu", 3)
    assert {"nnssl", "python", "torch", "nnunetv2"} <= session.versions.keys()
    assert session.machine is not None
    assert session.machine.cores >= 1
    assert session.first_iteration == 3
    assert platform.node() not in json.dumps(dataclasses.asdict(session)) or len(platform.node()) < 4
    git = git_state()
    assert git is None or len(git.commit) == 40
