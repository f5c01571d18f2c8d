"""Moves of several files that happen together: a journal says what to do, and whoever finds the journal finishes it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.errors import EnvironmentProblem
from nnssl.system.files import RUN_AGAIN, read_object, replacing, write_json
from nnssl.system.locks import hold_lock

WORK = ".nnssl_accepting"
JOURNAL_JSON = ".nnssl_accepting.json"
LOCK = ".nnssl_accepting.lock"
NOTHING = "the data set is as it was"


@contextlib.contextmanager
def locked(raw: Path) -> Iterator[None]:
    """Keep other processes from changing the raw data set inside the block.

    Raises:
        EnvironmentProblem: another process changes it, or a file cannot be written.
    """
    lock = hold_lock(raw / LOCK, "another process changes the data set", where=raw, run="run the command again")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock)
        except OSError as error:
            raise EnvironmentProblem(
                "the raw data set cannot be changed", where=raw, why=str(error), run="check its permissions"
            ) from error
        yield


def transfer(
    raw: Path,
    copies: Mapping[Path, Path],
    moves: Sequence[tuple[Path, Path]],
    contents: Mapping[Path, Any],
) -> None:
    """Copy, move and rewrite files of a raw data set, all or none.

    All copies are made first, in a hidden folder. The journal is written when nothing can be missing any more. What a
    process began that was killed after that, `finish_interrupted` finishes; one that was killed before has changed
    nothing.

    Args:
        raw: folder of the data set; the caller holds its lock.
        copies: target -> source, which stays.
        moves: source, target.
        contents: JSON file -> content.

    Raises:
        EnvironmentProblem: a file cannot be written; the data set is as it was, or the next command finishes the work.
    """
    work = raw / WORK
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed before it wrote its journal
    try:
        work.mkdir()
        steps = []
        for number, (target, source) in enumerate(copies.items()):
            _copy(source, work / str(number))
            steps.append([str(work / str(number)), str(target)])
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise EnvironmentProblem(
            "masks could not be copied", where=raw, why=f"{error}; {NOTHING}", run=RUN_AGAIN
        ) from error
    steps += [[str(source), str(target)] for source, target in moves]
    journal = {"moves": steps, "contents": {str(path): content for path, content in contents.items()}}
    write_json(raw / JOURNAL_JSON, journal)
    _finish(raw)


def finish_interrupted(raw: Path) -> bool:
    """Finish what a killed process had begun, and return whether there was anything.

    Raises:
        EnvironmentProblem: a file cannot be written, or another process changes the data set.
    """
    if not (raw / JOURNAL_JSON).is_file():
        return False
    with locked(raw):
        if (raw / JOURNAL_JSON).is_file():
            _finish(raw)
    return True


def _finish(raw: Path) -> None:
    journal = read_object(raw / JOURNAL_JSON, keys=("moves", "contents"))
    try:
        for source, target in journal["moves"]:
            if os.path.lexists(source):
                move(Path(source), Path(target))
    except OSError as error:
        why = f"{error}; the work is begun, and the next nnssl_accept finishes it"
        raise EnvironmentProblem("files could not be moved", where=raw, why=why, run=RUN_AGAIN) from error
    for path, content in journal["contents"].items():
        write_json(Path(path), content)
    (raw / JOURNAL_JSON).unlink()
    shutil.rmtree(raw / WORK, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Move a file or a link, also to another file system; a reader of `target` never sees a part of it."""
    target.parent.mkdir(exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target) as temporary:
            _copy(source, temporary)
        source.unlink()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
