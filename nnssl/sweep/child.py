"""One command of a study in a process of its own: its log, its memory, its end, and how to stop it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 120.0  # a training saves its state within this time after SIGTERM
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux
COMMAND = "import sys; from nnssl_commands import {}; sys.exit({}())"
PROCESSES = Path("/proc")


def python_command(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the words that run `nnssl_NAME` with this Python.

    Args:
        name: of the command without its prefix, `train` for example.
        arguments: of the command.
    """
    return [sys.executable, "-c", COMMAND.format(name, name), *arguments]


@dataclass
class Child:
    """A running command.

    Attributes:
        process: leader of a session and process group of its own.
        log: file with what it prints to standard error.
        result: file with what it prints to standard output, as JSON.
        began: time of its start, of the monotonic clock.
        memory_bytes: largest resident memory of the group that was seen.
    """

    process: subprocess.Popen[bytes]
    log: Path
    result: Path
    began: float
    memory_bytes: int = 0

    @classmethod
    def start(cls, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Start a command in a new session; if this process is killed, the command gets SIGTERM (on Linux).

        Args:
            words: of the command line.
            environment: all variables of the command.
            log: file that its standard error is appended to; the standard output goes into `log` with the ending json.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        result = log.with_suffix(".json")
        with log.open("ab") as errors, result.open("wb") as output:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        return cls(process, log, result, time.monotonic())

    @property
    def seconds(self) -> float:
        """Time since its start."""
        return time.monotonic() - self.began

    def measure(self) -> int:
        """Return the resident memory of its process group in bytes, 0 where the system does not say."""
        now = group_memory_bytes(self.process.pid)
        self.memory_bytes = max(self.memory_bytes, now)
        return now

    def message(self) -> str:
        """Return why the command failed: its own message, else the end of its log."""
        code = self.process.returncode
        with contextlib.suppress(OSError, ValueError, AttributeError):
            error = json.loads(self.result.read_text(encoding="utf-8"))
            parts = [error.get("error"), *(f"{key}: {error[key]}" for key in ("where", "why", "run") if error.get(key))]
            if parts[0]:
                return "\n".join(map(str, parts))
        if code is not None and code < 0:
            return f"killed by signal {-code}" + (" (often: too little memory)" if code == -signal.SIGKILL else "")
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self.log.exists() else []
        return f"exit code {code}: {lines[-1] if lines else 'no message'}"


def stop_children(children: Iterable[Child], grace_seconds: float = GRACE_SECONDS) -> None:
    """Stop commands and all that they started: SIGTERM to each group, wait, SIGKILL to what is left.

    A second SIGTERM or Ctrl-C meanwhile ends the waiting.

    Args:
        children: to stop.
        grace_seconds: how long to wait; a training saves its state in this time.
    """
    listed = list(children)
    deadline = [time.monotonic() + grace_seconds]
    earlier = {}

    def hurry(*_: object) -> None:
        deadline[0] = 0.0

    with contextlib.suppress(ValueError):  # raised outside the main thread
        earlier = {number: signal.signal(number, hurry) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for child in listed:
            _signal_group(child, signal.SIGTERM)
        while any(child.process.poll() is None for child in listed) and time.monotonic() < deadline[0]:
            time.sleep(0.05)
        for child in listed:
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _signal_group(child: Child, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


def group_memory_bytes(group: int) -> int:
    """Return the proportional resident memory of a process group in bytes, 0 where the system does not say.

    Pages that processes share, as forked data workers do, count once in all (`Pss` of Linux).
    """
    total = 0
    for folder in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += _proportional_bytes(folder)
    return total


def _proportional_bytes(process: Path) -> int:
    for line in (process / "smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a new process runs first: it asks for SIGTERM at the end of its parent."""
    library = ctypes.CDLL(None)

    def ask() -> None:
        library.prctl(PARENT_DEATH, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the request
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
