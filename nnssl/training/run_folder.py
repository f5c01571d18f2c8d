"""The folder of a run: one process at a time, an earlier run of the fold is kept, a failed start leaves nothing."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.system.files import read_object

LATEST, BEST, FINAL = "checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth"
MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
log = logging.getLogger("nnssl.train")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training the same fold; where the file system has no locks, nothing keeps them.

    Raises:
        EnvironmentProblem: another process is training it.
    """
    made, number = _first_missing(folder), folder.name.removeprefix("fold_")
    lock = FileLock(folder.with_name(f".training_{number}.lock"), timeout=0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(NotImplementedError):
            lock.acquire()
    except Timeout:
        raise EnvironmentProblem(
            "another process is training this fold", where=folder, run="wait for its end, or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        if made:
            _remove_empty(folder.parent, made)


@contextlib.contextmanager
def in_place_of_previous(folder: Path, put_back: bool) -> Iterator[None]:
    """Move an earlier run of the same fold aside, so that a new one never overwrites it; one is kept.

    With `put_back` a new run that fails before its first checkpoint leaves nothing: its folders go, and the earlier run
    moves back, as does the one that was kept before it.
    """
    made = _first_missing(folder)
    aside = folder.with_name(f"previous_{folder.name}")
    older = folder.with_name(f"{aside.name}_older")  # goes when the new run is there
    moved = any(folder.glob("checkpoint_*.pth"))
    if moved:
        if aside.exists():
            shutil.rmtree(older, ignore_errors=True)
            aside.rename(older)
        folder.rename(aside)
        log.info("the earlier run of this fold now stands in %s", aside)
    try:
        yield
    except BaseException:
        if put_back and not any(folder.glob("checkpoint_*.pth")):
            if moved or made:
                shutil.rmtree(folder, ignore_errors=True)
            if moved:
                aside.rename(folder)
                if older.exists():
                    older.rename(aside)
                log.info("the earlier run stands in %s again", folder)
            elif made:
                _remove_empty(folder.parent, made)
        else:
            shutil.rmtree(older, ignore_errors=True)
        raise
    shutil.rmtree(older, ignore_errors=True)


def check_other_folds(folder: Path, plans: dict[str, Any], configuration: str) -> None:
    """Check that the other folds of the model have the network of these plans, as they share plans.json.

    Args:
        folder: of the fold that is about to begin.
        plans: its plans.
        configuration: for instance `3d_fullres`.

    Raises:
        UsageError: they have another network, so that they could not be loaded any more.
    """
    others = sorted({file.parent.name for file in folder.parent.glob("fold_*/checkpoint_*.pth")} - {folder.name})
    file = folder.parent / "plans.json"
    if not others or not file.is_file():
        return
    theirs, ours = (each["configurations"][configuration]["architecture"] for each in (read_object(file), plans))
    if theirs != ours:
        raise UsageError(
            f"the network is another one than that of {', '.join(others)}",
            where=file,
            why="the folds of a model share this file, and prediction reads their network from it",
            run="give the --set of the other folds, or move the model's folder away",
        )


def _first_missing(folder: Path) -> Path | None:
    return next((place for place in (*reversed(folder.parents), folder) if not place.exists()), None)


def _remove_empty(model: Path, made: Path) -> None:
    """Remove the folders from the model's up to `made` unless another run, started meanwhile, stands in them."""
    if not any(model.glob("*fold_*")):
        for name in MODEL_FILES:
            (model / name).unlink(missing_ok=True)
    for place in (model, *model.parents):
        if made not in (place, *place.parents):
            return
        try:
            place.rmdir()
        except OSError:
            return
