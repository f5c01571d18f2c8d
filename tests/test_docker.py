"""The image of `nnssl_predict`: what its build reads, what stays out of it, and as whom it runs."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PRIVATE = ("demo/nnUNet_raw/a.nii.gz", "imagesTr/a_0000.nii.gz", "model.zip", ".git/config", "run.json", "tests/x.py",
           ".venv/bin/python", "docs/report.md", "nnssl/__pycache__/api.pyc")  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Return each instruction of the Dockerfile with its argument on one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def last_stage() -> list[tuple[str, str]]:
    """Return the instructions of the image that is kept."""
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def is_ignored(file: str, rules: list[str]) -> bool:
    """Return whether a file stays out of the build: the last rule that fits the file or a folder above it decides."""
    parts = Path(file).parts
    places = ["/".join(parts[: number + 1]) for number in range(len(parts))]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.startswith("**/")
        names = parts if anywhere else places
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            ignored = not rule.startswith("!")
    return ignored


def rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def copied() -> list[str]:
    """Return the sources that the build copies from the checkout."""
    arguments = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    return [source for words in arguments for source in words[:-1]]


def test_only_known_instructions_from_fixed_images() -> None:
    found = instructions()
    known = {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in found} <= known  # ADD could fetch from a network
    assert found[0][0] == "FROM"
    for name, rest in found:
        if name == "FROM":
            assert re.match(r"python:3\.\d+-[a-z]+-[a-z]+( AS [a-z]+)?$", rest), rest
    assert [rest for name, rest in found if name == "ARG"] == ['TORCH_INDEX=""']
    assert '${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch' in next(
        rest for name, rest in found if "index-url" in rest
    )


def test_the_image_runs_without_root_and_installs_nothing_more() -> None:
    stage = last_stage()
    assert not [rest for name, rest in stage if name == "RUN"]
    assert all(rest.startswith("--from=build ") for name, rest in stage if name == "COPY")
    (user,) = [rest for name, rest in stage if name == "USER"]
    assert all(int(number) > 0 for number in user.split(":"))
    environment = next(rest for name, rest in stage if name == "ENV")
    assert "nnUNet_results=/models" in environment
    assert "HOME=/tmp" in environment


def test_the_command_is_one_of_the_package() -> None:
    entry = json.loads(next(rest for name, rest in last_stage() if name == "ENTRYPOINT"))
    assert entry == ["nnssl_predict", "-i", "/in", "-o", "/out"]
    assert entry[0] in PROJECT["scripts"]


def test_the_build_reads_what_the_package_needs_and_nothing_private() -> None:
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "nnssl_commands.py"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists()
        assert not is_ignored(source, rules()), source
    assert not is_ignored("nnssl/reports/page/report.html", rules())
    for file in PRIVATE:
        assert is_ignored(file, rules()), file


@pytest.mark.slow
def test_the_files_of_the_build_make_a_wheel(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, context)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run([*command, "-w", str(tmp_path)], cwd=context, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("nnssl_semi-*.whl"))


def docker_answers() -> bool:
    """Return whether docker is installed and its daemon runs."""
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


@pytest.mark.nightly
def test_the_image_is_built_and_prints_its_help() -> None:
    if not docker_answers():
        pytest.skip("needs docker with its daemon")
    subprocess.run(["docker", "build", "-q", "-t", "nnssl-semi-test", str(ROOT)], check=True)
    shown = subprocess.run(["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp",
                            "nnssl-semi-test"], check=True, capture_output=True, text=True)  # fmt: skip
    assert "nnssl_predict" in shown.stdout
