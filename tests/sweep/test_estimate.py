from __future__ import annotations

import dataclasses

import pytest

from nnssl.chooser import costs
from nnssl.sweep.estimate import Estimate, Measured, total
from nnssl.sweep.study import study_runs
from nnssl.training.record import RunRecord
from nnssl.training.settings import RunSettings
from tests.sweep.studies_for_tests import World, small_study


def write_run(
    world: World, trainer: str, number: int, pace: float | None, size: int, configuration: str = "2d"
) -> None:
    folder = world.places.results / f"{trainer}__p__{configuration}@{number}" / "fold_0"
    folder.mkdir(parents=True)
    record = RunRecord("d", trainer, "p", configuration, "0", RunSettings(), state="done", seconds_per_iteration=pace)
    record.write(folder)
    (folder / "weights").write_bytes(bytes(size - (folder / "run.json").stat().st_size))


def test_medians_of_the_same_trainer_come_first(world: World) -> None:
    for number, (pace, size) in enumerate([(1.0, 10_000), (2.0, 30_000), (9.0, 20_000)]):
        write_run(world, "SupervisedTrainer", number, pace, size)
    write_run(world, "FixMatchTrainer", 0, 4.0, 50_000)
    supervised, fixmatch, other = study_runs(
        small_study(1, trainers=("SupervisedTrainer", "FixMatchTrainer", "MeanTeacherTrainer"))
    )
    measured = Measured.of(world.places.results)
    assert measured.estimate(supervised) == Estimate(2.0 * 30, 20_000)
    assert measured.estimate(fixmatch) == Estimate(4.0 * 30, 50_000)
    relative = {name: cost.time for name, cost in costs()["2d"].items()}
    base = (2.0 + 4.0 / (0.5 + 0.5 * relative["FixMatchTrainer"])) / 2  # seconds of a supervised iteration
    found = measured.estimate(other)
    assert found.seconds == pytest.approx(30 * base * (0.5 + 0.5 * relative["MeanTeacherTrainer"]))
    assert found.disk_bytes == 25_000  # of all runs of the configuration
    assert measured.estimate(dataclasses.replace(other, configuration="3d_fullres")) == Estimate()


def test_unfinished_runs_tell_their_pace_but_not_their_size(world: World) -> None:
    write_run(world, "SupervisedTrainer", 0, 2.0, 10_000)
    folder = next(world.places.results.glob("*/fold_0"))
    record = RunRecord.read(folder)
    assert record is not None
    dataclasses.replace(record, state="stopped").write(folder)
    (run,) = study_runs(small_study(1))
    assert Measured.of(world.places.results).estimate(run) == Estimate(60.0, None)


def test_sums() -> None:
    assert total([Estimate(1.0, 2), Estimate(3.0, 5)]) == Estimate(4.0, 7)
    assert total([Estimate(1.0, None), Estimate(3.0, 5)]) == Estimate(4.0, None)
    assert total([]) == Estimate(0, 0)
