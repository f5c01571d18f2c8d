"""The entry points: every command tells its version, and names a package that is missing."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import nnssl_commands
from nnssl.errors import missing_package
from nnssl.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS: dict[str, str] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
    "scripts"
]
BLOCKED = """
import sys
import nnssl_commands
package, command, *sys.argv[1:] = sys.argv[1:]
sys.modules[package] = None  # the import system then says that there is no such module
try:
    code = getattr(nnssl_commands, command)()
except SystemExit as ended:
    code = ended.code
sys.exit(code)
"""


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_tells_its_version(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command, "--version"])
    with pytest.raises(SystemExit) as ended:
        getattr(nnssl_commands, SCRIPTS[command].partition(":")[2])()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"nnssl-semi {__version__}\n"


def blocked(package: str, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a Python that cannot import a package."""
    run = [sys.executable, "-c", BLOCKED, package, command, *words]
    return subprocess.run(run, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("package", "command", "words", "install"),
    [
        ("numpy", "phantom", ["-d", "901"], "numpy"),  # missing in the body of the command
        ("filelock", "predict", ["-i", "nowhere", "-o", "masks"], "filelock"),
    ],
)
def test_a_missing_package_is_named(
    package: str, command: str, words: list[str], install: str, as_json: bool, tmp_path: Path
) -> None:
    done = blocked(package, command, *words, *["--json"] * as_json)
    assert done.returncode == 4
    assert "Traceback" not in done.stdout + done.stderr
    message: dict[str, Any] = json.loads(done.stdout) if as_json else {"error": done.stderr, "run": done.stderr}
    assert f"nnssl_{command} needs the Python package {package}, which is not installed" in message["error"]
    assert f'python -m pip install "{install}"' in message["run"]


def test_a_package_that_is_missing_at_the_import_of_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = nnssl_commands.import_module

    def without_scipy(name: str) -> Any:
        if name == "nnssl.cli.methods":
            raise ModuleNotFoundError("No module named 'scipy.ndimage'", name="scipy.ndimage")
        return whole(name)

    monkeypatch.setattr(nnssl_commands, "import_module", without_scipy)
    monkeypatch.setattr(sys, "argv", ["nnssl_methods"])
    assert nnssl_commands.methods() == 4
    assert capsys.readouterr().err == (
        "error: nnssl_methods needs the Python package scipy, which is not installed\n"
        "  where: import scipy.ndimage\n"
        '  run:   python -m pip install "scipy"\n'
    )


@pytest.mark.parametrize(
    ("module", "install"),
    [("skimage.measure", "scikit-image"), ("h5py", "nnssl-semi[h5]"), ("mamba_ssm.ops", "nnssl-semi[mamba]")],
)
def test_the_distribution_is_named_and_not_the_package(module: str, install: str) -> None:
    problem = missing_package(ModuleNotFoundError(name=module), "nnssl_train")
    assert problem is not None
    assert problem.run == f'python -m pip install "{install}"'


def test_a_module_of_our_own_that_is_missing_stays_an_unexpected_error() -> None:
    assert missing_package(ModuleNotFoundError(name="nnssl.nowhere"), "nnssl_train") is None
    assert missing_package(ModuleNotFoundError(), "nnssl_train") is None


def completions(command: str, line: str, file: Path) -> list[str]:
    """Return what the shell would offer at the end of a line."""
    entry = SCRIPTS[command].partition(":")[2]
    script = (
        f"import sys, nnssl_commands; sys.argv = [{command!r}]; nnssl_commands.{entry}(); sys.exit('no completion')"
    )
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(file),
    }
    asked |= {"_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **asked}, check=True, capture_output=True)
    return sorted(file.read_text().split())


@pytest.mark.parametrize("command", SCRIPTS)
def test_the_options_of_every_command_are_completed(command: str) -> None:
    argcomplete = pytest.importorskip("argcomplete")
    made: argparse.ArgumentParser = import_module(f"nnssl.cli.{SCRIPTS[command].partition(':')[2]}").make_parser()
    finder = argcomplete.CompletionFinder(made, always_complete_options=True)
    offered = {word.strip() for word in finder._get_completions([command], "-", "", None)}
    options = {word for action in made._actions for word in action.option_strings if action.help != argparse.SUPPRESS}
    assert len(options) >= 4
    assert options <= offered


def test_the_shell_gets_options_and_choices(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    assert completions("nnssl_methods", "nnssl_methods --ve", tmp_path / "options") == ["--verbose", "--version"]
    offered = completions("nnssl_predict", "nnssl_predict -device c", tmp_path / "choices")
    assert offered == ["cpu", "cuda"]


def test_without_argcomplete_a_command_runs_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setattr(sys, "argv", ["nnssl_methods"])
    assert nnssl_commands.methods() == 0
