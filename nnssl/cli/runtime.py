"""What every command shares: messages, exit codes, the log of an unexpected error."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from nnssl.errors import EnvironmentProblem, NnsslError, OutOfMemory, StoppedBySignal, UsageError

EPILOG = (
    "exit codes: 0 done, 1 unexpected error, 2 usage, 3 data set, 4 environment, paths or device, "
    "5 out of memory, 75 stopped by a signal (continue with --c), 130 Ctrl-C"
)
NUMBERS = ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc")  # read with int(), by nnU-Net at import even
SYSTEM_ERRORS = (
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ESTALE,
)  # fmt: skip
ALLOCATOR = "DefaultCPUAllocator"  # torch names it where the host's memory is at its end


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others, as JSON too."""

    as_json = False

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        _Parser.as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_report(UsageError(message, run=f"{self.prog} --help"), self.as_json))


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the exit codes below its help and without abbreviated options."""
    made = _Parser(prog=command, description=description, epilog=EPILOG, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    return made


def run(
    arguments_parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, run `body`, and turn every way it can end into an exit code and one message."""
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read at import; a user's value stands
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait give the core to the data workers
    arguments = arguments_parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with _ended_by_sigterm():
            _check_numbers()
            body(arguments)
            sys.stdout.flush()
    except NnsslError as error:
        return _report(error, arguments.json)
    except KeyboardInterrupt:
        return _interrupted(arguments.json)
    except BrokenPipeError:  # `| head` has read enough
        _printed("")
    except Exception as error:
        return _unexpected(error, arguments_parser.prog, arguments.json)
    return 0


def _check_numbers() -> None:
    for variable in NUMBERS:
        value = os.environ.get(variable, "1")
        if not value.strip().isdecimal():
            raise EnvironmentProblem(
                f"the environment variable {variable} is not a whole number",
                where=f"{variable}={value}",
                run=f"unset {variable}, or export {variable}=1",
            )


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as an error does, so that nothing half-written stays (training saves itself)."""

    def stop(*_: object) -> None:
        raise StoppedBySignal("stopped by a signal", why="SIGTERM", run="the same command again")

    before = None
    with contextlib.suppress(ValueError):  # outside of the main thread signals are not ours to handle
        before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _report(error: NnsslError, as_json: bool) -> int:
    if not _printed(json.dumps(error.as_dict()) + "\n" if as_json else "") or not as_json:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _interrupted(as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": "stopped by Ctrl-C", "exit_code": 130}))
    else:
        print("stopped by Ctrl-C", file=sys.stderr)
    return 130


def _unexpected(error: Exception, command: str, as_json: bool) -> int:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or ALLOCATOR in str(error):
        problem: NnsslError = OutOfMemory(
            "out of memory",
            why=str(error).splitlines()[0] if str(error) else "",
            run="plan again with a smaller -gpu_memory_target, or -budget cpu",
        )
        return _report(problem, as_json)
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        return _report(_system_error(error), as_json)
    log = Path(tempfile.gettempdir()) / f"{command}_{os.getpid()}.log"
    where = ""
    with contextlib.suppress(OSError):
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"traceback in {log}"
    return _report(NnsslError(f"unexpected {type(error).__name__}: {error}", where=where), as_json)


def _printed(text: str) -> bool:
    """Return whether standard output takes the text; if not, it is closed, so that Python can end without a message."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _system_error(error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        "a file cannot be read or written",
        where=error.filename or "",
        why=str(error.strerror),
        run="check space and permissions, then run the same command again",
    )
