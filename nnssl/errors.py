"""Errors with an exit code, and a message that says what, where, why and what to run next."""

from __future__ import annotations


class NnsslError(Exception):
    """Base of the errors that a user can act on.

    Args:
        what: one line, what is wrong.
        where: file, case or option.
        why: one line, or several, why that is a problem (both values and the tolerance where numbers differ).
        run: the command, or the change, that repairs it.
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
    """The data set is not what it must be: exit code 3."""

    exit_code = 3


class EnvironmentProblem(NnsslError):
    """Paths, device, disk, checkpoint files or a lost worker process: exit code 4."""

    exit_code = 4


class OutOfMemory(NnsslError):
    """Not enough memory on the device or the host: exit code 5."""

    exit_code = 5


class StoppedBySignal(NnsslError):
    """The run saved its state and stopped, continue it with --c: exit code 75."""

    exit_code = 75
