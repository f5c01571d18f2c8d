"""Trackers with their real packages, in temporary folders; a tracker that fails ends no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from nnssl.errors import EnvironmentProblem
from nnssl.training import tracking
from nnssl.training.job import _tracked
from nnssl.training.tracking import TRACK_JSON, TrackedRun, check_trackers, log_validation, open_tracks


def tracked_run(root: Path, iteration: int = 0) -> TrackedRun:
    folder = root / "results" / "Dataset001_A" / "T__p__2d" / "fold_0"
    folder.mkdir(parents=True, exist_ok=True)
    return TrackedRun(folder, "Dataset001_A", "T__p__2d/fold_0", {"seed": 0, "set.weight": 0.5}, iteration)


def row(iteration: int, loss: float) -> dict[str, object]:
    return {"epoch": iteration // 10, "iteration": iteration, "loss": loss, "pseudo_dice": float("nan")}


def two_sessions(root: Path, name: str) -> TrackedRun:
    """Write the rows 10 and 20, end as a killed run does, and continue with the rows 20 and 30 from iteration 10."""
    run = tracked_run(root)
    with pytest.raises(RuntimeError), open_tracks([name], run) as tracks:
        tracks.log(row(10, 3.0))
        tracks.log(row(20, 9.0))
        raise RuntimeError
    with open_tracks([], tracked_run(root, 10)) as tracks:  # without -track
        assert list(tracks.trackers) == [name]
        tracks.log(row(20, 2.0))
        tracks.log(row(30, 1.0))
    return run


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def test_tensorboard_goes_on_in_the_same_track(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = two_sessions(tmp_path, "tensorboard")
    found = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert found.Tags()["scalars"] == ["epoch", "loss"]  # no NaN


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run = two_sessions(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((tmp_path / "results" / "mlruns").as_uri())
    number = json.loads((run.folder / TRACK_JSON).read_text())["mlflow"]
    found = client.get_run(number)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"seed": "0", "set.weight": "0.5"}
    steps = [(each.step, each.value) for each in client.get_metric_history(number, "loss")]
    assert steps == [(10, 3.0), (20, 9.0), (20, 2.0), (30, 1.0)]  # MLflow keeps both; its page shows the later one
    experiment = client.get_experiment_by_name("Dataset001_A")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_wandb_is_offline_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing may be sent
    run = two_sessions(tmp_path, "wandb")
    number = json.loads((run.folder / TRACK_JSON).read_text())["wandb"]
    files = sorted((run.folder / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"loss" in content
    assert b"set.weight" in content


class Recorder:
    """A tracker that keeps what it gets, and fails when a test says so."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []
        self.broken = False

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        if self.broken:
            raise OSError("no space\nleft")
        self.rows.append((iteration, dict(numbers)))

    def close(self, finished: bool) -> None:
        self.closed.append(finished)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(tracking, "check_trackers", lambda names: None)
    monkeypatch.setitem(tracking.OPENERS, "wandb", lambda run, known: (made, known or "id7"))
    return made


def test_a_failing_tracker_is_left_and_the_run_goes_on(tmp_path: Path, recorder: Recorder, caplog) -> None:
    with open_tracks(["wandb"], tracked_run(tmp_path)) as tracks:
        tracks.log(row(10, 1.0))
        recorder.broken = True
        tracks.log(row(20, 1.0))
        tracks.log(row(30, 1.0))
    assert recorder.rows == [(10, {"epoch": 1.0, "loss": 1.0})]
    assert [each.message for each in caplog.records] == [
        "warning: wandb fails, the run goes on without it: OSError: no space"
    ]


def test_a_new_run_has_a_new_track_and_scores_are_written(tmp_path: Path, recorder: Recorder) -> None:
    run = tracked_run(tmp_path)
    (run.folder / TRACK_JSON).write_text('{"wandb": "old", "other": "x"}')
    (run.folder / "validation").mkdir()
    with open_tracks(["wandb"], run) as tracks:
        log_validation(tracks, run.folder, 30)
        (run.folder / "validation" / "summary.json").write_text('{"foreground_mean": {"Dice": 0.75}}')
        log_validation(tracks, run.folder, 30)
    assert json.loads((run.folder / TRACK_JSON).read_text()) == {"wandb": "id7"}
    assert recorder.rows == [(30, {"validation_dice": 0.75})]
    assert recorder.closed == [True]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="-track mlflow needs the Python package mlflow") as caught:
        check_trackers(["mlflow"])
    assert caught.value.run == 'python -m pip install "nnssl-semi[mlflow]"'


def test_a_training_writes_every_row_of_its_log(make_trainer, recorder: Recorder) -> None:
    from nnssl.registry import METHODS
    from nnssl.training.job import Job

    trainer = make_trainer("SupervisedTrainer")
    job = Job(METHODS["SupervisedTrainer"], {}, {}, "3d_fullres", 0, "cpu", "", track=("wandb",))
    Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
    with _tracked(job, trainer):
        trainer.run_training()
    lines = (Path(trainer.output_folder) / "progress.jsonl").read_text().splitlines()
    expected = [(each["iteration"], each["loss"]) for each in map(json.loads, lines)]
    assert [(iteration, numbers["loss"]) for iteration, numbers in recorder.rows] == expected
    assert len(expected) == 2
