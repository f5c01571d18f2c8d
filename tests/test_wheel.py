"""The wheel, installed into an empty folder, works outside the checkout and holds the packages only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnssl.registry import METHODS
from nnssl.version import __version__
from tests.dataset_conversion.miniatures import label, scan, write

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "_build", "generated", "demo")


@dataclass(frozen=True)
class Installed:
    """The wheel and the folder that it is installed into."""

    wheel: Path
    target: Path

    def run(self, code: str, *arguments: str | Path, **variables: str) -> str:
        """Run Python code outside the checkout; return what the code prints.

        The option -S keeps Python from reading the .pth files of the environment, and so from finding the checkout.
        The environment's folders follow the standard library, as some of their modules have names of the library.
        """
        places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"import sys; sys.path += {places}\n{code}", *map(str, arguments)],
            cwd=self.target.parent,
            env={**os.environ, "PYTHONPATH": str(self.target), "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(self, name: str, *arguments: str | Path, **variables: str) -> str:
        """Run the script of one command; return what the command prints."""
        code = "import runpy; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
        return self.run(code, self.target / "bin" / name, *arguments, **variables)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel from a copy, as a build leaves files beside the sources, and install the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    offline = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    pip(["wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")])
    (wheel,) = folder.glob("*.whl")
    pip(["install", *offline, "--no-compile", "--target", str(folder / "target"), str(wheel)])
    shutil.rmtree(folder / "source")
    return Installed(wheel, folder / "target")


def pip(words: list[str]) -> None:
    """Run pip of this environment."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_packages_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    tops = {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")}
    assert tops == {"nnssl", "nnssl_trainers", "nnssl_commands.py"}
    inside = {name for name in names if name.parts[0] in {"nnssl", "nnssl_trainers"}}
    assert inside == files_of("nnssl") | files_of("nnssl_trainers") | {
        "nnssl" / name for name in files_of("dataset_conversion")
    }
    endings = {".py", ".json", ".typed", ".bib", ".css", ".html", ".js", ".LICENSE"}
    assert {name.suffix for name in inside} == endings
    assert installed.wheel.name.startswith(f"nnssl_semi-{__version__}-")


def files_of(folder: str) -> set[Path]:
    """Return the files of a package of the checkout, without what Python caches."""
    files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return {file.relative_to(ROOT) for file in files}


def test_the_checkout_is_out_of_reach(installed: Installed) -> None:
    code = "import nnssl, nnssl_commands, nnssl_trainers, nnssl.dataset_conversion as inner, importlib.util as util\n"
    code += "print(*(module.__file__ for module in (nnssl, nnssl_commands, nnssl_trainers, inner)), sep='\\n')\n"
    code += "assert util.find_spec('dataset_conversion') is None"
    places = installed.run(code).splitlines()
    assert len(places) == 4
    assert all(Path(place).is_relative_to(installed.target) for place in places)


def test_every_command_has_help(installed: Installed) -> None:
    metadata = next(installed.target.glob("nnssl_semi-*.dist-info"))
    lines = (metadata / "entry_points.txt").read_text().splitlines()
    commands = [line.partition(" = ")[0] for line in lines if line.startswith("nnssl_")]
    assert len(commands) >= 8
    assert sorted(file.name for file in (installed.target / "bin").iterdir()) == sorted(commands)
    for name in commands:
        assert f"usage: {name}" in installed.command(name, "--help")


def test_the_methods_are_listed_and_nnunet_finds_them(installed: Installed) -> None:
    assert all(name in installed.command("nnssl_methods") for name in METHODS)
    bridge = installed.command("nnssl_methods", "--env").strip().removeprefix("export nnUNet_extTrainer=")
    assert Path(bridge).is_relative_to(installed.target)
    code = "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
    code += f"for name in {list(METHODS)}: print(find({bridge!r}, name, None))"
    classes = installed.run(code).splitlines()
    assert classes == [f"<class '{method.module}.{name}'>" for name, method in METHODS.items()]


def test_a_data_set_is_converted(installed: Installed, tmp_path: Path) -> None:
    for seed, case in enumerate(("a", "b")):
        write(tmp_path / "mine" / "images" / f"{case}.nii.gz", scan(seed))
        write(tmp_path / "mine" / "labels" / f"{case}.nii.gz", label([1, 2]))
    write(tmp_path / "mine" / "unlabelled" / "c.nii.gz", scan(2))
    words = ("folder", "-i", tmp_path / "mine", "-d", "31", "-np", "2")
    installed.command("nnssl_convert", *words, nnUNet_raw=str(tmp_path))
    (dataset,) = tmp_path.glob("Dataset031_*")
    written = sitk.ReadImage(str(dataset / "imagesUn" / "c_0000.nii.gz"))
    assert (sitk.GetArrayFromImage(written) == scan(2)).all()
    assert {file.name for file in (dataset / "labelsTr").iterdir()} == {"a.nii.gz", "b.nii.gz"}
