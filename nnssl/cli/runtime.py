"""Messages, exit codes and the log of unexpected errors, for every command."""

from __future__ import annotations

import argparse
import contextlib
import errno
import getpass
import json
import logging
import math
import numbers
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from nnssl.cli.help_groups import headings_of
from nnssl.errors import EnvironmentProblem, NnsslError, OutOfMemory, StoppedBySignal, UsageError, missing_package
from nnssl.system.resources import cpu_count
from nnssl.system.signals import on_signals
from nnssl.version import DISTRIBUTION, __version__

EPILOG = (
    "exit codes: 0 done, 1 unexpected error, 2 usage, 3 data set, 4 environment, paths or device, "
    "5 out of memory, 75 stopped by a signal (continue with --c), 130 Ctrl-C"
)
NUMBERS = ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc")  # nnU-Net reads these with int(), some at import
SYSTEM_ERRORS = (
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ESTALE,
)  # fmt: skip
_waiting: ContextVar[list[str] | None] = ContextVar("results that wait for the end of the command", default=None)
ALLOCATOR = "DefaultCPUAllocator"  # torch names this allocator when the host runs out of memory


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all other errors, also as JSON."""

    as_json = False
    grouped: Mapping[str, Callable[..., argparse.Action]] = MappingProxyType({})  # option -> what adds it to its group

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # noqa: ANN401
        add = self.grouped.get(names[0], super().add_argument) if names else super().add_argument
        return add(*names, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        _Parser.as_json = "--json" in (sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return the options that an unknown word stands for: `-f0` is `-f 0`, and an abbreviation is no option.

        Python 3.11 abbreviates options with one dash, whatever `allow_abbrev` says. `-folds` does not mean `-f olds`.
        """
        glued = option_string[:2] if not option_string[2:3].isalpha() else None
        return [found for found in super()._get_option_tuples(option_string) if found[1] == glued]

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_report(UsageError(message, run=f"{self.prog} --help"), self.as_json))


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that lists the exit codes below its help and takes no abbreviated options.

    Options that `nnssl.cli.help_groups` lists for the command stand under its headings.
    """
    arguments = _Parser(prog=command, description=description, epilog=EPILOG, allow_abbrev=False)
    headings = headings_of(command)
    groups = {heading: arguments.add_argument_group(heading) for heading in dict.fromkeys(headings.values())}
    arguments.grouped = {option: groups[heading].add_argument for option, heading in headings.items()}
    arguments.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    arguments.add_argument("--version", action="version", version=f"{DISTRIBUTION} {__version__}")
    return arguments


def print_json(content: Any) -> None:  # noqa: ANN401 - JSON is any nesting of plain values
    """Print a result as strict JSON: null stands for NaN and infinity, text for paths.

    Inside the body of a command with `--json` the result waits until the body has ended.
    """
    text, waiting = json.dumps(_strict(content), allow_nan=False), _waiting.get()
    if waiting is None:
        print(text)
    else:
        waiting.append(text)


@contextlib.contextmanager
def _only_json(as_json: bool) -> Iterator[list[str]]:
    """Keep everything but the result away from standard output, and yield the list in which `print_json` puts it.

    Inside the block standard output leads to standard error, for libraries in C and for child processes, too.
    """
    if not as_json:
        yield []
        return
    results: list[str] = []
    token = _waiting.set(results)
    try:
        with contextlib.redirect_stdout(sys.stderr), _stdout_to_stderr():
            yield results
    finally:
        _waiting.reset(token)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Let file descriptor 1 be that of standard error inside the block; a closed descriptor stays as it is."""
    try:
        saved = os.dup(1)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _strict(value: Any) -> Any:  # noqa: ANN401
    """Return nested plain values for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def run(
    arguments_parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, run `body`, and turn every ending into an exit code and one message."""
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count()))  # libraries read it at import; a user's value stays
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # waiting threads leave the core to the data workers
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions; argcomplete writes them and ends the command
        with contextlib.suppress(ModuleNotFoundError):
            import_module("argcomplete").autocomplete(arguments_parser)
    arguments = arguments_parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with on_signals(_stop, ("SIGTERM",)):
            with _only_json(arguments.json) as results:
                _check_numbers()
                body(arguments)
            sys.stdout.writelines(f"{text}\n" for text in results)
            sys.stdout.flush()
    except NnsslError as error:
        return _report(error, arguments.json)
    except KeyboardInterrupt:
        return _interrupted(arguments.json)
    except BrokenPipeError:  # a reader such as `head` has read enough
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


def _stop(*_: object) -> None:
    """End the command like an error, so that no half-written file stays; training has its own handler."""
    raise StoppedBySignal("stopped by a signal", why="SIGTERM", run="the same command again")


def _report(error: NnsslError, as_json: bool) -> int:
    if not _printed(json.dumps(error.as_dict()) + "\n" if as_json else "") or not as_json:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _interrupted(as_json: bool) -> int:
    if as_json:
        print_json({"error": "stopped by Ctrl-C", "exit_code": 130})
    else:
        print("stopped by Ctrl-C", file=sys.stderr)
    return 130


def _unexpected(error: Exception, command: str, as_json: bool) -> int:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or ALLOCATOR in str(error):
        problem: NnsslError = OutOfMemory(
            "out of memory",
            why=str(error).splitlines()[0] if str(error) else "",
            run="plan again with a smaller -gpu_memory_target, or -hardware cpu",
        )
        return _report(problem, as_json)
    missing = missing_package(error, command) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None:
        return _report(missing, as_json)
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        return _report(_system_error(error), as_json)
    where = ""
    with contextlib.suppress(OSError, KeyError):
        log = Path(tempfile.gettempdir()) / f"{command}_{getpass.getuser()}.log"  # the last error of each user
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"traceback in {log}"
    return _report(NnsslError(f"unexpected {type(error).__name__}: {error}", where=where), as_json)


def _printed(text: str) -> bool:
    """Write to standard output and return True; if that fails, close it, so that Python ends without a message."""
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


def refuse_options(arguments: argparse.Namespace, what: str, options: Mapping[str, str]) -> None:
    """Refuse options that mean nothing beside others.

    Args:
        arguments: of the command.
        what: what is done without these options, for the message.
        options: option -> its name in `arguments`.

    Raises:
        UsageError: one of the options was given.
    """
    for option, name in options.items():
        if getattr(arguments, name) not in (None, False):
            raise UsageError(f"{what} without {option}", run="leave it out")
