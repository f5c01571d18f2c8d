"""The sdist holds what is needed to build, document and test the project."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nnssl.version import __version__
from tests.test_wheel import LEFT_OUT, ROOT, files_of


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[Path]:
    """Build the sdist from a copy, without network, and return its files."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "source", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(folder / f"nnssl_semi-{__version__}.tar.gz") as archive:
        return {Path(*Path(member.name).parts[1:]) for member in archive.getmembers() if member.isfile()}


@pytest.mark.parametrize("folder", ["nnssl", "nnssl_trainers", "dataset_conversion", "tests", "benchmarks"])
def test_the_sdist_holds_every_file_of_the_code(folder: str, names: set[Path]) -> None:
    assert files_of(folder) <= names


def test_the_sdist_holds_the_papers_of_the_project_and_the_docs(names: set[Path]) -> None:
    single = {
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "Makefile",
        "nnssl_commands.py",
    }
    pages = {path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")}
    assert len(pages) > 10
    assert {Path(name) for name in single} | pages <= names


def test_the_sdist_holds_nothing_that_was_built(names: set[Path]) -> None:
    assert [name for name in names if name.suffix == ".pyc" or {"_build", "generated", ".venv"} & set(name.parts)] == []
