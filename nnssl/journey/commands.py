"""One ordinary command of a study: how it is written, run and waited for."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.errors import NnsslError
from nnssl.names import PREPROCESSED_VARIABLE, RAW_VARIABLE, RESULTS_VARIABLE
from nnssl.sweep.child import Child, python_command, stop_children
from nnssl.system.signals import on_signals

POLL_SECONDS = 0.1
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


@contextlib.contextmanager
def patient_signals() -> Any:  # noqa: ANN401 - a context manager without a value
    """Let SIGHUP and SIGUSR1 end the study like SIGTERM, for which every command has a handler."""
    import signal

    def pass_on(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with on_signals(pass_on, ("SIGHUP", "SIGUSR1")):
        yield


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
    """
    words = python_command(command.name, [*command.arguments, "--json"])
    child = Child.start(words, {**os.environ, **folders}, log)
    try:
        while child.process.poll() is None:
            child.measure()
            if limit_seconds is not None and child.seconds > limit_seconds:
                return None
            time.sleep(POLL_SECONDS)
    finally:
        stop_children([child], 2.0 if limit_seconds is not None else 60.0)
    if child.process.returncode:
        raise _failure(command, child)
    return Ended(json.loads(child.result.read_text(encoding="utf-8")), child.seconds, child.memory_bytes)


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


def mentioned_folders(folders: Mapping[str, str], names: Sequence[str] = VARIABLES) -> str:
    """Return the shell line that sets nnU-Net's variables."""
    return "export " + " ".join(f"{name}={shlex.quote(folders[name])}" for name in names)
