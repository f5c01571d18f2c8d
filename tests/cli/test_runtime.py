from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from nnssl.cli.runtime import parser, print_json, run
from nnssl.errors import DataError


def run_body(body: Callable[[], object], *options: str) -> int:
    return run(parser("nnssl_test", "A command."), lambda _: body() and None, list(options))


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("no scans", where="here"), 3, ("no scans", "here")),
        (MemoryError("no room"), 5, ("out of memory", "no room", "-hardware cpu")),
        (OSError(errno.ENOSPC, "No space left", "/file"), 4, ("/file", "No space left")),
        (OSError(errno.ECHILD, "no child"), 1, ("unexpected",)),
        (KeyboardInterrupt(), 130, ("stopped by Ctrl-C",)),
    ],
)
def test_every_ending_is_one_message_in_both_forms(
    error: BaseException, code: int, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_body(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(word in captured.err for word in words)
    assert run_body(raising(error), "--json") == code
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert (printed["exit_code"], captured.err) == (code, "")
    assert all(word in "\n".join(map(str, printed.values())) for word in words)


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_body(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_an_unexpected_error_leaves_its_traceback_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert run_body(raising(ZeroDivisionError("by zero"))) == 1
    (log,) = tmp_path.glob("nnssl_test_*.log")
    assert "ZeroDivisionError: by zero" in log.read_text()
    assert str(log) in capsys.readouterr().err


def test_sigterm_ends_the_command_and_its_handler_goes(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run_body(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 75
    assert "the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"])
def test_variables_that_must_be_numbers(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "many")
    assert run_body(raising(AssertionError("the body ran"))) == 4
    assert f"{variable}=many" in capsys.readouterr().err


def test_threads_are_one_a_cpu_unless_the_user_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl.cli.runtime.cpu_count", lambda: 7)
    seen: list[str] = []
    for value, expected in ((None, "7"), ("3", "3")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if value:
            monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert run_body(lambda: seen.append(os.environ["OMP_NUM_THREADS"])) == 0
        assert seen.pop() == expected


def test_a_wrong_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    command = parser("nnssl_test", "A command.")
    for options in (["--wrong"], ["--wrong", "--json"], ["--js"]):
        with pytest.raises(SystemExit) as caught:
            run(command, lambda _: None, options)
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert "nnssl_test --help" in (captured.out if "--json" in options else captured.err)


def test_the_help_names_the_exit_codes() -> None:
    command = parser("nnssl_test", "A command.")
    assert isinstance(command, argparse.ArgumentParser)
    assert "75 stopped by a signal" in " ".join(command.format_help().split())


TALK = """
import os, subprocess, sys
from nnssl.cli.runtime import parser, print_json, run
def body(_):
    print("python")
    os.system("echo shell")
    print_json({"result": float("nan")})
    os.write(1, b"library\\n")
    if "fail" in sys.argv:
        raise KeyboardInterrupt
sys.exit(run(parser("nnssl_test", "A command."), body, ["--json"]))
"""


def test_with_json_nothing_else_reaches_standard_output() -> None:
    done = subprocess.run([sys.executable, "-c", TALK], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"result": None})
    assert {"python", "shell", "library"} <= set(done.stderr.split())


def test_an_interrupted_command_prints_its_error_only() -> None:
    done = subprocess.run([sys.executable, "-c", TALK, "fail"], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (130, 130)


def test_with_json_a_closed_standard_output_is_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", f"import os; os.close(1)\n{TALK}"], stderr=-1, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_without_json_the_output_stays_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_body(lambda: sys.stdout.write("words\n")) == 0
    assert capsys.readouterr() == ("words\n", "")
    print_json({"outside": 1})
    assert json.loads(capsys.readouterr().out) == {"outside": 1}


COMMANDS = (
    "convert",
    "plan_and_preprocess",
    "train",
    "predict",
    "pseudo_label",
    "evaluate",
    "compare",
    "report",
    "look",
    "runs",
    "methods",
    "phantom",
)


def parsers_of(command: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of a command and those of its sub-commands, without required options."""
    top = import_module(f"nnssl.cli.{command}").make_parser()
    found = {command: top}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    for each in found.values():
        for action in each._actions:
            action.required = False
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_can_be_abbreviated(command: str) -> None:
    for name, made in parsers_of(command).items():
        options = [option for action in made._actions for option in action.option_strings]
        short = {option[:length] for option in options for length in range(2, len(option))} - {*options, "--"}
        assert short
        for word in sorted(short):
            _, unknown = made.parse_known_args([word])
            assert unknown == [word], f"{name} {word}"


def test_a_number_may_follow_an_option_of_one_letter_and_a_word_may_not() -> None:
    made = import_module("nnssl.cli.runs").make_parser()
    assert made.parse_args(["-d27", "-f0"]).dataset == "27"
    assert made.parse_args(["-f=0"]).fold == "0"
    with pytest.raises(SystemExit) as caught:
        made.parse_args(["-folds", "0"])
    assert caught.value.code == 2
