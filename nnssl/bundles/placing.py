"""Models enter `nnUNet_results` as a whole: written in a hidden folder beside the data sets, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.names import FOLD_PREFIX
from nnssl.system.files import RUN_AGAIN, check_writable
from nnssl.system.locks import hold_lock
from nnssl.training.run_folder import is_locked

STAGING = ".nnssl_installing"
ASIDE = ".nnssl_replaced_"  # before a hash of the model's name


@contextlib.contextmanager
def staging(results: Path) -> Iterator[Path]:
    """Yield an empty hidden folder in `nnUNet_results`, which goes at the end; one process at a time.

    Raises:
        EnvironmentProblem: the folder cannot be written, or another process installs a model.
    """
    check_writable(results, "nnUNet_results", "export nnUNet_results=/another/folder")
    results.mkdir(parents=True, exist_ok=True)
    folder = results / STAGING
    run = "wait for its end, then run the command again"
    with hold_lock(folder.with_name(f"{STAGING}.lock"), "another process installs a model", where=results, run=run):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of a killed process
            folder.mkdir()
            yield folder
        except OSError as error:
            raise EnvironmentProblem(
                "a model could not be installed", where=results, why=str(error), run=RUN_AGAIN
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_free(targets: Sequence[Path], overwrite: bool, bundle: Path) -> None:
    """Check that models can be put in these places.

    Raises:
        UsageError: a model stands there and may not be replaced.
        EnvironmentProblem: a model there is being trained.
    """
    for target in targets:
        tidy_after_kill(target)
        if (target.exists() or target.is_symlink()) and not overwrite:
            raise UsageError(
                "a model of this name is installed or was trained here",
                where=target,
                why="it is not replaced unasked",
                run=f"nnssl_install {bundle} --overwrite replaces it, or move it away",
            )
        if any(is_locked(fold) for fold in target.glob(f"{FOLD_PREFIX}*")):
            raise EnvironmentProblem("the model is being trained", where=target, run="wait for the end of the training")


def put_in_place(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename finished model folders to their places; what stood there goes. Where a rename fails, all is as before.

    Args:
        pairs: finished folder, place; both on one file system.
    """
    with contextlib.ExitStack() as undo:
        for finished, target in pairs:
            if not target.parent.exists():
                target.parent.mkdir()
                undo.callback(_remove_if_empty, target.parent)
            if target.exists():
                target.rename(aside_of(target))
                undo.callback(aside_of(target).rename, target)
            finished.rename(target)
            undo.callback(target.rename, finished)
        undo.pop_all()
    for _, target in pairs:
        shutil.rmtree(aside_of(target), ignore_errors=True)


def aside_of(target: Path) -> Path:
    """Return where a model waits while another one takes its place."""
    return target.with_name(f"{ASIDE}{hashlib.sha256(target.name.encode()).hexdigest()[:16]}")


def tidy_after_kill(target: Path) -> None:
    """Put a model back, or delete it, that a killed process had put aside."""
    aside = aside_of(target)
    if aside.is_dir():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
