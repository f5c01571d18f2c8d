"""The record of a run: `run.json` in the fold's folder says what the run was, where it stands and how it scored.

Reading and writing a record imports neither torch nor nnU-Net. Comparisons and reports read records and summaries only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from typing_extensions import Self

from nnssl.data.splits import FoldCases, splits_file
from nnssl.errors import DataError
from nnssl.names import (
    CHECKPOINT_FINAL,
    CHECKPOINT_SUPERVISED,
    DATASET_JSON,
    FOLD_PREFIX,
    PROGRESS_JSONL,
    RUN_JSON,
    SEMI_KEY,
    SUMMARY_JSON,
    SUMMARY_POSTPROCESSED_JSON,
    SUPERVISED_TRAINER,
    VALIDATION_FOLDER,
)
from nnssl.system.files import content_hash, settings_hash, write_json
from nnssl.system.resources import cpu_count, peak_memory_bytes
from nnssl.training.settings import RunSettings
from nnssl.version import __version__

State = Literal["running", "stopped", "failed", "done"]
LIBRARIES = ("torch", "nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "numpy", "SimpleITK")
GIT_SECONDS = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Git:
    """State of the checkout that the package ran from.

    Attributes:
        commit: full hash.
        changed: whether tracked files differed from that commit.
    """

    commit: str
    changed: bool


@dataclass(frozen=True)
class Machine:
    """Where the run was trained; no host name, as that can name a hospital.

    Attributes:
        platform: operating system and architecture.
        processor: name of the CPU.
        cores: CPUs that the run could use.
        device: `cpu`, `mps`, or the name of the GPU.
    """

    platform: str
    processor: str
    cores: int
    device: str


@dataclass(frozen=True)
class Session:
    """One start of the run, or one continuation.

    Attributes:
        command: the `nnssl_train` command line.
        started: time in UTC, ISO 8601.
        ended: time in UTC; empty while the session runs, and where it was killed.
        first_iteration: iterations that were done before.
        versions: of nnssl, Python and the libraries.
        git: state of the checkout, None where nnssl was installed without one.
        machine: where it ran.
        peak_memory_bytes: largest resident memory of the training process, 0 while it runs.
        peak_device_bytes: largest memory that torch held on the GPU, 0 on a CPU.
    """

    command: str
    started: str
    ended: str = ""
    first_iteration: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    git: Git | None = None
    machine: Machine | None = None
    peak_memory_bytes: int = 0
    peak_device_bytes: int = 0


@dataclass(frozen=True)
class DataHashes:
    """SHA-256 of what decides which data the run saw.

    Attributes:
        dataset_json: of the file.
        splits: of `splits_final.json`, or of the splits file of the setting.
        labelled: of the list of labelled cases.
        unlabelled: of the list of unlabelled cases.
        validation: of the list of validation cases.
    """

    dataset_json: str = ""
    splits: str = ""
    labelled: str = ""
    unlabelled: str = ""
    validation: str = ""

    @classmethod
    def of(cls, preprocessed: Path, cases: FoldCases, tag: str = "") -> DataHashes:
        """Return the hashes for a preprocessed data set and the cases of the run; `tag` is that of its setting."""
        names = (DATASET_JSON, splits_file(tag))
        files = [content_hash(path) if (path := preprocessed / name).is_file() else "" for name in names]
        return cls(
            *files, *(settings_hash(list(part)) for part in (cases.labelled, cases.unlabelled, cases.validation))
        )


@dataclass(frozen=True)
class MaskScores:
    """Scores of masks.

    Attributes:
        dice: mean Dice over structures and cases, in [0, 1]; None where no case has a structure.
        dice_by_label: mean Dice of each label or region.
    """

    dice: float | None
    dice_by_label: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of_summary(cls, file: Path) -> Self | None:
        """Return the scores in a `summary.json`, None where the file is missing or cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            summary = json.loads(file.read_text(encoding="utf-8"))
            labels = {label: _number(values.get("Dice")) for label, values in summary["mean"].items()}
            return cls(_number(summary["foreground_mean"]["Dice"]), labels)
        return None


