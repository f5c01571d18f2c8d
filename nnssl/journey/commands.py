"""One ordinary command of a study: how it is written, run and waited for."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.errors import NnsslError, StoppedBySignal
from nnssl.names import PREPROCESSED_VARIABLE, RAW_VARIABLE, RESULTS_VARIABLE
from nnssl.sweep.child import GRACE_SECONDS, Child, python_command, stop_children
from nnssl.sweep.queue import STOPPING
from nnssl.system.signals import on_signals

POLL_SECONDS = 0.1
MEMORY_SECONDS = 1.0  # between two looks at the memory: each reads the files of every process
SIGNALS = (*STOPPING, "SIGINT")
VARIABLES = (RAW_VARIABLE, PREPROCESSED_VARIABLE, RESULTS_VARIABLE)


class StepFailed(NnsslError):
    """A command of the study ended with an error; the exit code is that of the command."""

    def __init__(self, what: str, *, where: object = "", why: str = "", run: str = "", exit_code: int = 1) -> None:
        super().__init__(what, where=where, why=why, run=run)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Command:
    """An `nnssl_*` command line.

    Attributes:
        name: without the prefix, `train` for example.
        arguments: the words after the name.
    """

    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join([f"nnssl_{self.name}", *self.arguments])


@dataclass(frozen=True)
class Ended:
    """What a command left.

    Attributes:
        result: what it printed as JSON.
        seconds: its time.
        memory_bytes: largest resident memory that was seen, 0 where the system does not say.
    """

    result: Any
    seconds: float
    memory_bytes: int


def folders_of(study: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return nnU-Net's three folders: those of the environment, else folders in that of the study."""
    return {name: environment.get(name) or str(study / name) for name in VARIABLES}


def run_command(
    command: Command, folders: Mapping[str, str], log: Path, limit_seconds: float | None = None
) -> Ended | None:
    """Run a command in a process of its own and wait for its end; Ctrl-C and SIGTERM stop it first.

    Args:
        command: the command.
        folders: nnU-Net's variables.
        log: file that its messages are appended to.
        limit_seconds: stop the command after this time.

    Returns:
        What the command left; None where the time was up.

    Raises:
        StepFailed: the command ended with an error.
        StoppedBySignal: SIGTERM, SIGHUP or SIGUSR1.
        KeyboardInterrupt: Ctrl-C.
    """
    words = python_command(command.name, [*command.arguments, "--json"])
    seen: list[int] = []  # an exception out of a handler could fall into the start of the process
    with on_signals(lambda number, _: seen.append(number), SIGNALS):
        child = Child.start(words, {**os.environ, **folders}, log)
        is_late, next_look = False, 0.0
        try:
            while child.process.poll() is None and not seen and not is_late:
                if child.seconds >= next_look:
                    child.measure()
                    next_look = child.seconds + MEMORY_SECONDS
                is_late = limit_seconds is not None and child.seconds > limit_seconds
                time.sleep(POLL_SECONDS)
        finally:
            _end(child, GRACE_SECONDS if limit_seconds is None else 2.0)
    if signal.SIGINT in seen:
        raise KeyboardInterrupt
    if seen:
        raise StoppedBySignal("the study was stopped by a signal", run="the same command goes on")
    if is_late:
        return None
    if child.process.returncode:
        raise _failure(command, child)
    return Ended(json.loads(child.result.read_text(encoding="utf-8")), child.seconds, child.memory_bytes)


def _end(child: Child, grace_seconds: float) -> None:
    """Stop a command that still runs, and what an ended command has left in its process group."""
    if child.process.poll() is None:
        stop_children([child], grace_seconds)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)


def _failure(command: Command, child: Child) -> StepFailed:
    """Return the error of a command: its own message, or the end of its log."""
    code = child.process.returncode
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):
        error = json.loads(child.result.read_text(encoding="utf-8"))
        details = {name: error.get(name, "") for name in ("where", "why", "run")}
        return StepFailed(error["error"], **details, exit_code=error["exit_code"])
    again = "the same nnssl_run command goes on"
    return StepFailed(child.message(), where=str(command), why=f"log: {child.log}", run=again,
                      exit_code=code if code > 0 else 1)  # fmt: skip


def export_line(folders: Mapping[str, str]) -> str:
    """Return the shell line that sets nnU-Net's variables."""
    return "export " + " ".join(f"{name}={shlex.quote(folder)}" for name, folder in folders.items())
