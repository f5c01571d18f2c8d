"""Facts about files in one small SQLite file, so that nobody has to read an unchanged file again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

APPLICATION_ID = 0x6E6E534C  # stands in the header of our files, so that those of other programs are known as such
VERSION = 1  # of the table and of what its values mean; facts of another version are learned again
BUSY_TIMEOUT_S = 30.0
BATCH_ROWS, BATCH_S = 256, 5.0  # a kill loses no more than the facts of so many files, or of so much time
# Some file systems round times to two seconds: a file that was written just before it was read can change once more
# without a sign. Its content is compared at the next call.
SETTLED_NS = 2_000_000_000


class FileState(NamedTuple):
    """What tells an unchanged file without opening it: path, size in bytes, time of the last change, and inode."""

    path: str
    size: int
    mtime_ns: int
    inode: int


def states_of(paths: Iterable[Path]) -> tuple[FileState, ...] | None:
    """Return the states of files, links followed; None where a file is missing or cannot be looked at."""
    states = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            return None
        states.append(FileState(str(path), found.st_size, found.st_mtime_ns, found.st_ino))
    return tuple(states)


@dataclass(frozen=True)
class Fact:
    """What was learned from some files.

    Attributes:
        settings: hash of all that decided the value beside the files.
        files: states of the files before they were read.
        value: what was learned, as JSON can hold it.
        noted_ns: time of `files`, in nanoseconds since 1970.
    """

    settings: str
    files: tuple[FileState, ...]
    value: Any
    noted_ns: int = field(default_factory=time.time_ns)

    def holds_for(self, files: tuple[FileState, ...] | None) -> bool:
        """Return whether the files are unchanged; a file that was new when the fact was noted does not count as such.

        Args:
            files: the states of the files now; None is never unchanged.
        """
        return files == self.files and all(file.mtime_ns < self.noted_ns - SETTLED_NS for file in self.files)


class FactStore:
    """Facts by key, in memory and in one SQLite file.

    The file is a convenience: a damaged or foreign file is put aside, and where the file cannot be read or written,
    everything is learned again. Several processes can use one file at the same time. Use the store as a context
    manager, or call `save` at the end.

    Args:
        path: the SQLite file; None keeps the facts in memory only. The first facts create file and folder.
        trust: whether facts of earlier calls count; False learns all facts again, and stores them.
    """

    def __init__(self, path: Path | None, *, trust: bool = True) -> None:
        self.path = path
        self._known: dict[str, Fact] = {}
        self._new: dict[str, Fact] = {}
        self._saved = time.monotonic()
        if path is not None and path.exists():
            known = self._load(path)
            self._known = known if trust else {}

    def __enter__(self) -> FactStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def find(self, key: str, settings: str) -> Fact | None:
        """Return the fact with this key, if the same settings led to it."""
        fact = self._known.get(key)
        return fact if fact is not None and fact.settings == settings else None

    def put(self, key: str, fact: Fact) -> None:
        """Note a fact; facts reach the disk in batches."""
        self._known[key] = self._new[key] = fact
        if len(self._new) >= BATCH_ROWS or time.monotonic() - self._saved > BATCH_S:
            self.save()

    def save(self) -> None:
        """Write all new facts in one transaction."""
        new, self._new, self._saved = self._new, {}, time.monotonic()
        if not new or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _connected(self.path) as database:
                _write(database, new)
        except (sqlite3.Error, OSError) as error:
            self._give_up(f"facts about the scans could not be stored ({error})")

    def _load(self, path: Path) -> dict[str, Fact]:
        """Return all facts of the file; without a usable file there are none."""
        try:
            with _connected(path) as database:
                owner, version = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in _HEADER)
                tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
                if owner == APPLICATION_ID and version == VERSION and "facts" in tables:
                    return dict(map(_fact_of_row, database.execute("SELECT * FROM facts")))
            if not tables:  # a kill came before the first facts
                return {}
            why = f"version {version}, not {VERSION}" if owner == APPLICATION_ID else "another program wrote the file"
        except (sqlite3.OperationalError, OSError) as error:
            self._give_up(f"stored facts about the scans cannot be used ({error})")
            return {}
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            why = str(error)
        self._put_aside(path, why)
        return {}

    def _put_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(f"{path.name}.unusable")
        log.warning("note: %s cannot be used (%s); it is now %s, and all scans are read again", path, why, aside.name)
        try:
            path.replace(aside)
            for ending in ("-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
        except OSError as error:
            self._give_up(f"the file cannot be moved ({error})")

    def _give_up(self, why: str) -> None:
        log.warning("note: %s: %s; a later call reads the scans again", self.path, why)
        self.path = None


_HEADER = ("application_id", "user_version")


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file; where its folder cannot be written to, without the files that SQLite puts beside it."""
    writable = os.access(path.parent, os.W_OK)
    name = path.absolute().as_uri() + ("" if writable else "?immutable=1")
    database = sqlite3.connect(name, timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=True)
    try:
        yield database
    finally:
        database.close()


def _write(database: sqlite3.Connection, facts: Mapping[str, Fact]) -> None:
    with contextlib.suppress(sqlite3.OperationalError):  # another process is using the file: its mode serves, too
        database.execute("PRAGMA journal_mode=WAL")
    database.execute("BEGIN IMMEDIATE")
    database.execute(f"PRAGMA application_id={APPLICATION_ID}")
    database.execute(f"PRAGMA user_version={VERSION}")
    columns = "key TEXT PRIMARY KEY, settings TEXT, noted_ns INTEGER, files TEXT, value TEXT"
    database.execute(f"CREATE TABLE IF NOT EXISTS facts ({columns}) WITHOUT ROWID")
    rows = (
        (key, fact.settings, fact.noted_ns, json.dumps(fact.files), json.dumps(fact.value))
        for key, fact in facts.items()
    )
    database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)
    database.execute("COMMIT")


def _fact_of_row(row: tuple[str, str, int, str, str]) -> tuple[str, Fact]:
    key, settings, noted_ns, files, value = row
    return key, Fact(
        settings, tuple(FileState(*state) for state in json.loads(files)), json.loads(value), int(noted_ns)
    )
