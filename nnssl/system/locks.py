"""Locks that keep a second process away from a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nnssl.errors import EnvironmentProblem


@contextlib.contextmanager
def hold_lock(
    file: Path, what: str, *, where: Path, run: str, keep_file: bool = False, wait_s: float = 0
) -> Iterator[None]:
    """Hold a lock inside the block; a file system without locks keeps no process away.

    Args:
        file: the lock file, in a folder that exists.
        what: says in the error what the other process does.
        where: the place that the error names.
        run: what the error says to do.
        keep_file: the lock file stays at the end.
        wait_s: seconds to wait for a process that holds the lock.

    Raises:
        EnvironmentProblem: another process holds the lock.
        OSError: the lock file cannot be written.
    """
    lock = FileLock(file, timeout=wait_s)
    try:
        with contextlib.suppress(NotImplementedError):
            lock.acquire()
    except Timeout:
        raise EnvironmentProblem(what, where=where, run=run) from None
    try:
        yield
    finally:
        lock.release()
        if not keep_file:
            file.unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Return whether a process holds the lock now; without a file, or without locks, none does."""
    if not file.exists():
        return False
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False
    lock.release()
    return False
