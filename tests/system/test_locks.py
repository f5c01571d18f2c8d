from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from nnssl.errors import EnvironmentProblem
from nnssl.system.locks import hold_lock, is_held


def test_a_second_process_is_kept_away_until_the_first_has_ended(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with hold_lock(file, "another process works here", where=tmp_path, run="wait"):
        with pytest.raises(EnvironmentProblem) as caught:  # noqa: SIM117 - the inner lock is refused
            with hold_lock(file, "another process works here", where=tmp_path, run="wait"):
                pytest.fail("both hold the lock")
        assert (caught.value.what, caught.value.where, caught.value.run) == (
            "another process works here", str(tmp_path), "wait",
        )  # fmt: skip
        assert file.exists()
    assert not file.exists()
    with hold_lock(file, "another process works here", where=tmp_path, run="wait"):
        pass


def test_the_lock_goes_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), hold_lock(tmp_path / ".lock", "", where=tmp_path, run=""):
        raise ValueError("inside")
    assert list(tmp_path.iterdir()) == []


def test_without_locks_no_process_is_kept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with hold_lock(tmp_path / ".lock", "", where=tmp_path, run=""):
        pass


def test_a_process_can_wait_for_the_lock(tmp_path: Path) -> None:
    file, taken, release = tmp_path / ".lock", threading.Event(), threading.Event()

    def hold() -> None:
        with hold_lock(file, "", where=tmp_path, run=""):
            taken.set()
            release.wait(30)
            time.sleep(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(30)
    assert is_held(file)
    release.set()
    with hold_lock(file, "busy", where=tmp_path, run="", wait_s=30):
        assert is_held(file)
    holder.join()
    assert not is_held(file)


def test_a_lock_that_nobody_holds_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".lock"
    assert not is_held(file)
    assert not file.exists()
    file.touch()
    assert not is_held(file)
    assert file.exists()

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    assert not is_held(file)
