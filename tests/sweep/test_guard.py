"""The guard of a command: exit codes go through, and nothing outlives the process that asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnssl.sweep import guard

GUARD = [sys.executable, "-m", "nnssl.sweep.guard"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(("text", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", -9), ("kill -15 $$", -15)])
def test_the_guard_ends_as_its_command(text: str, code: int) -> None:
    done = subprocess.run([*GUARD, str(os.getpid()), "sh", "-c", text], timeout=120, check=False)
    assert done.returncode == code


def runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; echo $$ > inner; sleep 60 & echo $! > sleeping; wait; wait"
    script = f"""
import os, subprocess
words = [*{GUARD!r}, str(os.getpid()), "sh", "-c", {stubborn!r}]
subprocess.Popen(words, start_new_session=True, cwd={str(tmp_path)!r})
input()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (tmp_path / "sleeping").is_file() or not (tmp_path / "sleeping").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    pids = [int((tmp_path / name).read_text()) for name in ("inner", "sleeping")]
    assert all(map(runs, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + guard.SAVE_SECONDS + 3
    while any(map(runs, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)
