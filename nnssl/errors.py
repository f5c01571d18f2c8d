"""Errors with an exit code and a message that says what is wrong, where, why, and what to run next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NnsslError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: what is wrong, in one line.
        where: file, case or option.
        why: why this is a problem, in one or more lines; where numbers differ, both values and the tolerance.
        run: the command or the change that repairs the problem.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", why: str = "", run: str = "") -> None:
        self.what, self.where, self.why, self.run = what, str(where), why, run
        super().__init__(what)

    def __str__(self) -> str:
        parts = (("where", self.where), ("why", self.why), ("run", self.run))
        lines = [f"  {name + ':':<7}" + text.replace("\n", "\n         ") for name, text in parts if text]
        return "\n".join([self.what, *lines])

    def as_dict(self) -> dict[str, str | int]:
        """Return the message as a JSON object."""
        return {"error": self.what, "where": self.where, "why": self.why, "run": self.run, "exit_code": self.exit_code}


class UsageError(NnsslError):
    """A wrong argument: exit code 2."""

    exit_code = 2


class DataError(NnsslError):
    """The data set breaks a rule: exit code 3."""

    exit_code = 3


class EnvironmentProblem(NnsslError):
    """A problem with paths, device, disk, checkpoint files or a lost worker process: exit code 4."""

    exit_code = 4


class OutOfMemory(NnsslError):
    """The device or the host has too little memory: exit code 5."""

    exit_code = 5


class StoppedBySignal(NnsslError):
    """A signal stopped the command; a training run saved its state and continues with --c: exit code 75."""

    exit_code = 75


class StoppedByUser(StoppedBySignal):
    """Ctrl-C ended the run after it saved its state, continue it with --c: exit code 130."""

    exit_code = 130


def unknown_name(kind: str, name: str, known: Iterable[str], *, option: str, otherwise: str = "") -> UsageError:
    """Return the error for a name that nnssl does not know: the message lists the names and proposes the closest one.

    Args:
        kind: what the name stands for, `trainer` for example.
        name: the unknown name.
        known: the names that exist.
        option: how a user gives the name, `-tr` for example.
        otherwise: what to run where no name is close.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return UsageError(
        f"unknown {kind} '{name}'",
        where=f"{option} {name}",
        why=f"known {kind}s: {', '.join(names)}",
        run=f"{option} {close[0]}" if close else otherwise,
    )


# Distributions whose name is not that of their package, and the extras of nnssl-semi that bring a package.
_DISTRIBUTIONS = {"skimage": "scikit-image", "yaml": "PyYAML", "PIL": "pillow", "sklearn": "scikit-learn"}
_EXTRAS = {"h5py": "h5", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "mamba_ssm": "mamba"}
_OWN = ("", "nnssl", "nnssl_trainers", "nnssl_commands")


def missing_package(error: ModuleNotFoundError, command: str) -> EnvironmentProblem | None:
    """Return the error for a Python package that is not installed, or None where one of our own modules is missing.

    Args:
        error: the error of the import.
        command: the command that needs the package.
    """
    package = (error.name or "").partition(".")[0]
    if package in _OWN:
        return None
    name = f"nnssl-semi[{_EXTRAS[package]}]" if package in _EXTRAS else _DISTRIBUTIONS.get(package, package)
    return EnvironmentProblem(
        f"{command} needs the Python package {package}, which is not installed",
        where=f"import {error.name}",
        run=f'python -m pip install "{name}"',
    )
