from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnssl.errors import StoppedBySignal
from nnssl.journey import commands as module
from nnssl.journey.commands import Command, StepFailed, folders_of, run_command


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let every command run this Python text."""
    import sys

    monkeypatch.setattr(module, "python_command", lambda name, words: [sys.executable, "-c", text, name, *words])


def test_a_command_is_written_as_it_is_typed() -> None:
    assert str(Command("predict", ("-i", "my scans", "-o", "x"))) == "nnssl_predict -i 'my scans' -o x"


def test_the_result_is_the_json_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['nnUNet_raw']]))")
    ended = run_command(Command("train", ("1", "2d")), folders_of(Path("/s"), {"nnUNet_raw": "/r"}), tmp_path / "a.log")
    assert ended is not None
    assert ended.result == [["train", "1", "2d", "--json"], "/r"]


def test_folders_of_the_study_stand_in_for_unset_variables() -> None:
    assert folders_of(Path("/s"), {"nnUNet_results": "/r", "nnUNet_raw": ""}) == {
        "nnUNet_raw": "/s/nnUNet_raw", "nnUNet_preprocessed": "/s/nnUNet_preprocessed", "nnUNet_results": "/r",
    }  # fmt: skip


def test_the_error_of_a_command_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"error": "bad", "where": "w", "why": "y", "run": "r", "exit_code": 4}
    script(monkeypatch, f"import json; print(json.dumps({error})); raise SystemExit(4)")
    with pytest.raises(StepFailed) as caught:
        run_command(Command("train", ()), {}, tmp_path / "a.log")
    assert caught.value.as_dict() == error
    script(monkeypatch, "raise SystemExit('the end of the log')")
    with pytest.raises(StepFailed, match="the end of the log") as caught:
        run_command(Command("train", ()), {}, tmp_path / "b.log")
    assert (caught.value.exit_code, caught.value.where) == (1, "nnssl_train")


def test_a_command_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "import os, pathlib, sys, time; pathlib.Path(sys.argv[2]).write_text(str(os.getpid()));"
           "time.sleep(60)")  # fmt: skip
    file = tmp_path / "pid"
    assert run_command(Command("train", (str(file),)), {}, tmp_path / "a.log", 1.5) is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


@pytest.fixture
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell lets processes in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_is_heard")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_stop_the_command_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    script(monkeypatch, "import os, pathlib, sys, time; pathlib.Path(sys.argv[2]).write_text(str(os.getpid()));"
           "time.sleep(60)")  # fmt: skip
    file = tmp_path / "pid"

    def send() -> None:
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, number))

    threading.Thread(target=send, daemon=True).start()
    expected = KeyboardInterrupt if number == "SIGINT" else StoppedBySignal
    with pytest.raises(expected):
        run_command(Command("train", (str(file),)), {}, tmp_path / "a.log")
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
