from __future__ import annotations

import dataclasses

import pytest

from nnssl.sweep.places import progress_of
from nnssl.sweep.study import StudyRun, study_plans, study_runs
from nnssl.training.record import RunRecord
from nnssl.training.run_folder import lock_fold
from nnssl.training.settings import RunSettings
from tests.sweep.studies_for_tests import LENGTH, World, small_study


def the_run(**changes: object) -> StudyRun:
    return study_runs(small_study(1, **changes))[0]


def test_the_folder_is_that_of_training(world: World) -> None:
    found = world.places.folder(the_run(labelled=("5",), picks=1))
    assert found.relative_to(world.places.results).as_posix() == (
        "SupervisedTrainer__nnUNetPlans@lab5__2d@iterations30/fold_0"
    )


def test_plans_of_the_fold_come_first(world: World) -> None:
    run = the_run(labelled=("5",), folds=("2",))
    assert world.places.folder(run).parts[-2] == "SupervisedTrainer__nnUNetPlans@lab5__2d@iterations30"
    world.write_plans("nnUNetPlans@lab5-fold2")
    assert world.places.folder(run).parts[-2] == "SupervisedTrainer__nnUNetPlans@lab5-fold2__2d@iterations30"


def test_plans_must_have_the_configuration_and_be_those_of_the_fold(world: World) -> None:
    plan, other_fold = study_plans(small_study(1, labelled=("5",), folds=("0", "1")))
    assert not world.places.has_plans(plan)
    world.write_plans("nnUNetPlans@lab5")
    assert world.places.has_plans(plan)
    assert not world.places.has_plans(dataclasses.replace(plan, configurations=("2d", "3d_fullres")))
    assert not world.places.has_plans(other_fold)
    world.write_plans("nnUNetPlans@lab5-fold1")
    assert world.places.has_plans(other_fold)


def test_hardware_is_that_of_other_plans(world: World) -> None:
    (world.places.preprocessed / "splits_final.json").write_text("[]")
    world.write_plans("Mine", hardware="cpu")
    assert world.places.hardware("nnUNetPlans") is None
    world.write_plans("nnUNetPlans@lab5", hardware="cpu")
    assert world.places.hardware("nnUNetPlans") == "cpu"


def test_progress_follows_the_files(world: World) -> None:
    run = the_run()
    folder = world.places.folder(run)
    assert progress_of(folder, run) == "new"
    folder.mkdir(parents=True)
    assert progress_of(folder, run) == "new"
    (folder / "checkpoint_previous.pth").touch()
    assert progress_of(folder, run) == "started"
    record = RunRecord("d", "t", "p", "2d", "0", RunSettings(num_iterations=LENGTH), iteration=LENGTH)
    record.write(folder)
    assert progress_of(folder, run) == "started"  # a record that still says running
    dataclasses.replace(record, state="done").write(folder)
    assert progress_of(folder, run) == "unvalidated"
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text("{}")
    assert progress_of(folder, run) == "done"
    with lock_fold(folder):
        assert progress_of(folder, run) == "locked"
    dataclasses.replace(record, state="done", iteration=LENGTH - 1).write(folder)
    assert progress_of(folder, run) == "started"  # a shorter run is no result of this study


@pytest.mark.parametrize("name", ["checkpoint_best.pth", "checkpoint_supervised.pth"])
def test_other_checkpoints_do_not_continue_a_run(name: str, world: World) -> None:
    run = the_run()
    folder = world.places.folder(run)
    folder.mkdir(parents=True)
    (folder / name).touch()
    assert progress_of(folder, run) == "new"
