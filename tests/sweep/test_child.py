from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnssl.sweep import child as child_module
from nnssl.sweep.child import Child, group_memory_bytes, python_command, stop_children

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def start(code: str, tmp_path: Path) -> Child:
    return Child.start([sys.executable, "-c", code], os.environ, tmp_path / "logs" / "1.log")


def wait(child: Child) -> Child:
    child.process.wait(30)
    return child


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import json; print(json.dumps({'error': 'broken', 'where': 'a', 'why': '', 'run': 'b'})); exit(3)",
         "broken\nwhere: a\nrun: b"),
        ("import sys; sys.exit('no JSON at all')", "exit code 1: no JSON at all"),
        ("exit(7)", "exit code 7: no message"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (often: too little memory)"),
        ("import os; os.kill(os.getpid(), 15)", "killed by signal 15"),
    ],
)  # fmt: skip
def test_message_of_a_failure(code: str, message: str, tmp_path: Path) -> None:
    assert wait(start(code, tmp_path)).message() == message


def test_the_log_grows_and_the_result_is_the_last_one(tmp_path: Path) -> None:
    for number in range(2):
        wait(start(f"import sys; print('out {number}'); print('log {number}', file=sys.stderr)", tmp_path))
    assert (tmp_path / "logs" / "1.log").read_text() == "log 0\nlog 1\n"
    assert (tmp_path / "logs" / "1.json").read_text() == "out 1\n"


def test_a_command_stands_in_a_group_of_its_own(tmp_path: Path) -> None:
    child = wait(start("import os; print(os.getpgrp(), os.getsid(0), os.getpid())", tmp_path))
    assert child.result.read_text().split() == [str(child.process.pid)] * 3


def test_stopping_waits_for_what_saves_and_kills_what_does_not(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); open({!r}, 'w').close(); time.sleep(60)"
    saving = (
        "import signal, sys, time, pathlib\n"
        "def save(*_): time.sleep(0.5); pathlib.Path({!r}).touch(); sys.exit(75)\n"
        "signal.signal(15, save); open({!r}, 'w').close(); time.sleep(60)"
    )
    files = [tmp_path / name for name in ("deaf", "saved", "ready")]
    children = [
        start(deaf.format(str(files[0])), tmp_path / "a"),
        start(saving.format(*map(str, files[1:])), tmp_path / "b"),
    ]
    while not (files[0].exists() and files[2].exists()):
        time.sleep(0.02)
    stop_children(children, grace_seconds=3.0)
    assert [child.process.returncode for child in children] == [-signal.SIGKILL, 75]
    assert files[1].exists()


@LINUX
def test_a_killed_parent_takes_its_command_along(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, pathlib\n"
        "from nnssl.sweep.child import Child\n"
        "child = Child.start([sys.executable, '-c', 'import time; time.sleep(60)'], os.environ, pathlib.Path({!r}))\n"
        "print(child.process.pid, flush=True); time.sleep(60)"
    ).format(str(tmp_path / "1.log"))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the command of a killed parent still runs")


@LINUX
def test_memory_of_a_group_counts_shared_pages_once(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "block = bytearray(os.urandom(60_000_000))\n"
        "child = os.fork()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    child = start(code, tmp_path)
    while child.result.read_text().count("ready") < 2:
        time.sleep(0.02)
    assert 60e6 < child.measure() < 110e6
    assert child.memory_bytes == pytest.approx(group_memory_bytes(child.process.pid), rel=0.1)
    stop_children([child], 5.0)
    assert group_memory_bytes(child.process.pid) == 0
    assert child.memory_bytes > 60e6


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child_module, "PROCESSES", tmp_path)
    assert group_memory_bytes(1) == 0


def test_a_command_runs_with_this_python() -> None:
    found = subprocess.run(python_command("methods", ["--json"]), capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)[0].keys() >= {"name", "class"}
