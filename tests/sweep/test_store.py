from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from nnssl.errors import EnvironmentProblem
from nnssl.names import STUDY_DB as DATABASE
from nnssl.sweep.store import Store, has_study
from nnssl.sweep.study import study_plans, study_runs
from tests.sweep.studies_for_tests import small_study


def test_jobs_come_back_as_they_were(tmp_path: Path) -> None:
    study = small_study(2, labelled=("10%", "all"), picks=2, settings=("optimizer=adamw",))
    jobs = [*study_plans(study), *study_runs(study)]
    with Store(tmp_path) as store:
        store.add(jobs)
    with Store(tmp_path) as store:
        tasks = store.tasks()
    assert [task.job for task in tasks] == jobs
    assert [task.number for task in tasks] == list(range(1, len(jobs) + 1))
    assert {task.state for task in tasks} == {"waiting"}


def test_a_job_is_added_once_and_keeps_its_state(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add(study_runs(small_study(2)))
        first, _ = store.tasks()
        changed = store.update(first, state="failed", message="why", seconds=1.5)
        store.add(study_runs(small_study(3)))
        assert len(store.tasks()) == 3
        assert store.tasks()[0] == changed
        assert (changed.state, changed.message, changed.seconds) == ("failed", "why", 1.5)


def test_changes_are_on_disk_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(study_runs(small_study(1)))
    store.update(store.tasks()[0], state="done")
    with Store(tmp_path) as other:  # the first connection is open, as after a kill
        assert other.tasks()[0].state == "done"


def test_what_is_no_study(tmp_path: Path) -> None:
    assert not has_study(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"no database at all, but long enough to be read as the head of one" * 20)
    with pytest.raises(EnvironmentProblem, match="cannot be read or written"):
        Store(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(EnvironmentProblem, match="another version"):
        Store(tmp_path)
