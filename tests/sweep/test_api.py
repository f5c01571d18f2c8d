from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from filelock import FileLock

from nnssl.errors import EnvironmentProblem, NnsslError, UsageError
from nnssl.sweep import api
from nnssl.sweep import queue as queue_module
from nnssl.sweep.queue import Slot
from nnssl.sweep.store import Store
from nnssl.sweep.study import StudyPlan
from tests.sweep.studies_for_tests import World, runs_of, small_study


@pytest.fixture(autouse=True)
def with_the_script(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the study start the script in the place of nnssl's commands."""
    made = queue_module.Queue.__init__
    monkeypatch.setattr(
        queue_module.Queue, "__init__", lambda self, *args, **more: made(self, *args, **{**more, "words": world.words})
    )


def planned(world: World) -> list[str]:
    return [str(start["flags"]) for start in world.started() if start["folder"] == str(world.root / "plans")]


def test_a_study_is_planned_once_and_trained(world: World) -> None:
    tasks = api.sweep(small_study(), world.study, device="cpu")
    assert [task.state for task in tasks] == ["done"] * 3
    assert len(planned(world)) == 1
    assert len(world.started()) == 4
    assert api.sweep(small_study(), world.study, device="cpu") == tasks
    assert len(world.started()) == 4  # nothing is done twice


def test_existing_plans_are_kept(world: World) -> None:
    world.write_plans()
    api.sweep(small_study(), world.study, device="cpu")
    assert planned(world) == []


def test_after_a_kill_the_folder_alone_goes_on(world: World) -> None:
    world.write_plans()
    with world.store(small_study()) as store:
        first, second, _ = runs_of(store)
        for task in (first, second):
            store.update(task, state="running", starts=1)  # as a killed process leaves them
        folder = world.places.folder(second.job)  # type: ignore[arg-type]
        folder.mkdir(parents=True)
        (folder / "checkpoint_latest.pth").touch()
    tasks = api.sweep(None, world.study, device="cpu")
    assert [task.state for task in tasks] == ["done"] * 3
    assert [start["flags"] for start in world.started()] == [
        ["-device", "cpu"], ["--c", "-device", "cpu"], ["-device", "cpu"]
    ]  # fmt: skip


def test_a_run_marked_done_without_its_files_is_not_counted_by_the_plan(world: World) -> None:
    world.write_plans()
    api.sweep(small_study(), world.study, device="cpu")
    plan = api.plan_sweep(small_study(4), world.study)
    assert [task.state for task in plan.runs] == ["done"] * 3 + ["waiting"]
    assert plan.commands == [plan.runs[3].command]
    (with_device,) = api.plan_sweep(small_study(4), world.study, "cpu").commands
    assert with_device == f"{plan.runs[3].command} -device cpu"
    assert [estimate.seconds for estimate in plan.estimates] == [0.5 * 30] * 4


def test_failed_runs_are_retried_on_request_only(world: World) -> None:
    world.write_plans()
    world.ways = {2: ["fail", "done"]}
    tasks = api.sweep(small_study(), world.study, device="cpu")
    assert [task.state for task in tasks] == ["failed", "done", "done"]
    with pytest.raises(NnsslError, match="1 of 3 runs are not done") as caught:
        api.check_all_done(tasks, "out")
    assert caught.value.exit_code == 1
    assert "the scans are broken" in caught.value.why
    assert caught.value.run == "nnssl_sweep -o out --retry_failed"
    assert [task.state for task in api.sweep(None, world.study, device="cpu")] == ["failed", "done", "done"]
    assert len(world.started()) == 3
    tasks = api.sweep(None, world.study, device="cpu", retry_failed=True)
    assert [task.state for task in tasks] == ["done"] * 3
    assert len(world.started()) == 4
    api.check_all_done(tasks, "out")


def test_runs_without_their_planning_fail_with_its_message(world: World) -> None:
    world.write_plans()
    world.ways = {2: ["fail", "done"]}
    tasks = api.sweep(small_study(1, labelled=("all", "5")), world.study, device="cpu")
    assert [(task.state, task.message.splitlines()[:1]) for task in tasks] == [
        ("done", []),
        ("failed", ["planning failed: the scans are broken"]),
    ]
    tasks = api.sweep(None, world.study, device="cpu", retry_failed=True)
    assert [task.state for task in tasks] == ["done", "done"]


def test_a_dry_run_writes_nothing(world: World) -> None:
    before = sorted(world.root.rglob("*"))
    plan = api.plan_sweep(small_study(labelled=("5", "all")), world.study)
    assert [each.command for each in plan.plans] == [
        "nnssl_plan_and_preprocess -d Dataset001_A -c 2d -labelled 5 -f 0",
        "nnssl_plan_and_preprocess -d Dataset001_A -c 2d",
    ]
    assert len(plan.runs) == len(plan.commands) == 6
    assert sorted(world.root.rglob("*")) == before


def test_missing_plans_are_for_the_hardware_of_the_others(world: World) -> None:
    world.write_plans(hardware="cpu")
    plan = api.plan_sweep(small_study(labelled=("5",)), world.study)
    assert plan.plans[0].command.endswith("-labelled 5 -f 0 -hardware cpu")


def test_kept_runs_have_a_status(world: World) -> None:
    api.keep_study(small_study(), world.study)
    tasks = api.study_status(world.study)
    assert [task.state for task in tasks] == ["waiting"] * 3
    assert not any(isinstance(task.job, StudyPlan) for task in tasks)
    assert world.started() == []


def test_a_study_has_one_process(world: World) -> None:
    world.study.mkdir()
    with FileLock(world.study / api.LOCK), pytest.raises(EnvironmentProblem, match="another process works"):
        api.sweep(small_study(), world.study, device="cpu")
    assert world.started() == []


def test_what_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no study in this folder"):
        api.sweep(None, world.study)
    with pytest.raises(UsageError, match="no study in this folder"):
        api.study_status(world.study)
    with pytest.raises(UsageError, match="there is no data set '77'"):
        api.plan_sweep(dataclasses.replace(small_study(), dataset="77"), world.study)
    with pytest.raises(UsageError, match="-slots"):
        api.sweep(small_study(), world.study, slots=0)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        api.sweep(small_study(), tmp_path / "file" / "study")
    assert not world.study.exists()


def test_slots_follow_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert api.free_slots("cuda", None) == [Slot("2", 3), Slot("5", 3), Slot("7", 3)]
    assert api.free_slots("auto", 2) == [Slot("2", 2), Slot("5", 2)]
    with pytest.raises(UsageError, match="3 GPU"):
        api.free_slots("cuda", 4)
    assert api.free_slots("cpu", 3) == [Slot(share=3)] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert api.free_slots("auto", None) == [Slot()]


def test_ten_thousand_runs_are_planned_and_listed(world: World) -> None:
    study = small_study(2500, trainers=("SupervisedTrainer", "FixMatchTrainer"), labelled=("all", "5"))
    plan = api.plan_sweep(study, world.study)
    assert len({task.command for task in plan.runs}) == 10_000
    api.keep_study(study, world.study)
    with Store(world.study) as store:
        assert len(runs_of(store)) == 10_000
