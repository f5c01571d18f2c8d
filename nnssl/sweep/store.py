"""`study.db`: the runs of a study and their states, in a small SQLite file that a kill at any time leaves whole."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nnssl.data.splits import LabelBudget
from nnssl.errors import EnvironmentProblem
from nnssl.names import STUDY_DB as DATABASE
from nnssl.sweep.study import StudyPlan, StudyRun
from nnssl.training.record import now
from nnssl.training.settings import RunSettings

VERSION = 1
TaskState = Literal["waiting", "running", "stopped", "failed", "done"]
STATES: tuple[TaskState, ...] = ("done", "running", "stopped", "failed", "waiting")
TABLE = """
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY, command TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, content TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', message TEXT NOT NULL DEFAULT '', folder TEXT NOT NULL DEFAULT '',
    starts INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, memory_bytes INTEGER NOT NULL DEFAULT 0,
    changed TEXT NOT NULL DEFAULT '')
"""
COLUMNS = "number, kind, content, state, message, folder, starts, seconds, memory_bytes"


@dataclass(frozen=True)
class Task:
    """One run, or one planning, of a study and where it stands.

    Attributes:
        number: from 1, in the order in which the tasks begin.
        job: what to do.
        state: `waiting`, `running`, `stopped` (it goes on with the next call), `failed` or `done`.
        message: why it failed or stopped.
        folder: of the fold; empty before the run began.
        starts: how often it was started.
        seconds: time that its processes ran, in this study.
        memory_bytes: largest resident memory of its processes together, 0 where none was measured.
    """

    number: int
    job: StudyRun | StudyPlan
    state: TaskState = "waiting"
    message: str = ""
    folder: str = ""
    starts: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0

    @property
    def command(self) -> str:
        """The command line of the job."""
        return self.job.command


class Store:
    """The tasks of the study in a folder; every change is on disk when the call returns."""

    def __init__(self, folder: Path) -> None:
        """Open the database, and make it where there is none.

        Raises:
            EnvironmentProblem: the file is no database of a study, or cannot be written.
        """
        self.file = folder / DATABASE
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.file, timeout=30.0)
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise EnvironmentProblem("another version of nnssl wrote this study", where=self.file)
            with self._database:
                self._database.execute(TABLE)
                self._database.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, jobs: Iterable[StudyRun | StudyPlan]) -> None:
        """Add the jobs that the study does not have yet, as waiting tasks."""
        rows = [(job.command, type(job).__name__, json.dumps(asdict(job)), now()) for job in jobs]
        with self._errors(), self._database:
            self._database.executemany(
                "INSERT OR IGNORE INTO tasks (command, kind, content, changed) VALUES (?, ?, ?, ?)", rows
            )

    def tasks(self) -> list[Task]:
        """Return all tasks in their order."""
        with self._errors():
            rows = self._database.execute(f"SELECT {COLUMNS} FROM tasks ORDER BY number").fetchall()
        return [Task(number, _job(kind, content), *others) for number, kind, content, *others in rows]

    def update(self, task: Task, **changes: Any) -> Task:  # noqa: ANN401 - attributes of the task
        """Write changed attributes of a task and return the task with them."""
        words = ", ".join(f"{name} = ?" for name in changes)
        with self._errors(), self._database:
            self._database.execute(
                f"UPDATE tasks SET {words}, changed = ? WHERE number = ?", (*changes.values(), now(), task.number)
            )
        return replace(task, **changes)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise EnvironmentProblem(
                "the states of the study cannot be read or written",
                where=self.file,
                why=str(error),
                run="free space or choose another folder with -o",
            ) from error


def has_study(folder: Path) -> bool:
    """Return whether a folder holds a study."""
    return (folder / DATABASE).is_file()


def _job(kind: str, text: str) -> StudyRun | StudyPlan:
    content = json.loads(text)
    if kind == StudyRun.__name__:
        return StudyRun(**{**content, "settings": RunSettings(**content["settings"])})
    budget = LabelBudget(**content["budget"]) if content["budget"] else None
    return StudyPlan(**{**content, "configurations": tuple(content["configurations"]), "budget": budget})
