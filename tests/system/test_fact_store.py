from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from nnssl.system import fact_store
from nnssl.system.fact_store import BATCH_ROWS, SETTLED_NS, Fact, FactStore, states_of

LONG_AGO_NS = 1_600_000_000_123_456_789


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scan"
    path.write_bytes(b"voxels")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


def fact_about(file: Path, value: object = "learned") -> Fact:
    states = states_of([file])
    assert states is not None
    return Fact("settings", states, value)


def stored(path: Path, *facts: tuple[str, Fact]) -> None:
    with FactStore(path) as store:
        for key, fact in facts:
            store.put(key, fact)


def numbers(path: Path, start: int, stop: int) -> None:
    """Store facts one by one, as a command with many small batches does."""
    for number in range(start, stop):
        stored(path, (str(number), Fact("settings", (), number)))


def keys(path: Path, last: int) -> set[int]:
    return {number for number in range(last) if FactStore(path).find(str(number), "settings")}


def test_a_state_is_that_of_the_file_that_a_link_names(tmp_path: Path, file: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert states_of([file]) == ((str(file), 6, LONG_AGO_NS, file.stat().st_ino),)
    assert states_of([link]) == ((str(link), 6, LONG_AGO_NS, file.stat().st_ino),)
    assert states_of([file, tmp_path / "missing"]) is None


def test_a_fact_comes_back_and_holds_until_the_file_changes(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "folder/facts.sqlite"
    given = fact_about(file, {"numbers": [0.1, 1e300, float("inf")], "text": "ä"})
    stored(path, ("a", given))
    store = FactStore(path)
    found = store.find("a", "settings")
    assert found == given
    assert store.find("a", "other settings") is None
    assert store.find("b", "settings") is None
    assert found.holds_for(states_of([file]))
    os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS + 1))
    assert not found.holds_for(states_of([file]))
    file.unlink()
    assert not found.holds_for(states_of([file]))
    assert not list(path.parent.glob("facts.sqlite-*"))


def test_a_file_that_was_just_written_is_not_settled(file: Path) -> None:
    fact = fact_about(file)
    os.utime(file, ns=(LONG_AGO_NS, fact.noted_ns - SETTLED_NS))
    states = states_of([file]) or ()
    assert not Fact("settings", states, None, fact.noted_ns).holds_for(states)
    assert Fact("settings", states, None, fact.noted_ns + 1).holds_for(states)


def test_without_trust_nothing_is_known_and_new_facts_replace_old_ones(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "facts.sqlite"
    stored(path, ("a", fact_about(file, 1)), ("b", fact_about(file, 2)))
    with FactStore(path, trust=False) as store:
        assert store.find("a", "settings") is None
        store.put("a", fact_about(file, 3))
        assert store.find("a", "settings").value == 3
    assert [FactStore(path).find(key, "settings").value for key in "ab"] == [3, 2]


def test_a_kill_loses_the_last_batch_only(tmp_path: Path) -> None:
    path = tmp_path / "facts.sqlite"

    def killed() -> None:
        store = FactStore(path)
        for number in range(BATCH_ROWS + 10):
            store.put(str(number), Fact("settings", (), number))
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert keys(path, BATCH_ROWS + 10) == set(range(BATCH_ROWS))
    numbers(path, BATCH_ROWS, BATCH_ROWS + 10)
    assert keys(path, BATCH_ROWS + 10) == set(range(BATCH_ROWS + 10))


def test_two_processes_can_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "facts.sqlite"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=numbers, args=(path, start, start + 60)) for start in (0, 60, 30)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert keys(path, 120) == set(range(120))


def write_text(path: Path) -> None:
    path.write_text("no database " * 100)


def write_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE facts (key TEXT)")


def cut(path: Path) -> None:
    numbers(path, 0, 100)
    path.write_bytes(path.read_bytes()[:5000])


def without_table(path: Path) -> None:
    numbers(path, 0, 1)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE facts")
        database.execute("CREATE TABLE other (key TEXT)")


def with_a_bad_row(path: Path) -> None:
    numbers(path, 0, 1)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO facts VALUES ('bad', 'settings', 1, '[[1]]', '{')")


def of_another_version(path: Path) -> None:
    numbers(path, 0, 1)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")


@pytest.mark.parametrize("damage", [write_text, write_foreign, cut, without_table, with_a_bad_row, of_another_version])
def test_a_file_that_cannot_be_used_is_put_aside_with_a_note(
    tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "facts.sqlite"
    damage(path)
    content = path.read_bytes()
    assert FactStore(path).find("0", "settings") is None
    (note,) = caplog.messages
    assert str(path) in note
    assert "read again" in note
    assert (tmp_path / "facts.sqlite.unusable").read_bytes() == content
    numbers(path, 0, 3)
    assert keys(path, 4) == {0, 1, 2}
    assert len(caplog.messages) == 1


def test_a_file_that_a_kill_left_empty_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "facts.sqlite"
    path.touch()
    numbers(path, 0, 1)
    assert keys(path, 2) == {0}
    assert not caplog.messages


def test_a_copied_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "facts.sqlite"
    numbers(path, 0, 3)
    (tmp_path / "copy").mkdir()
    assert keys(Path(shutil.copy(path, tmp_path / "copy")), 4) == {0, 1, 2}


def test_a_locked_file_is_a_note_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fact_store, "BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "facts.sqlite"
    numbers(path, 0, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        numbers(path, 1, 2)
        database.execute("ROLLBACK")
    (note,) = caplog.messages
    assert "locked" in note
    assert keys(path, 3) == {0}


def test_a_folder_of_that_name_is_a_note_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "facts.sqlite"
    path.mkdir()
    numbers(path, 0, 1)
    assert "cannot be used" in caplog.text
    assert list(path.iterdir()) == []


def test_facts_reach_the_disk_after_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.sqlite"
    store = FactStore(path)
    store.put("0", Fact("settings", (), 0))
    assert not path.exists()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + fact_store.BATCH_S + 1)
    store.put("1", Fact("settings", (), 1))
    assert keys(path, 3) == {0, 1}


def test_without_a_path_facts_are_kept_in_memory(file: Path) -> None:
    with FactStore(None) as store:
        store.put("a", fact_about(file))
        assert store.find("a", "settings") is not None


def test_facts_in_a_folder_that_cannot_be_written_to_are_read(tmp_path: Path, file: Path, monkeypatch, caplog) -> None:
    folder = tmp_path / "some folder #1"
    stored(folder / "facts.sqlite", ("a", fact_about(file)))
    opened = []
    real = sqlite3.connect

    def connect(name: str, **options: object) -> sqlite3.Connection:
        opened.append(name)
        return real(name, **options)

    monkeypatch.setattr(sqlite3, "connect", connect)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder or not mode & os.W_OK)
    with FactStore(folder / "facts.sqlite") as store:
        assert store.find("a", "settings").value == "learned"
        assert not caplog.messages
        store.put("b", fact_about(file))
    assert opened[0].endswith("/some%20folder%20%231/facts.sqlite?immutable=1")  # needs no file beside it
    assert "could not be stored" in caplog.text
    assert {path.name for path in folder.iterdir()} == {"facts.sqlite"}