@dataclass(frozen=True)
class Scores(MaskScores):
    """Validation scores of the deployed network, of the masks as they are.

    Attributes:
        dice: as in `MaskScores`.
        dice_by_label: as in `MaskScores`.
        postprocessed: the scores after the post-processing of the fold; None where none was decided.
    """

    postprocessed: MaskScores | None = None

    @classmethod
    def of_validation(cls, folder: Path) -> Scores | None:
        """Return the scores in the `validation` folder of a run, None where the run was not validated."""
        found = cls.of_summary(folder / SUMMARY_JSON)
        after = MaskScores.of_summary(folder / SUMMARY_POSTPROCESSED_JSON)
        return dataclasses.replace(found, postprocessed=after) if found else None


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds.

    Attributes:
        dataset: folder name of the data set.
        trainer: class name of the method.
        plans: plans name, with the tag of the label budget.
        configuration: for instance `3d_fullres`.
        fold: fold number as text, or `all`.
        settings: what the run was asked to do, with seed, length and tag.
        state: `running` also stands for a run that was killed; see `nnssl.training.runs`.
        iteration: optimiser steps that are done.
        sessions: every start and continuation, the first one first.
        plans_hash: SHA-256 of the plans without the run's settings.
        data: hashes of the data.
        seconds_per_iteration: mean over the run, None before the first epoch ends.
        scores: of the validation, None where the run was not validated.
        supervised_key: hash of all that decided the weights after the supervised training in this run; empty where no
            other run can start from these weights.
        unlabelled_from: iteration from which on unlabelled patches counted, None where they never did.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: str
    settings: RunSettings
    state: State = "running"
    iteration: int = 0
    sessions: tuple[Session, ...] = ()
    plans_hash: str = ""
    data: DataHashes = field(default_factory=DataHashes)
    seconds_per_iteration: float | None = None
    scores: Scores | None = None
    supervised_key: str = ""
    unlabelled_from: int | None = None

    def write(self, folder: Path) -> None:
        """Write `run.json` into the fold's folder, in one piece."""
        write_json(folder / RUN_JSON, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Return the record in a fold's folder; None where there is none, or where it cannot be read.

        Keys of later versions are ignored.
        """
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = json.loads((folder / RUN_JSON).read_text(encoding="utf-8"))
            content["settings"] = _known(RunSettings, content["settings"])
            content["sessions"] = tuple(map(_session, content.get("sessions", ())))
            content["data"] = _known(DataHashes, content.get("data", {}))
            content["scores"] = _scores(content["scores"]) if content.get("scores") else None
            return _known(cls, content)
        return None

    def ended(self, folder: Path, state: State, iteration: int, peak_device_bytes: int = 0) -> RunRecord:
        """Return the record of a session that ends now.

        Args:
            folder: of the fold, with the files that the run left.
            state: how it ended.
            iteration: optimiser steps that are done.
            peak_device_bytes: largest memory on the GPU.
        """
        sessions = self.sessions
        if sessions:
            last = dataclasses.replace(
                sessions[-1], ended=now(), peak_memory_bytes=peak_memory_bytes(), peak_device_bytes=peak_device_bytes
            )
            sessions = (*sessions[:-1], last)
        return dataclasses.replace(
            self,
            state=state,
            iteration=iteration,
            sessions=sessions,
            seconds_per_iteration=seconds_per_iteration(folder),
            scores=Scores.of_validation(folder / VALIDATION_FOLDER),
        )


def find_supervised(dataset_results: Path, key: str, own: Path) -> Path | None:
    """Return the checkpoint with the weights that supervised training with this key ended with, None if there is none.

    That is the end of a finished supervised run, or of the supervised stage of another method's run.

    Args:
        dataset_results: the data set's folder in nnUNet_results.
        key: what `supervised_key` of the records has to be; empty finds nothing.
        own: the fold's folder that asks, which does not count.
    """
    for file in sorted(dataset_results.glob(f"*/{FOLD_PREFIX}*/{RUN_JSON}")) if key else ():
        record = RunRecord.read(file.parent)
        if record is None or record.supervised_key != key or file.parent == own:
            continue
        finished = file.with_name(CHECKPOINT_FINAL)
        whole = record.trainer == SUPERVISED_TRAINER and record.state == "done" and finished.is_file()
        stage = file.with_name(CHECKPOINT_SUPERVISED)
        if whole or stage.is_file():
            return finished if whole else stage
    return None


def refuse_other_data(earlier: RunRecord, today: RunRecord, folder: Path) -> None:
    """Refuse to go on with a run, or to validate it, with other plans or cases than those it began with.

    Args:
        earlier: record of the run.
        today: the same with the plans and cases of today.
        folder: of the fold, for the message.

    Raises:
        DataError: plans, labelled cases or validation cases are others.
    """
    pairs = {
        "plans": (earlier.plans_hash, today.plans_hash),
        "labelled cases": (earlier.data.labelled, today.data.labelled),
        "validation cases": (earlier.data.validation, today.data.validation),
    }
    changed = [name for name, (before, after) in pairs.items() if before and after and before != after]
    if changed:
        raise DataError(
            f"this run began with other {' and '.join(changed)}",
            where=folder,
            why="the data set or its plans have changed since then",
            run="train a new run with -tag NAME; nnssl_predict still uses this one as it is",
        )


def plans_hash(plans: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plans without the settings of a run."""
    ours = {key: value for key, value in plans.get(SEMI_KEY, {}).items() if key != "run"}
    others = {key: value for key, value in plans.items() if key not in (SEMI_KEY, "continue_training")}
    return settings_hash({**others, SEMI_KEY: ours})


def new_session(command: str, device: str, first_iteration: int) -> Session:
    """Return a session that begins now, with versions, checkout and machine."""
    machine = Machine(platform.platform(terse=True), processor_name(), cpu_count(), device)
    return Session(command, now(), "", first_iteration, versions(), git_state(), machine)


def now() -> str:
    """Return the time in UTC, ISO 8601 with seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of nnssl, Python and the libraries that decide the numbers of a run."""
    found = {"nnssl": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_state() -> Git | None:
    """Return the state of the checkout that this package stands in; None where it stands in none, or git is missing."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit, status = (
            subprocess.run(
                ["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
        return Git(commit, bool(status))
    return None


def processor_name() -> str:
    """Return the name of the CPU as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def seconds_per_iteration(folder: Path) -> float | None:
    """Return the mean time of an iteration over the epochs in the fold's log, None where there is no log."""
    seconds, iterations = training_seconds(folder)
    return seconds / iterations if iterations else None


def training_seconds(folder: Path) -> tuple[float, int]:
    """Return the seconds that the epochs in a fold's `progress.jsonl` trained for, and their iterations."""
    total, done = 0.0, 0
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in (folder / PROGRESS_JSONL).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            total += (row["iteration"] - done) * row["seconds_per_iteration"]
            done = row["iteration"]
    return total, done


def _known(cls: type[T], content: Mapping[str, Any]) -> T:
    """Return a dataclass from the keys of a mapping that it knows."""
    names = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in content.items() if key in names})


def _session(content: Mapping[str, Any]) -> Session:
    git, machine = content.get("git"), content.get("machine")
    parts = {"git": _known(Git, git) if git else None, "machine": _known(Machine, machine) if machine else None}
    return _known(Session, {**content, **parts})


def _scores(content: Mapping[str, Any]) -> Scores:
    after = content.get("postprocessed")
    return _known(Scores, {**content, "postprocessed": _known(MaskScores, after) if after else None})


def _number(value: object) -> float | None:
    """Return a finite number, None for anything else: NaN is no JSON."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
