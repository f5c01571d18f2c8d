"""The progress of a run in TensorBoard, MLflow or Weights & Biases, beside `progress.jsonl` and `progress.csv`.

Everything stays on this machine unless the user's own variables of the tracker say otherwise: TensorBoard writes into
the folder of the fold, MLflow into `mlruns` of nnUNet_results (MLFLOW_TRACKING_URI names another place), and Weights &
Biases works offline (WANDB_MODE=online sends). `track.json` in the folder of the fold remembers the tracks, so that a
continued run goes on in the same ones, with or without `-track`.

A tracker that fails must not end a training: the run warns once and goes on without that tracker.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nnssl.errors import EnvironmentProblem, NnsslError
from nnssl.names import FOLD_PREFIX, RESULTS_VARIABLE, SUMMARY_JSON, VALIDATION_FOLDER
from nnssl.system.files import environment_folder, read_json, write_json

log = logging.getLogger("nnssl.train")
TRACK_JSON = "track.json"
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}  # tracker -> package of its import
TRACKERS = tuple(PACKAGES)


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        """Write numbers that belong to an iteration."""
        ...

    def close(self, finished: bool) -> None:
        """End the session; `finished`: no further session follows."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run.

    Attributes:
        folder: of the fold.
        dataset: folder name of the data set.
        name: of the run, the model folder and the fold.
        settings: plain values that stand beside the numbers.
        iteration: that the run has reached; what a killed session wrote after this iteration comes again.
    """

    folder: Path
    dataset: str
    name: str
    settings: Mapping[str, Any]
    iteration: int


def check_trackers(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed, without importing them.

    Raises:
        EnvironmentProblem: a package is missing.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise EnvironmentProblem(
                f"-track {name} needs the Python package {PACKAGES[name]}, which is not installed",
                where=f"-track {name}",
                why="without -track, progress.jsonl and progress.csv hold the same numbers",
                run=f'python -m pip install "nnssl-semi[{name}]"',
            )


@dataclass
class Tracks:
    """The open trackers of a run."""

    trackers: dict[str, Tracker] = field(default_factory=dict)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row of `progress.jsonl`; its `iteration` is their place."""
        numbers = {
            name: float(value)
            for name, value in row.items()
            if name != "iteration" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._each(lambda tracker: tracker.log(numbers, int(row["iteration"])))

    def close(self, finished: bool) -> None:
        """End the session of every tracker."""
        self._each(lambda tracker: tracker.close(finished))
        self.trackers.clear()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            if not _succeeds(name, partial(action, tracker)):
                del self.trackers[name]


@contextlib.contextmanager
def open_tracks(names: Iterable[str], run: TrackedRun) -> Iterator[Tracks]:
    """Open the trackers that are named, and those of earlier sessions of the run.

    Raises:
        EnvironmentProblem: the package of a tracker is missing.
    """
    known: dict[str, str] = {}
    file = run.folder / TRACK_JSON
    if file.is_file() and run.iteration:
        known = {name: str(value) for name, value in read_json(file).items() if name in PACKAGES}
    wanted = list(dict.fromkeys([*names, *known]))
    check_trackers(wanted)
    tracks = Tracks()

    def start(name: str) -> None:
        tracks.trackers[name], known[name] = OPENERS[name](run, known.get(name))

    for name in wanted:
        _succeeds(name, partial(start, name))
    if known:
        write_json(file, known)
    finished = False
    try:
        yield tracks
        finished = True
    finally:
        tracks.close(finished)


def log_validation(tracks: Tracks, folder: Path, iteration: int) -> None:
    """Write the mean Dice of the validation cases, where `validation/summary.json` is there."""
    summary = folder / VALIDATION_FOLDER / SUMMARY_JSON
    if tracks.trackers and summary.is_file():
        with contextlib.suppress(NnsslError, KeyError, TypeError):
            dice = read_json(summary)["foreground_mean"]["Dice"]
            tracks.log({"iteration": iteration, "validation_dice": dice})


def _succeeds(name: str, action: Callable[[], None]) -> bool:
    """Do something with a tracker, and return whether it worked; the package of a tracker raises what it likes."""
    try:
        action()
    except Exception as error:
        text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        log.warning("warning: %s fails, the run goes on without it: %s", name, text)
        return False
    return True


# ---------------------------------------------------------------------- the trackers


class _TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        self.writer: Any = SummaryWriter(str(folder), purge_step=run.iteration + 1)
        if not run.iteration:
            text = "\n".join(f"    {key}: {value}" for key, value in run.settings.items())
            self.writer.add_text("settings", text)

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, iteration)
        self.writer.flush()

    def close(self, finished: bool) -> None:  # noqa: ARG002
        self.writer.close()


class _MLflow:
    def __init__(self, run: TrackedRun, known: str | None) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # plain files need no server and no database
        from mlflow.tracking import MlflowClient

        results = environment_folder(RESULTS_VARIABLE)
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (results / "mlruns").resolve().as_uri())
        if known is None:
            experiment = self.client.get_experiment_by_name(run.dataset)
            number = experiment.experiment_id if experiment else self.client.create_experiment(run.dataset)
            self.id = str(self.client.create_run(number, run_name=run.name).info.run_id)
            for key, value in run.settings.items():
                self.client.log_param(self.id, key, value)
        else:
            self.id = known
            self.client.update_run(known, status="RUNNING")

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.id, name, value, step=iteration)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class _WandB:
    def __init__(self, run: TrackedRun, known: str | None) -> None:
        import wandb

        self.id = known or uuid.uuid4().hex[:12]
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.dataset),
            name=run.name,
            id=self.id,
            resume="allow",
            dir=str(run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, numbers: Mapping[str, float], iteration: int) -> None:
        self.run.log(dict(numbers), step=iteration)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


def _open_tensorboard(run: TrackedRun, known: str | None) -> tuple[Tracker, str]:  # noqa: ARG001
    return _TensorBoard(run), "tensorboard"


def _open_mlflow(run: TrackedRun, known: str | None) -> tuple[Tracker, str]:
    made = _MLflow(run, known)
    return made, made.id


def _open_wandb(run: TrackedRun, known: str | None) -> tuple[Tracker, str]:
    made = _WandB(run, known)
    return made, made.id


OPENERS: dict[str, Callable[[TrackedRun, str | None], tuple[Tracker, str]]] = {
    "tensorboard": _open_tensorboard,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}


def run_of(trainer: Any, method: str) -> TrackedRun:  # noqa: ANN401 - the frame's trainer
    """Return what trackers need to know of a trainer's run.

    Args:
        trainer: a trainer of the frame.
        method: class name of the method.
    """
    folder, settings = Path(trainer.output_folder), trainer.settings
    values = {"trainer": method, "configuration": trainer.configuration_name, "fold": trainer.fold}
    values |= {name: value for name, value in settings.to_dict().items() if name != "config"}
    values |= {f"set.{name}": value for name, value in settings.config.items()}
    name = f"{folder.parent.name}/{FOLD_PREFIX}{trainer.fold}"
    return TrackedRun(folder, trainer.plans_manager.dataset_name, name, values, trainer.iteration)
