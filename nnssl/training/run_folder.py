"""The folder of a run: its name, its lock, and a start that leaves nothing behind where it fails."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nnssl.errors import UsageError
from nnssl.names import (
    CHECKPOINT_BEST,
    CHECKPOINT_FINAL,
    CHECKPOINT_LATEST,
    CHECKPOINT_PATTERN,
    DATASET_JSON,
    FINGERPRINT_JSON,
    FOLD_PREFIX,
    NAME_SEPARATOR,
    PLANS_JSON,
    TAG_SEPARATOR,
)
from nnssl.system.files import read_object
from nnssl.system.locks import hold_lock, is_held

LATEST, BEST, FINAL = CHECKPOINT_LATEST, CHECKPOINT_BEST, CHECKPOINT_FINAL
MODEL_FILES = (PLANS_JSON, DATASET_JSON, FINGERPRINT_JSON)
REPLACED = ".replaced_"  # before the name of a fold's folder: the run that `--overwrite` puts aside
log = logging.getLogger("nnssl.train")


class ModelName(NamedTuple):
    """The parts of a model folder's name, `TRAINER__PLANS__CONFIGURATION` or `…@TAG`."""

    trainer: str
    plans: str
    configuration: str
    tag: str = ""

    @property
    def folder(self) -> str:
        """The folder's name."""
        stem = NAME_SEPARATOR.join((self.trainer, self.plans, self.configuration))
        return f"{stem}{TAG_SEPARATOR}{self.tag}" if self.tag else stem

    @classmethod
    def parse(cls, folder: str) -> ModelName | None:
        """Return the parts of a folder's name, None where it is no name of a model."""
        parts = folder.split(NAME_SEPARATOR)
        if len(parts) != 3:
            return None
        configuration, _, tag = parts[2].partition(TAG_SEPARATOR)
        return cls(parts[0], parts[1], configuration, tag)


def has_run(folder: Path) -> bool:
    """Return whether the folder of a fold holds something that a new run would lose."""
    return any(folder.glob(CHECKPOINT_PATTERN))


@contextlib.contextmanager
def lock_fold(folder: Path) -> Iterator[None]:
    """Keep other processes from training the same fold; a file system without locks keeps no process away.

    The folders that this function made and that are still empty at the end go.

    Raises:
        EnvironmentProblem: another process trains the fold.
    """
    made = _first_missing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    what, run = "another process is training this fold", "wait for its end, or stop it"
    try:
        with hold_lock(_lock_file(folder), what, where=folder, run=run):
            yield
    finally:
        if made:
            _remove_empty(folder.parent, made)


def is_locked(folder: Path) -> bool:
    """Return whether a process trains the fold now."""
    return is_held(_lock_file(folder))


@contextlib.contextmanager
def start_in(folder: Path, keep_on_failure: bool) -> Iterator[None]:
    """Give a new run an empty folder; the run that stood there goes when the new one has a checkpoint or has ended.

    A new run that fails before its first checkpoint leaves nothing, and the earlier run stands in its place again. The
    caller holds the lock of the fold and has asked whether the earlier run may go.

    Args:
        folder: of the fold.
        keep_on_failure: the logs of a failed run stay where no earlier run stood, for runs that write no checkpoint.
    """
    made, aside = _first_missing(folder), _aside(folder)
    _tidy_after_kill(folder, aside)
    moved = has_run(folder)
    if moved:
        folder.rename(aside)
    try:
        yield
    except BaseException:
        if moved and not has_run(folder):
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            log.info("the earlier run stands in %s again", folder)
        elif made and not keep_on_failure and not has_run(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty(folder.parent, made)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_back_after_kill(folder: Path) -> None:
    """Put the earlier run back that a killed process had put aside and had not replaced yet.

    Raises:
        EnvironmentProblem: another process trains the fold.
    """
    if _aside(folder).exists():
        with lock_fold(folder):
            _tidy_after_kill(folder, _aside(folder))


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{REPLACED}{folder.name}")


def _tidy_after_kill(folder: Path, aside: Path) -> None:
    """Put a run back, or delete it, that a killed process had put aside."""
    if not aside.exists():
        return
    if has_run(folder):
        shutil.rmtree(aside, ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def check_other_folds(folder: Path, plans: dict[str, Any], configuration: str) -> None:
    """Check that the other folds of the model have the network of these plans, as they share plans.json.

    Args:
        folder: of the fold that is about to begin.
        plans: its plans.
        configuration: for instance `3d_fullres`.

    Raises:
        UsageError: they have another network, so that they could not be loaded any more.
    """
    pattern = f"{FOLD_PREFIX}*/{CHECKPOINT_PATTERN}"
    others = sorted({file.parent.name for file in folder.parent.glob(pattern)} - {folder.name})
    file = folder.parent / PLANS_JSON
    if not others or not file.is_file():
        return
    theirs, ours = (each["configurations"][configuration]["architecture"] for each in (read_object(file), plans))
    if theirs != ours:
        raise UsageError(
            f"the network is another one than that of {', '.join(others)}",
            where=file,
            why="the folds of a model share this file, and prediction reads their network from it",
            run="give the --set of the other folds, or another -tag",
        )


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".training_{folder.name.removeprefix(FOLD_PREFIX)}.lock")


def _first_missing(folder: Path) -> Path | None:
    return next((place for place in (*reversed(folder.parents), folder) if not place.exists()), None)


def _remove_empty(model: Path, made: Path) -> None:
    """Remove the folders from the model's up to `made` unless another run, started meanwhile, stands in them."""
    if not any(model.glob(f"*{FOLD_PREFIX}*")):
        for name in MODEL_FILES:
            (model / name).unlink(missing_ok=True)
    for place in (model, *model.parents):
        if made not in (place, *place.parents):
            return
        try:
            place.rmdir()
        except OSError:
            return
