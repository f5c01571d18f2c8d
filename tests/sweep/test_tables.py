from __future__ import annotations

from nnssl.sweep.estimate import Estimate, SweepPlan
from nnssl.sweep.store import Task
from nnssl.sweep.study import study_plans, study_runs
from nnssl.sweep.tables import commands_text, duration, plan_dicts, plan_text, size, status_text
from tests.sweep.studies_for_tests import small_study

STUDY = small_study(2, labelled=("5",), trainers=("FixMatchTrainer",), settings=("unlabelled_weight=0",))
FIRST, SECOND = study_runs(STUDY)
PLAN = SweepPlan(
    [Task(1, FIRST, "done"), Task(2, SECOND)], study_plans(STUDY), [Estimate(60.0, 10**9)] * 2, [SECOND.command]
)


def test_plan_lists_planning_runs_and_what_is_left() -> None:
    lines = plan_text(PLAN, "out").splitlines()
    assert lines[0] == "plan first:  nnssl_plan_and_preprocess -d Dataset001_A -c 2d -labelled 5 -f 0"
    assert lines[1].split() == ["trainer", "settings", "configuration", "fold", "labelled", "pick", "seed", "state",
                                "time", "disk"]  # fmt: skip
    assert lines[3].split() == ["FixMatchTrainer", "unlabelled_weight=0", "2d", "0", "5", "0", "1", "waiting",
                                "0:01:00", "1.0", "GB"]  # fmt: skip
    assert lines[4] == "2 run(s), 1 to do: about 0:01:00 of training one after another, 1.0 GB of disk"
    assert lines[-1].endswith("nnssl_sweep -o out")


def test_unknown_time_is_said() -> None:
    plan = SweepPlan([Task(1, FIRST)], [], [Estimate()], [])
    text = plan_text(plan, "out")
    assert "about ? of training one after another, ? of disk\n?: no run of this data set" in text
    assert "    nnssl_train Dataset001_A 2d 0 -labelled 5 -tr SupervisedTrainer" in text


def test_commands_are_those_that_are_left() -> None:
    assert commands_text(PLAN) == SECOND.command


def test_json_has_one_object_a_run() -> None:
    first, second = plan_dicts(PLAN.runs, PLAN.estimates)
    assert (first["state"], second["state"]) == ("done", "waiting")
    assert second["command"] == SECOND.command
    assert (second["labelled"], second["pick"], second["seed"], second["settings"]) == (
        "5", 0, 1, {"unlabelled_weight": 0.0}
    )  # fmt: skip
    assert (second["estimated_seconds"], second["estimated_disk_bytes"]) == (60.0, 10**9)


def test_status_counts_and_lists_failures() -> None:
    tasks = [Task(1, FIRST, "done"), Task(2, SECOND, "failed", "broken\nwhere: x")]
    assert status_text(tasks, "out").splitlines() == [
        "2 run(s): 1 done, 1 failed",
        f"  failed: {SECOND.command}",
        "      broken",
        "      where: x",
        "run:  nnssl_sweep -o out",
    ]
    assert status_text(tasks[:1], "out").endswith("run:  nnssl_compare out")
    assert "run:" not in status_text(tasks, None)


def test_units() -> None:
    assert [duration(value) for value in (None, 0.4, 59.6, 3661, 100 * 3600)] == [
        "?", "0:00:00", "0:01:00", "1:01:01", "100:00:00"
    ]  # fmt: skip
    assert [size(value) for value in (None, 1_600_000, 999_000_000, 2_340_000_000)] == ["?", "2 MB", "999 MB", "2.3 GB"]
